"""Prompts that begin alike, and a switch for running that beginning once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from softtok.models import beginnings
from softtok.models.language_model import LanguageModel

COMMON = [2, 60, 61, 62, 33, 60, 8, 9]
# Rests of unequal length, that of one prompt a single token, which is what a beginning leaves at least.
ALIKE = [[*COMMON, 3, 4, 5, 6, 7], [*COMMON, 8], [*COMMON, 11, 12, 13]]
WITHIN = [COMMON, [*COMMON, 5, 6], [*COMMON[:-1], 1, 2]]  # one prompt is no longer than what all begin with
UNLIKE = [COMMON, [3, *COMMON], [2]]


@contextmanager
def sharing(on: bool) -> Iterator[None]:
    """Shares every beginning, however short it is, or none."""
    least = 1 if on else 10**9
    with mock.patch.multiple(beginnings, LEAST_TOKENS=least, LEAST_SPARED=least):
        yield


@contextmanager
def positions_run() -> Iterator[list[tuple[int, int]]]:
    """Yields the rows and positions of every pass through a body while the block runs."""
    run: list[tuple[int, int]] = []
    hidden = LanguageModel.hidden

    def counted(self: LanguageModel, embeds_NTD: torch.Tensor, *args: Any) -> torch.Tensor:
        run.append((embeds_NTD.shape[0], embeds_NTD.shape[1]))
        return hidden(self, embeds_NTD, *args)

    with mock.patch.object(LanguageModel, "hidden", counted):
        yield run
