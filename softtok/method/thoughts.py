"""What a soft step was: the heaviest tokens of its mixture, and how far the noise moved it.

It is looked at while a trajectory is made, in the rows that are watched, and changes nothing.

Shapes: n watched rows, D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from softtok.method.steps import Predictions
from softtok.method.token_modes import CotTokens

TOP = 5
LEAST_WEIGHT = 1e-4
"""Tokens below it are left out: a fuzzy mixture is nearly always one token."""


class Thought(NamedTuple):
    """One soft step of one row."""

    ids: list[int]  # the heaviest tokens of the mixture, the heaviest (the shadow) first
    weights: list[float]
    moved: float  # |x - x without noise|, in units of a typical embedding's length, RMS(E) sqrt(D)


@dataclass(frozen=True)
class Watch:
    """Which rows are watched, by key; `unit` is RMS(E) of the base model."""

    keys: frozenset[str] = field(default_factory=frozenset)
    unit: float = 1.0
    top: int = TOP


def look(
    tokens: CotTokens, predicted: Predictions, draw: torch.Tensor | None, x_nD: torch.Tensor, watch: Watch
) -> list[Thought]:
    """Returns the thoughts of the rows that a mode has just made `x_nD` of, from these predictions and draws."""
    weights_nV = tokens.weights(predicted, draw)
    top = weights_nV.topk(min(watch.top, weights_nV.shape[1]))
    moved_n = torch.zeros(len(x_nD))
    if draw is not None:
        still_nD = tokens.step(predicted, None).x_ND
        moved_n = (x_nD.float() - still_nD.float()).norm(dim=-1) / (watch.unit * math.sqrt(x_nD.shape[1]))
    told = zip(top.indices.tolist(), top.values.tolist(), moved_n.tolist(), strict=True)
    return [_thought(*row) for row in told]


def _thought(ids: list[int], weights: list[float], moved: float) -> Thought:
    kept = max(1, sum(weight >= LEAST_WEIGHT for weight in weights))
    return Thought(ids[:kept], weights[:kept], moved)
