"""What `estimator: pathwise` asks of a token mode: its `path` is what was fed, with the gradient of `step`.

A user's mode is held against central differences of its own steps: the draws stay, and the hidden states, the head and
E are moved a little. And a mode may be right and say little: at fuzzy temperatures the path has hardly a gradient.

Shapes: N rows, T steps, M = T * N tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from softtok.config.settings import TokenMode, TrainingSettings
from softtok.method.sampling import SINGLE_ROW_TEMPERATURE
from softtok.method.steps import Predictions, Record
from softtok.method.token_modes import CotTokens
from softtok.method.vocabulary_products import Summed, Vocabulary
from softtok.plugins import Plugin

ROWS, STEPS, WIDTH, VOCABULARY = 8, 2, 6, 48
PROBES = 4  # directions, of what is moved and of x, that derivatives are compared along
MOVE = 0.01  # of numbers of size 1: large enough for fp32, small enough for the curvature at SMOOTH
SMOOTH = 0.5  # the least temperature at which differences say something
CLOSE = 0.02  # relative, of the norm of the derivatives; wrong ones differ by more than a half


class Point(NamedTuple):
    """Where a step starts: what is moved for a difference."""

    hidden_TND: torch.Tensor
    head_VD: torch.Tensor
    embedding_VD: torch.Tensor

    def moved(self, name: str, by: torch.Tensor) -> Point:
        """Returns the point with one of its tensors moved."""
        return self._replace(**{name: getattr(self, name) + by})


def smooth(mode: TokenMode) -> TokenMode:
    """Returns the mode without the jumps that a difference could cross: single rows of E, and a token set."""
    top_k = None if mode.top_k is None else max(mode.top_k, VOCABULARY)
    return mode.model_copy(update={"temperature": max(mode.temperature, SMOOTH), "top_k": top_k})


def check_path(tokens: CotTokens, smooth_tokens: CotTokens, plugin: Plugin) -> None:
    """Raises UserError where `path` is missing, is not the x that was fed, or has another derivative than `step`.

    The derivative is compared in the mode that `smooth` makes.
    """
    if type(tokens).path is CotTokens.path:
        raise plugin.fault("has no path for estimator: pathwise; define path, or set estimator: score")
    examples = Example(tokens), Example(smooth_tokens)
    for example in examples:
        fed_MD = example.fed_again()
        for mean in (True, False):
            x_MD = example.path(example.point, mean=mean).detach()
            if x_MD.shape != fed_MD.shape:
                raise plugin.fault(f"path: has shape {tuple(x_MD.shape)}, not shape {tuple(fed_MD.shape)}")
            gap = float((x_MD - fed_MD).abs().max())
            if not gap <= 1e-3 * max(1.0, float(fed_MD.abs().max())):
                raise plugin.fault(
                    f"path: is not the x that step fed (it differs by {gap:.2g}); does it make the noise anew,"
                    " or is step another one?"
                )
    _compare_derivatives(examples[1], plugin)


class Example:
    """Two steps of a small random model, recorded, in an order of tokens that is not theirs."""

    def __init__(self, tokens: CotTokens):
        self.tokens, generator = tokens, torch.Generator().manual_seed(0)
        shapes = (STEPS, ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY, WIDTH)
        self.point = Point(*(torch.randn(shape, generator=generator) for shape in shapes))
        draws = tokens.draws([f"row {row}" for row in range(ROWS)], self.point.embedding_VD)
        drawn = (draws.at(step, np.arange(ROWS)) for step in range(STEPS))
        self.drawn = [None if draw is None else draw.clone() for draw in drawn]  # the next block overwrites them
        record = tokens.new_record(STEPS, self.point.embedding_VD, draws)
        assert record is not None, "tokens with a path are recorded"
        self.record: Record = record
        self.ids_TN = torch.zeros(STEPS, ROWS, dtype=torch.long)
        order = np.random.default_rng(0).permutation(STEPS * ROWS)
        self.rows, self.columns = order % ROWS, order // ROWS
        self.fed(self.point, note=True)

    @torch.no_grad()
    def fed(self, point: Point, note: bool = False) -> torch.Tensor:
        """Returns what is fed from a point on, with the same draws, shape (M, D)."""
        vocabulary, x = Vocabulary(point.head_VD, point.embedding_VD), []
        for step, hidden_ND in enumerate(point.hidden_TND):
            made = self.tokens.step(Predictions(hidden_ND, vocabulary.logits(hidden_ND), vocabulary), self.drawn[step])
            x.append(made.x_ND.float())
            if note:
                self.record.note((slice(None), step), made)
                self.ids_TN[step] = made.ids_N
        return torch.stack(x)[self.columns, self.rows]

    def fed_again(self) -> torch.Tensor:
        """Returns what was fed."""
        return self.record.x_NTD[self.rows, self.columns].float()

    def path(self, point: Point, *, mean: bool, vocabulary: Vocabulary | None = None) -> torch.Tensor:
        """Returns `path`, as a pass calls it: with the mean of `score`, or in its iterations without."""
        vocabulary = vocabulary or Vocabulary(point.head_VD, point.embedding_VD)
        hidden_MD, at = point.hidden_TND[self.columns, self.rows], (self.rows, self.columns)
        predicted = Predictions(hidden_MD, vocabulary.logits(hidden_MD), vocabulary)
        mean_MD = None
        if mean:
            mean_MD = self.tokens.score(predicted, self.ids_TN[self.columns, self.rows], self.record, at).mean_MD
        return self.tokens.path(predicted, self.record, at, mean_MD)

    def gradients(self, upstream_MD: torch.Tensor, *, mean: bool) -> dict[str, torch.Tensor]:
        """Returns the gradient of <upstream, path> by each tensor of the point; those of head and E add up in place."""
        head, embedding = (Summed(m, torch.zeros_like(m)) for m in (self.point.head_VD, self.point.embedding_VD))
        hidden_TND = self.point.hidden_TND.clone().requires_grad_()
        x_MD = self.path(self.point._replace(hidden_TND=hidden_TND), mean=mean, vocabulary=Vocabulary(head, embedding))
        if x_MD.requires_grad:
            (x_MD * upstream_MD).sum().backward()
        found = hidden_TND.grad, head.gradient_VD, embedding.gradient_VD
        named = zip(Point._fields, found, self.point, strict=True)
        return {name: torch.zeros_like(at) if gradient is None else gradient for name, gradient, at in named}


def _compare_derivatives(example: Example, plugin: Plugin) -> None:
    """Raises UserError where the gradient of `path` is not that of the steps."""
    generator = torch.Generator().manual_seed(1)
    for name, at in example.point._asdict().items():
        seen, wanted = [], []
        for probe in range(PROBES):
            way = torch.randn(at.shape, generator=generator)
            upstream_MD = torch.randn(STEPS * ROWS, WIDTH, generator=generator)
            ahead, behind = (example.fed(example.point.moved(name, sign * MOVE * way)) for sign in (1, -1))
            wanted.append(float((upstream_MD * (ahead - behind)).sum() / (2 * MOVE)))
            seen.append(float((example.gradients(upstream_MD, mean=probe % 2 == 0)[name] * way).sum()))
        gap, size = np.linalg.norm(np.subtract(seen, wanted)), np.linalg.norm(wanted)
        if not gap <= CLOSE * size + 1e-3:
            raise plugin.fault(
                f"path: its gradient by {name.split('_')[0]} is not that of step (along {PROBES} directions"
                f" {_few(seen)}, and by differences {_few(wanted)}); define a path for this step, or set"
                " estimator: score"
            )


def _few(numbers: list[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)


def remark(mode: TokenMode, training: TrainingSettings) -> str | None:
    """Returns what a user should know of the gradient through tokens that are nearly always single rows of E."""
    if training.estimator != "pathwise" or not 0 < mode.temperature < SINGLE_ROW_TEMPERATURE:
        return None
    rows = " and E's rows contribute" if training.embedding_gradient else " contributes"
    return (
        f"temperature: {mode.temperature:g} is below {SINGLE_ROW_TEMPERATURE:g}, so that a mixture is one row of E but"
        f" for near ties: pathwise is allowed, but for near ties only the answer term{rows}, and at a near tie the"
        f" factor p(1-p)/tau reaches {0.25 / mode.temperature:,.0f}"
    )
