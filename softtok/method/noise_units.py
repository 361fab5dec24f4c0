"""The units that noise is scaled by: root mean squares of the base model, measured once.

Shapes: B prompts, D width, V vocabulary.
"""

from __future__ import annotations

import math

import torch

from softtok.models.language_model import LanguageModel, begin, logits_fp32, prefill

RMS_PROMPTS = 64
RMS_PROMPTS_AT_ONCE = 8


def embedding_rms(embedding_VD: torch.Tensor) -> float:
    """Returns RMS(E) over all entries, measured once on the base model; sigma = gamma * RMS(E)."""
    return embedding_VD.detach().float().square().mean().sqrt().item()


@torch.no_grad()
def state_rms(lm: LanguageModel, prompts: list[list[int]]) -> dict[str, float]:
    """Returns the RMS of the final hidden states and of all logits at the end of the first RMS_PROMPTS prompts.

    There the first CoT token is made. The caller chooses the prompts once, with the base model.
    """
    squares = {"hidden": 0.0, "logits": 0.0}
    prompts = prompts[:RMS_PROMPTS]
    beginning = begin(lm, prompts)
    for start in range(0, len(prompts), RMS_PROMPTS_AT_ONCE):
        last_BD = prefill(lm, prompts[start : start + RMS_PROMPTS_AT_ONCE], beginning).last_BD
        squares["hidden"] += last_BD.float().square().mean(-1).sum().item()
        squares["logits"] += logits_fp32(last_BD, lm.head_VD).square().mean(-1).sum().item()
    return {name: math.sqrt(square / len(prompts)) for name, square in squares.items()}
