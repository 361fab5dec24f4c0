"""The units that noise is scaled by: root mean squares of the base model, measured once.

Shapes: B prompts, D width, V vocabulary.
"""

from __future__ import annotations

import math

import torch

from softtok.models.language_model import LanguageModel, logits_fp32, prefill

RMS_PROMPTS = 64
RMS_PROMPTS_AT_ONCE = 8


def embedding_rms(embedding_VD: torch.Tensor) -> float:
    """RMS(E) over all entries; sigma = gamma * RMS(E), measured once on the base model."""
    return embedding_VD.detach().float().square().mean().sqrt().item()


@torch.no_grad()
def state_rms(lm: LanguageModel, prompts: list[list[int]]) -> dict[str, float]:
    """RMS of the final hidden states and of all logits where the first CoT token is made, behind the first
    RMS_PROMPTS of these prompts. Which prompts they are is the caller's choice, once, with the base model.
    """
    squares = {"hidden": 0.0, "logits": 0.0}
    prompts = prompts[:RMS_PROMPTS]
    for start in range(0, len(prompts), RMS_PROMPTS_AT_ONCE):
        last_BD = prefill(lm, prompts[start : start + RMS_PROMPTS_AT_ONCE])[0]
        squares["hidden"] += last_BD.float().square().mean(-1).sum().item()
        squares["logits"] += logits_fp32(last_BD, lm.head_VD).square().mean(-1).sum().item()
    return {name: math.sqrt(square / len(prompts)) for name, square in squares.items()}
