"""AdamW on fp32 master weights.

The model keeps one working copy of its weights in compute precision, for rollout and training. In bf16, updates of 6e-6
would be rounded away. So the optimizer holds fp32 masters and moments, and rounds the masters into the working copy
after each step. In fp32, the working copy is the master. Masters and moments take 12 bytes a parameter. They may be in
the host's memory instead of the GPU's (`optimizer_device: cpu`). Then the gradient adds up in fp32 on the GPU, and is
copied to the host once a step, which takes 4 bytes a parameter more.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from softtok.config.settings import TrainingSettings


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Returns the learning rate of step 1, 2, ..., `steps`.

    A linear warm-up is followed by half a cosine, which would reach zero one step after the last.
    """
    warm_up = min(1.0, step / settings.warmup_steps) if settings.warmup_steps else 1.0
    past = max(0, step - settings.warmup_steps - 1)
    return (
        settings.learning_rate
        * warm_up
        * 0.5
        * (1 + math.cos(math.pi * past / max(1, settings.steps - settings.warmup_steps)))
    )


class MasterAdamW:
    """PyTorch's AdamW on fp32 masters of a model's parameters; gradients add up in fp32 over micro-batches."""

    def __init__(self, model: torch.nn.Module, settings: TrainingSettings, device: str | None = None):
        """Makes masters on `device`, or where the parameters are if it is None."""
        self.settings = settings
        self.working = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.masters = [_master(parameter, torch.device(device or parameter.device)) for parameter in self.working]
        self.gradients: dict[torch.Tensor, torch.Tensor] = {}  # of each parameter, in fp32, on its device
        for parameter, master in zip(self.working, self.masters, strict=True):
            if master is not parameter:
                parameter.register_post_accumulate_grad_hook(_hand_over(self.gradients))
        self.adamw = torch.optim.AdamW(self.masters, lr=0.0, weight_decay=settings.weight_decay, fused=True)

    def zero_grad(self) -> None:
        for parameter, master in zip(self.working, self.masters, strict=True):
            if parameter in self.gradients:
                self.gradients[parameter].zero_()
            else:
                self.gradients[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
            # Autograd itself adds to an fp32 gradient. A pass that failed may have left another kind of gradient.
            parameter.grad = self.gradients[parameter] if master is parameter else None

    def gradient_norm(self) -> float:
        """Returns the L2 norm of the whole gradient."""
        return torch.nn.utils.get_total_norm(list(self.gradients.values())).item()

    def step(self, step: int, norm: float) -> None:
        """Clips the gradient in place, given its norm, and takes one optimizer step with the learning rate of `step`.

        Updates the masters and rounds them into the working copy.
        """
        clip = (self.settings.gradient_clip / (torch.tensor(norm) + 1e-6)).item()  # torch's clip_grad_norm_
        if clip < 1:
            for gradient in self.gradients.values():
                gradient.mul_(clip)
        for parameter, master in zip(self.working, self.masters, strict=True):
            if master.device == parameter.device:
                master.grad = self.gradients[parameter]
            elif master.grad is None:
                master.grad = self.gradients[parameter].to(master.device)
            else:
                master.grad.copy_(self.gradients[parameter])
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(step, self.settings)
        self.adamw.step()
        self._round()

    def state(self) -> dict[str, Any]:
        return {"masters": [master.detach() for master in self.masters], "adamw": self.adamw.state_dict()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.copy_(saved)
        self.adamw.load_state_dict(state["adamw"])
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for parameter, master in zip(self.working, self.masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)


def _master(parameter: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the parameter itself if it is fp32 and on the device, else an fp32 copy there."""
    if parameter.dtype == torch.float32 and parameter.device == device:
        return parameter
    return parameter.detach().to(device, torch.float32).requires_grad_()


def _hand_over(gradients: dict[torch.Tensor, torch.Tensor]) -> Any:
    """Returns a hook that adds a parameter's new gradient to these, in fp32, and drops it."""

    def hook(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None and parameter in gradients, "zero_grad comes first"
        gradients[parameter].add_(parameter.grad)
        parameter.grad = None

    return hook
