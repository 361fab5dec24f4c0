"""Policy-gradient objectives: the advantages, the weight of a token, and its loss after an update.

With N = B G rows, A the advantages, r_t = pi(token) / pi_old(token) the ratios of a row's sampled tokens and |o| their
number (prefilled words are not among them):

    rloo      A = r - mean of the other rewards            loss = -1/N sum_rows A sum_t log pi_t
    ppo-clip  the same A                                   loss = -1/N sum_rows sum_t min(r_t A, clip(r_t) A)
    grpo      A = (r - mean) / (std + 1e-4) of the group   loss = -1/N sum_rows 1/|o| sum_t min(r_t A, clip(r_t) A)

where clip(r) cuts r to [1 - clip_range, 1 + clip_range] (PPO: arXiv 1707.06347; GRPO: 2402.03300; std with ddof 1 and
1e-4 as in TRL). pi_old is the policy that the rollout was made with: in the first update of a step all ratios are 1.

A reward is NaN where there is no verdict (`verdict.UNJUDGED`). Such a row is no part of its group: means and standard
deviations are of the others, and its own advantage is 0. N counts all rows nevertheless.

Your own objective is a subclass of `Objective`: see `examples/dapo.py`.

Shapes: B prompts, G samples, N = B * G rows, M tokens of a tile.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from softtok.config.settings import TrainingSettings
from softtok.plugins import Reference, load_class


class Objective:
    """RLOO, and what the others share: advantages, the weight of a token, the loss of a token."""

    has_ratios: ClassVar[bool] = False  # whether it can take several updates on one rollout

    def __init__(self, settings: TrainingSettings):
        self.settings = settings

    def advantages(self, rewards_BG: torch.Tensor) -> torch.Tensor:
        """Returns A, shape (B, G); rows without a verdict are not among the rewards (`group_advantages`)."""
        return leave_one_out(rewards_BG)

    def normaliser(self, tokens_BG: np.ndarray, advantages_BG: np.ndarray) -> np.ndarray:
        """Returns the divisor of each row's token losses, shape (B, G); `tokens_BG` counts its sampled tokens."""
        return np.full(tokens_BG.shape, tokens_BG.size)

    def surrogate(
        self, log_prob_M: torch.Tensor, old_M: torch.Tensor, weights_M: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns each token's loss, and whether its ratio is beyond the clip range, both (M,).

        It is called for a user's objective with ratios, and for a built-in one if a step has several updates. Else the
        loss is `weights_M` times the log-probabilities.
        `old_M` are the log-probabilities before the first update, `weights_M` are -A / normaliser.
        """
        raise NotImplementedError(f"{type(self).__name__} has no ratios to correct a second update by")


class PPOClip(Objective):
    """RLOO's advantages with clipped ratios."""

    has_ratios = True

    def surrogate(
        self, log_prob_M: torch.Tensor, old_M: torch.Tensor, weights_M: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return clipped(log_prob_M, old_M, weights_M, (self.settings.clip_range, self.settings.clip_range))


class GRPO(PPOClip):
    """Advantages in units of the group's standard deviation; every row counts alike, however long it is."""

    def advantages(self, rewards_BG: torch.Tensor) -> torch.Tensor:
        centred_BG = rewards_BG - rewards_BG.mean(1, keepdim=True)
        return centred_BG / (rewards_BG.std(1, keepdim=True) + 1e-4)

    def normaliser(self, tokens_BG: np.ndarray, advantages_BG: np.ndarray) -> np.ndarray:
        return tokens_BG * tokens_BG.size


OBJECTIVES: dict[str, type[Objective]] = {"rloo": Objective, "ppo-clip": PPOClip, "grpo": GRPO}


def objective_of(settings: TrainingSettings) -> Objective:
    """Returns the objective that the settings name, built in or a user's."""
    chosen = settings.objective
    return (load_class(chosen, Objective) if isinstance(chosen, Reference) else OBJECTIVES[chosen])(settings)


def group_advantages(rewards_BG: torch.Tensor, objective: Objective) -> torch.Tensor:
    """Returns the advantages of an objective, shape (B, G).

    They are zero where all rewards of a prompt are equal, and where a reward is NaN. The objective sees a group with
    such a reward alone and without it.
    """
    judged_BG = ~rewards_BG.isnan()
    if bool(judged_BG.all()):
        return _advantages(rewards_BG, objective)
    advantages_BG = torch.zeros_like(rewards_BG)
    whole_B = judged_BG.all(1)
    if bool(whole_B.any()):
        advantages_BG[whole_B] = _advantages(rewards_BG[whole_B], objective)
    for b in torch.nonzero(~whole_B & (judged_BG.sum(1) > 1)).flatten().tolist():
        rest_G = judged_BG[b]
        advantages_BG[b, rest_G] = _advantages(rewards_BG[b, rest_G][None], objective)[0]
    return advantages_BG


def _advantages(rewards_BG: torch.Tensor, objective: Objective) -> torch.Tensor:
    # Rewards such as 0.1 have means that are off by a rounding error.
    equal_B1 = (rewards_BG == rewards_BG[:, :1]).all(1, keepdim=True)
    return objective.advantages(rewards_BG).masked_fill(equal_B1, 0.0)


def leave_one_out(rewards_BG: torch.Tensor) -> torch.Tensor:
    """Returns A_bg = r_bg - mean of the other G-1 rewards of prompt b (the RLOO baseline), shape (B, G)."""
    others = rewards_BG.shape[1] - 1
    return rewards_BG - (rewards_BG.sum(1, keepdim=True) - rewards_BG) / others


def clipped(
    log_prob_M: torch.Tensor, old_M: torch.Tensor, weights_M: torch.Tensor, clip_range: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns each token's -min(r A, clip(r) A) / normaliser, and which ratios are beyond the range, both (M,).

    `clip_range` is how far a ratio may fall below 1, and how far it may rise above.
    """
    below, above = clip_range
    ratio = torch.exp(log_prob_M - old_M)
    inside = ratio.clamp(1 - below, 1 + above)
    return torch.maximum(ratio * weights_M, inside * weights_M), (ratio != inside).detach()
