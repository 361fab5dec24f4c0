"""Runs finished trajectories through the model again: what was fed is known, so all positions are run at once.

The pass feeds the recorded x again, as a constant, so its states are the rollout's. Each prompt is run once, and its
keys and values are shared by its samples.

Shapes: B prompts, G samples, N = B * G rows, n rows of a micro-batch, P prompt and L completion positions, H heads, K
width of a head, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from softtok.method.trajectories import Rollout
from softtok.models.attention import layer_states
from softtok.models.language_model import LanguageModel, prefill


class SharedPromptLayer(CacheLayerMixin):
    """A cache layer for one pass: prompt keys and values per row in front of the completion's own. Keeps the graph."""

    def __init__(self, keys_nHPK: torch.Tensor, values_nHPK: torch.Tensor):
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.is_initialized = keys_nHPK, values_nHPK, True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the constructor fills the layer."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def get_max_length(self) -> int:
        return -1


@dataclass(frozen=True)
class Completions:
    """The rows of a rollout laid out for teacher forcing: [CoT | prefilled words | answer | padding]."""

    ids_NL: np.ndarray
    cot_NL: np.ndarray  # True at CoT tokens
    answer_NL: np.ndarray  # True at sampled answer tokens; prefilled words are in neither: they were not sampled
    lengths_N: np.ndarray


def lay_out(rollout: Rollout) -> Completions:
    """Every row's tokens in the order they were fed."""
    lines = []
    for row, answer in enumerate(rollout.answers):
        lines.append((rollout.cot(row), rollout.prefills[rollout.stops[row]], answer))
    lengths = np.array([sum(map(len, line)) for line in lines])
    ids = np.zeros((len(lines), lengths.max()), np.int64)
    cot, answers = np.zeros_like(ids, dtype=bool), np.zeros_like(ids, dtype=bool)
    for row, (thought, words, answer) in enumerate(lines):
        ids[row, : lengths[row]] = thought + words + answer
        cot[row, : len(thought)] = True
        answers[row, len(thought) + len(words) : lengths[row]] = True
    return Completions(ids, cot, answers, lengths)


def micro_batches(lengths: np.ndarray, rows: np.ndarray, prompt_width: int, budget: int) -> list[np.ndarray]:
    """Splits `rows`, longest first, into micro-batches of at most `budget` tokens, or of one row.

    A micro-batch has rows x (prompt + longest completion) tokens.
    """
    rows = rows[np.argsort(-lengths[rows], kind="stable")]
    batches = []
    while len(rows):
        size = max(1, budget // (prompt_width + int(lengths[rows[0]])))
        batches.append(rows[:size])
        rows = rows[size:]
    return batches


class SharedPrompts:
    """The prompts of some rows, run once, for their completions to go on from.

    Leaves cut the graph behind the prompts: gradients add up there, and go on into the prompts once, at the end.
    """

    def __init__(self, lm: LanguageModel, rollout: Rollout, rows: np.ndarray):
        owners = np.unique(rows // rollout.samples)
        self.prompt_of_row = np.searchsorted(owners, np.arange(len(rollout.answers)) // rollout.samples)
        last_BD, cache, self.mask_BP, self.lengths_B = prefill(lm, [rollout.prompts[b] for b in owners])
        self.roots = [last_BD, *(states for layer in cache.layers for states in layer_states(layer))]
        self.leaves = [root.detach().requires_grad_(root.requires_grad) for root in self.roots]

    @property
    def width(self) -> int:
        """Positions of the longest prompt."""
        return self.mask_BP.shape[1]

    def predictors(self, lm: LanguageModel, batch: np.ndarray, embeds_nLD: torch.Tensor) -> torch.Tensor:
        """Runs these rows' inputs behind their prompts; column t of the result, (n, L + 1, D), predicts token t."""
        rows, fed = embeds_nLD.shape[:2]
        owner_n = torch.from_numpy(self.prompt_of_row[batch]).to(lm.device)
        layers = [
            SharedPromptLayer(k[owner_n], v[owner_n]) for k, v in zip(self.leaves[1::2], self.leaves[2::2], strict=True)
        ]
        causal = torch.ones(fed, fed, dtype=torch.bool, device=lm.device).tril().expand(rows, 1, -1, -1)
        mask = torch.cat([self.mask_BP[owner_n][:, None, None].expand(-1, 1, fed, -1), causal], -1)
        positions = self.lengths_B[owner_n][:, None] + torch.arange(fed, device=lm.device)
        states = lm.hidden(embeds_nLD, mask, positions, Cache(layers=list(layers)))
        return torch.cat([self.leaves[0][owner_n][:, None], states], 1)

    def gradients(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns what arrived at the leaves, each with the root that it goes on into."""
        pairs = zip(self.roots, self.leaves, strict=True)
        return [(root, leaf.grad) for root, leaf in pairs if leaf.grad is not None]


def completion_inputs(
    lm: LanguageModel, completions: Completions, batch: np.ndarray, length: int, x_nTD: torch.Tensor | None
) -> torch.Tensor:
    """Returns what the rollout fed at the first `length` completion positions, shape (n, length, D).

    These are rows of E, and x (`recorded_x`) at soft CoT tokens.
    """
    embeds = lm.embed(torch.from_numpy(completions.ids_NL[batch, :length]).to(lm.device))
    if x_nTD is None:
        return embeds
    thinking = torch.from_numpy(completions.cot_NL[batch, :length]).to(lm.device)
    x_nLD = torch.nn.functional.pad(x_nTD, (0, 0, 0, length - x_nTD.shape[1]))
    return torch.where(thinking[..., None], x_nLD, embeds)


def recorded_x(rollout: Rollout, batch: np.ndarray, length: int) -> torch.Tensor | None:
    """Returns what these rows' soft CoTs fed at the first `length` positions, (n, T, D) with T <= length, as a copy.

    None for hard tokens, whose ids say it. Steps behind a row's CoT are undefined.
    """
    if rollout.record is None:
        return None
    x_NTD = rollout.record.x_NTD
    return x_NTD[torch.from_numpy(batch).to(x_NTD.device), :length]
