"""What all prompts of a call begin with: run once, and shared by them.

The prompts of a data set begin with the same instruction and worked examples, often more tokens than the question
behind them. The model is causal, so the states of these tokens are the same in all prompts. They are run as one row,
and the rests of the prompts go on from their keys and values; in fp32 this is exact up to rounding. The graph is kept:
the gradients of all rests add up in the one beginning.

Shapes: n rows, J key heads, F positions in front, T new positions, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

States = tuple[torch.Tensor, torch.Tensor]
"""One layer's keys and values, (n, J, F, K) each, or (1, J, F, K) if all rows share them."""

LEAST_TOKENS = 16  # a beginning is one more product in every layer of every decode step
LEAST_SPARED = 128  # tokens; a pass over the beginning alone costs 30 to 100 (135M and 1M parameters, on a CPU)


def common_tokens(prompts: Sequence[list[int]]) -> int:
    """Returns how many tokens all prompts begin with, or 0 where sharing them does not pay.

    At least one token of every prompt is left, whose state predicts the first new token.
    """
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # what these two begin with, all between them begin with
    most = min(map(len, prompts)) - 1
    same = next((i for i in range(most) if first[i] != last[i]), most)
    return same if same >= LEAST_TOKENS and same * (len(prompts) - 1) >= LEAST_SPARED else 0


class FrontLayer(CacheLayerMixin):
    """A cache layer with states in front of those that passes make, which are held apart. Keeps the graph."""

    def __init__(self, *front: States):
        super().__init__()  # type: ignore[no-untyped-call]
        self.front = front

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: `update` takes the states as they are."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds the keys and values of new positions, (n, J, T, K) each; returns all there are."""
        if self.keys is not None and self.values is not None:
            key_states, value_states = torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)
        self.keys, self.values, self.is_initialized = key_states, value_states, True
        if not self.front:
            return key_states, value_states
        rows = len(key_states)
        keys, values = ([x.expand(rows, -1, -1, -1) for x in states] for states in zip(*self.front, strict=True))
        return torch.cat([*keys, key_states], 2), torch.cat([*values, value_states], 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        own = 0 if self.keys is None else self.keys.shape[2]
        return own + sum(keys.shape[2] for keys, _ in self.front)

    def get_max_length(self) -> int:
        return -1


def blocks(layer: Any) -> list[States]:
    """Returns what a `FrontLayer` holds in the order of its positions: what is in front, then what passes made."""
    return [*layer.front, (layer.keys, layer.values)]
