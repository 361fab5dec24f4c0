"""Runs finished trajectories through the model again: what was fed is known, so all positions are run at once.

The pass feeds the recorded x again, as a constant, so its states are the rollout's. Each prompt is run once, and its
keys and values are shared by its samples; what all prompts begin with is run once for all of them.

Shapes: B prompts, G samples, N = B * G rows, n rows of a micro-batch, P prompt and L completion positions, H heads, K
width of a head, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache

from softtok.method.trajectories import Rollout
from softtok.models.beginnings import FrontLayer, blocks
from softtok.models.language_model import LanguageModel, begin, prefill


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
    """The prompts of some rows, run once, for their completions to go on from; what all begin with is run once for all.

    Leaves cut the graph behind the prompts: gradients add up there, and go on into the prompts once, at the end.
    """

    def __init__(self, lm: LanguageModel, rollout: Rollout, rows: np.ndarray):
        owners = np.unique(rows // rollout.samples)
        self.prompt_of_row = np.searchsorted(owners, np.arange(len(rollout.answers)) // rollout.samples)
        prompts = [rollout.prompts[b] for b in owners]
        beginning = begin(lm, prompts)
        run = prefill(lm, prompts, beginning)
        self.mask_BP = F.pad(run.mask_BP, (len(beginning.ids), 0), value=True)
        self.positions = len(beginning.ids) + run.mask_BP.numel()  # that were run, and are held
        self.lengths_B = run.lengths_B
        self.ends: list[tuple[torch.Tensor, torch.Tensor]] = []  # roots and their leaves
        self.last_BD = self._cut(run.last_BD)
        # Of each layer: the beginning's keys and values, if there is one, and those of the rests.
        self.layers = [
            [(self._cut(keys), self._cut(values)) for keys, values in blocks(layer)] for layer in run.cache.layers
        ]

    def _cut(self, root: torch.Tensor) -> torch.Tensor:
        leaf = root.detach().requires_grad_(root.requires_grad)
        self.ends.append((root, leaf))
        return leaf

    @property
    def width(self) -> int:
        """Positions of the longest prompt."""
        return self.mask_BP.shape[1]

    def predictors(self, lm: LanguageModel, batch: np.ndarray, embeds_nLD: torch.Tensor) -> torch.Tensor:
        """Runs these rows' inputs behind their prompts; column t of the result, (n, L + 1, D), predicts token t."""
        rows, fed = embeds_nLD.shape[:2]
        owner_n = torch.from_numpy(self.prompt_of_row[batch]).to(lm.device)
        layers = [FrontLayer(*begun, (keys[owner_n], values[owner_n])) for *begun, (keys, values) in self.layers]
        causal = torch.ones(fed, fed, dtype=torch.bool, device=lm.device).tril().expand(rows, 1, -1, -1)
        mask = torch.cat([self.mask_BP[owner_n][:, None, None].expand(-1, 1, fed, -1), causal], -1)
        positions = self.lengths_B[owner_n][:, None] + torch.arange(fed, device=lm.device)
        states = lm.hidden(embeds_nLD, mask, positions, Cache(layers=list(layers)))
        return torch.cat([self.last_BD[owner_n][:, None], states], 1)

    def gradients(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns what arrived at the leaves, each with the root that it goes on into."""
        return [(root, leaf.grad) for root, leaf in self.ends if leaf.grad is not None]


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
    x_nLD = F.pad(x_nTD, (0, 0, 0, length - x_nTD.shape[1]))
    return torch.where(thinking[..., None], x_nLD, embeds)


def recorded_x(rollout: Rollout, batch: np.ndarray, length: int) -> torch.Tensor | None:
    """Returns what these rows' soft CoTs fed at the first `length` positions, (n, T, D) with T <= length, as a copy.

    None for hard tokens, whose ids say it. Steps behind a row's CoT are undefined.
    """
    if rollout.record is None:
        return None
    x_NTD = rollout.record.x_NTD
    return x_NTD[torch.from_numpy(batch).to(x_NTD.device), :length]
