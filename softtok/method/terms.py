"""The terms of the policy-gradient loss, a tile of tokens at a time: where the vocabulary appears in a pass.

`policy_gradient.py` has the equations and the pass. Here are what a pass minimises and learns from, what it notes on
the side, and the gradient of each term by the states that predict its tokens.

Shapes: B prompts, G samples, N = B * G rows, n rows of a micro-batch, L completion positions, T CoT steps, M tokens of
a tile, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from softtok.config.settings import SizeSettings, TrainingSettings
from softtok.method.densities import hard_kl
from softtok.method.objectives import Objective
from softtok.method.sampling import entropy, log_prob
from softtok.method.steps import Predictions, Scores
from softtok.method.teacher_forcing import Completions
from softtok.method.token_modes import CotTokens
from softtok.method.trajectories import Rollout
from softtok.method.vocabulary_products import Vocabulary
from softtok.models.language_model import LanguageModel
from softtok.plugins import Reference
from softtok.storage.breaks import may_end_here

TERMS = ("cot", "answer")


@dataclass(frozen=True)
class Tiling:
    """How many tokens a pass holds at a time; the gradient does not depend on it."""

    micro_batch_tokens: int  # whose activations exist
    tile_tokens: int  # whose vocabulary-sized tensors exist

    @classmethod
    def of(cls, sizes: SizeSettings) -> Tiling:
        """Returns the tiling that the settings ask for."""
        return cls(sizes.micro_batch_tokens, sizes.tile_tokens)


@dataclass(frozen=True)
class Loss:
    """What a pass minimises: the settings of its terms and, for a KL term, the frozen base model."""

    settings: TrainingSettings
    objective: Objective
    tiling: Tiling
    reference: LanguageModel | None = None

    @property
    def has_ratios(self) -> bool:
        """Whether a token's loss is formed of ratios: in the first of several updates they are all 1.

        With a single update the built-in objectives go without, for the gradient is the same. A user's objective is
        always asked, since its loss may differ where ratios are 1.
        """
        own = isinstance(self.settings.objective, Reference)
        return self.settings.updates_per_step > 1 or (own and self.objective.has_ratios)


@dataclass(frozen=True)
class Experience:
    """What a step learns from: a rollout and its advantages.

    `old_log_prob_NL` are the log-probabilities of the sampled tokens before any update (`PassStatistics.log_prob_NL` of
    the first pass), by completion position; they are needed from the second update on the same rollout on. `judged_N`
    says which rows have a verdict; None: all.
    """

    rollout: Rollout
    advantages_N: np.ndarray
    old_log_prob_NL: torch.Tensor | None = None
    judged_N: np.ndarray | None = None

    def rows(self, regularised: bool) -> np.ndarray:
        """Returns the rows that contribute: those with an advantage, or of a regularised loss those with a verdict."""
        if not regularised:
            return np.flatnonzero(self.advantages_N)
        return np.arange(len(self.advantages_N)) if self.judged_N is None else np.flatnonzero(self.judged_N)


@dataclass
class PassStatistics:
    """What a pass saw on the side, over the tokens it ran.

    Where the noise is not on the mixture, h stands for the action's mean. Noise on logits is drawn again, so its check
    tells of the generator alone: there the flips tell whether it is the rollout's.
    """

    tokens: int = 0  # soft ones
    shadows: int = 0  # those whose ids are a recomputable argmax, ...
    flips: int = 0  # ... and of them those where it differs from the rollout's
    noise: float = 0.0  # sum of |x - h|^2 / (D sigma^2), or its like: its mean is 1 on-policy
    gap: float = 0.0  # largest |h_train - h_rollout| / sigma of any coordinate
    kl: float = 0.0  # sum of the KLs to the base, in nats
    kl_tokens: int = 0
    adjoint: float = 0.0  # sum of |g + J^T lambda|^2, and of what is missing from lambda ...
    residual: float = 0.0  # ... to be that
    growth: float = 0.0  # the largest |lambda| / |g| of a row
    adjoint_rows: list[torch.Tensor] = field(default_factory=list)  # (n, 2): that of each row, and its own residual
    clipped: int = 0  # ratios beyond the clip range
    ratios: int = 0
    log_prob_NL: torch.Tensor | None = None  # of the sampled tokens, where a step has several updates

    def as_metrics(self) -> dict[str, float]:
        """Returns what a training step logs."""
        metrics = {}
        if self.tokens:
            metrics["recomputation_gap"] = self.gap
            metrics["noise_check"] = self.noise / self.tokens
        if self.shadows:
            metrics["shadow_flips"] = self.flips / self.shadows
        if self.kl_tokens:
            metrics["kl"] = self.kl / self.kl_tokens
        if self.adjoint:
            metrics["adjoint_residual"] = math.sqrt(self.residual / self.adjoint)
            metrics["adjoint_growth"] = self.growth
        if self.ratios:
            metrics["clip_fraction"] = self.clipped / self.ratios
        return metrics


@dataclass(frozen=True)
class MicroBatch:
    """Rows whose activations exist: column t of their states (n, L, D) predicts token t."""

    rows: np.ndarray  # (n,)
    states_nLD: torch.Tensor
    base_states_nLD: torch.Tensor | None
    x_nTD: torch.Tensor | None  # what soft CoTs fed; a leaf where the gradient goes through it


class Tile(NamedTuple):
    """Tokens whose vocabulary-sized tensors exist."""

    hidden_MD: torch.Tensor  # the states that predict them, a leaf
    at: tuple[np.ndarray, np.ndarray]  # their rows in the rollout, and columns
    on_device: tuple[torch.Tensor, torch.Tensor]  # their rows in the micro-batch, and columns


LossOfTile = Callable[[Tile], torch.Tensor]


class TiledTerms:
    """The terms of the loss, a tile of tokens at a time: the only place of the pass where the vocabulary appears.

    The gradients of `own` add up in fp32 whatever the working precision, and in place (`vocabulary_products.py`).
    """

    def __init__(
        self,
        tokens: CotTokens,
        experience: Experience,
        completions: Completions,
        loss: Loss,
        own: Vocabulary,
        base: Vocabulary | None,
    ):
        self.tokens, self.experience, self.completions, self.loss = tokens, experience, completions, loss
        self.own, self.base, self.statistics = own, base, PassStatistics()
        self.device = own.embedding.device
        weights_N, shares_N = token_weights(experience, completions, loss.objective)
        self.weights_N = torch.as_tensor(weights_N, dtype=torch.float32, device=self.device)
        self.shares_N = torch.as_tensor(shares_N, dtype=torch.float32, device=self.device)
        if loss.has_ratios:
            self.statistics.log_prob_NL = torch.full(completions.ids_NL.shape, torch.nan, device=self.device)

    def back_propagate(self, terms: tuple[str, ...], micro: MicroBatch) -> None:
        """Adds the gradients of these rows' terms."""
        losses = {term: partial(self._loss, term, micro.base_states_nLD) for term in terms}
        micro.states_nLD.backward(sum(self._upstream(term, micro, loss) for term, loss in losses.items()))

    def _upstream(self, term: str, micro: MicroBatch, loss_of: LossOfTile) -> torch.Tensor:
        """Returns the gradient of a term by the states (n, L, D), and adds head's and E's to their sums."""
        member_NL = self.completions.cot_NL if term == "cot" else self.completions.answer_NL
        places, upstream_nLD = np.argwhere(member_NL[micro.rows]), torch.zeros_like(micro.states_nLD)
        for start in range(0, len(places), self.loss.tiling.tile_tokens):
            may_end_here()
            row, column = places[start : start + self.loss.tiling.tile_tokens].T
            on_device = self._on_device(row), self._on_device(column)
            hidden_MD = micro.states_nLD.detach()[on_device].requires_grad_()
            loss = loss_of(Tile(hidden_MD, (micro.rows[row], column), on_device))
            if loss.requires_grad:
                loss.backward()
            # No gradient where fuzzy mixtures were single rows: a row of E does not depend on the logits.
            if hidden_MD.grad is not None:
                upstream_nLD[on_device] = hidden_MD.grad.to(upstream_nLD.dtype)
        return upstream_nLD

    def _loss(self, term: str, base_states_nLD: torch.Tensor | None, tile: Tile) -> torch.Tensor:
        """Returns the loss of a tile's tokens."""
        settings, rows_M = self.loss.settings, self._on_device(tile.at[0])
        predicted, scores = self._predict(self.own, tile.hidden_MD), None
        loss = torch.zeros((), device=self.device)
        if term == "answer" or settings.cot_term:
            scores = self._score(term, predicted, tile.at)
            loss = self._policy_gradient(scores.log_prob_M, tile.at)
        if term == "cot" and settings.entropy_bonus > 0:
            bonus = (self.shares_N[rows_M] * entropy(predicted.logits_NV)).sum()
            loss = loss - settings.entropy_bonus * bonus
        if self.base is not None and base_states_nLD is not None:
            kl_M = self._kl(term, predicted, self._predict(self.base, base_states_nLD[tile.on_device]), scores)
            loss = loss + settings.kl_coefficient * (self.shares_N[rows_M] * kl_M).sum()
        return loss

    @staticmethod
    def _predict(vocabulary: Vocabulary, hidden_MD: torch.Tensor) -> Predictions:
        return Predictions(hidden_MD, vocabulary.logits(hidden_MD), vocabulary)

    def _score(self, term: str, predicted: Predictions, at: tuple[np.ndarray, np.ndarray]) -> Scores:
        """Returns the tokens' log-probabilities, and notes how well soft steps are computed again."""
        ids_M = self._on_device(self.completions.ids_NL[at])
        if term == "answer":
            return Scores(log_prob(predicted.logits_NV, ids_M, self.loss.settings.answer_temperature))
        scores, seen = self.tokens.score(predicted, ids_M, self.experience.rollout.record, at), self.statistics
        if scores.noise_M is not None:
            seen.tokens += len(ids_M)
            seen.noise += scores.noise_M.sum().item()
            seen.gap = max(seen.gap, scores.gap)
        if scores.shadow_M is not None and self.loss.settings.stop_on == "shadow":  # elsewhere ids are nearest tokens
            seen.shadows += len(ids_M)
            seen.flips += int((scores.shadow_M != ids_M).sum())
        return scores

    def _policy_gradient(self, log_prob_M: torch.Tensor, at: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        """Returns the loss of tokens by their log-probabilities, or by ratios to those of the first update."""
        weights_M, seen = self.weights_N[self._on_device(at[0])], self.statistics
        if seen.log_prob_NL is None:
            return (weights_M * log_prob_M).sum()
        seen.log_prob_NL[at] = log_prob_M.detach()
        old_NL = self.experience.old_log_prob_NL
        old_M = log_prob_M.detach() if old_NL is None else old_NL[at]
        loss_M, beyond_M = self.loss.objective.surrogate(log_prob_M, old_M, weights_M)
        seen.clipped += int(beyond_M.sum())
        seen.ratios += len(beyond_M)
        return loss_M.sum()

    def _kl(self, term: str, own: Predictions, base: Predictions, scores: Scores | None) -> torch.Tensor:
        """Returns the KL of each token to the base, shape (M,)."""
        if term == "cot":
            kl_M = self.tokens.kl(own, base, scores.mean_MD if scores else None)
        else:
            temperature = self.loss.settings.answer_temperature
            kl_M = hard_kl(own.logits_NV / temperature, base.logits_NV / temperature)
        self.statistics.kl += kl_M.sum().item()
        self.statistics.kl_tokens += len(kl_M)
        return kl_M

    def _on_device(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self.device)


def token_weights(
    experience: Experience, completions: Completions, objective: Objective
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of each row's tokens, (N,): -A / normaliser for log-probabilities, else 1 / normaliser."""
    advantages_BG = experience.advantages_N.reshape(-1, experience.rollout.samples)
    tokens_N = completions.cot_NL.sum(1) + completions.answer_NL.sum(1)
    normaliser_N = objective.normaliser(tokens_N.reshape(advantages_BG.shape), advantages_BG).flatten()
    return -experience.advantages_N / normaliser_N, 1 / normaliser_N
