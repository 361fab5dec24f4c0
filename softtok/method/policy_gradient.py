"""The policy-gradient loss and its gradient, in one teacher-forced pass.

The paper's objective is RLOO:

    A_bg = r_bg - mean of the other G-1 rewards of the same prompt     (of those with a verdict; without one A = 0)
    loss = -1/(B G) sum_bg A_bg * [ sum_CoT log pi(x_t | x_<t) + sum_answer log pi(a_t | ...) ]

Other objectives (`objectives.py`) have other advantages, other weights and, for hard tokens, clipped ratios in the
place of log-probabilities. Two terms may be added: minus `entropy_bonus` times the entropy at CoT tokens (temperature
1), plus `kl_coefficient` times the KL to the base at all sampled tokens. Both divide by the objective's normaliser.

The recorded x is a constant: there is no back-propagation through time. The vocabulary exists for a tile of tokens at a
time: the gradient of a tile is formed at once and the tile forgotten. Rows without a verdict contribute nothing, to
bonus and KL neither, and are not run; without bonus and KL the same holds for rows without an advantage. Gradients add
up in `.grad`; they depend on neither the micro-batch nor the tile.

Shapes: B prompts, G samples, N = B * G rows, n rows of a micro-batch, L completion positions, M tokens of a tile, D
width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from softtok.config.settings import SizeSettings, TrainingSettings
from softtok.method.densities import hard_kl
from softtok.method.objectives import Objective
from softtok.method.sampling import entropy, log_prob
from softtok.method.steps import Predictions, Scores
from softtok.method.teacher_forcing import Completions, SharedPrompts, completion_inputs, lay_out, micro_batches
from softtok.method.token_modes import CotTokens
from softtok.method.trajectories import Rollout
from softtok.method.vocabulary_products import Summed, Vocabulary
from softtok.models.language_model import LanguageModel, in_fp32
from softtok.plugins import Reference

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
        if self.ratios:
            metrics["clip_fraction"] = self.clipped / self.ratios
        return metrics


def accumulate_gradients(
    lm: LanguageModel,
    tokens: CotTokens,
    experience: Experience,
    loss: Loss,
    terms: tuple[str, ...] = TERMS,
    gradients: Mapping[torch.Tensor, torch.Tensor] | None = None,
) -> PassStatistics:
    """Adds the gradient of the loss to the `.grad` of the model's parameters; returns what the pass saw.

    `terms` restricts the loss to its CoT or its answer part; the gradients of the parts add up to that of the whole.
    `gradients` are those that an optimizer keeps in fp32 by parameter: head's and E's are added to there.
    """
    rollout, settings = experience.rollout, loss.settings
    rows = experience.rows(settings.regularised)
    terms = tuple(term for term in terms if term != "cot" or settings.cot_term or settings.regularised)
    if len(rows) == 0 or not terms:
        return PassStatistics()
    completions = lay_out(rollout)

    # 1. The prompts, once, and the matrices of the vocabulary.
    prompts = SharedPrompts(lm, rollout, rows)
    own, sums = trained_vocabulary(lm, tokens.mixes, settings.embedding_gradient, gradients or {})
    base = FrozenBase.of(loss, rollout, rows, tokens.mixes)
    tiles = TiledTerms(tokens, experience, completions, loss, own, base.vocabulary if base else None)

    # 2. The completions, a micro-batch at a time. The graph of the prompts exists all the while; where they are long,
    # rows get half of the tokens nevertheless.
    tiling = loss.tiling
    budget = max(tiling.micro_batch_tokens - prompts.mask_BP.numel(), tiling.micro_batch_tokens // 2)
    for batch in micro_batches(completions.lengths_N, rows, prompts.width, budget):
        fed = int(completions.lengths_N[batch].max()) - 1  # the last token's state predicts nothing
        states = prompts.predictors(lm, batch, completion_inputs(lm, rollout, completions, batch, fed))
        base_states = base.predictors(rollout, completions, batch, fed) if base else None
        tiles.back_propagate(terms, batch, states, base_states)

    # 3. On through the prompts, and into head and E.
    ends = [*prompts.gradients(), *sums.items()]
    torch.autograd.backward([root for root, _ in ends], [gradient.to(root.dtype) for root, gradient in ends])
    return tiles.statistics


def trained_vocabulary(
    lm: LanguageModel, mixtures: bool, embedding_gradient: bool, gradients: Mapping[torch.Tensor, torch.Tensor]
) -> tuple[Vocabulary, dict[torch.Tensor, torch.Tensor]]:
    """Returns head and E of the model in training, and the sums of their gradients that remain to be handed over.

    There are no such sums where fp32 gradients are given, or where the parameter's own gradient is fp32: those are
    added to. `mixtures` is that of `in_fp32`.
    """
    sums: dict[torch.Tensor, torch.Tensor] = {}

    def sum_of(parameter: torch.Tensor) -> torch.Tensor:
        known = gradients.get(parameter, parameter.grad)
        if known is not None and known.dtype == torch.float32:
            return known
        if parameter not in sums:
            sums[parameter] = torch.zeros_like(parameter, dtype=torch.float32)
        return sums[parameter]

    head_VD, embedding_VD = in_fp32(lm, mixtures)
    head = Summed(head_VD, sum_of(lm.head_VD))
    learned = sum_of(lm.embedding_VD) if mixtures and embedding_gradient else None
    return Vocabulary(head, Summed(embedding_VD, learned)), sums


class FrozenBase:
    """The base model that a KL term stays close to, run on the same trajectories without a gradient."""

    @torch.no_grad()
    def __init__(self, lm: LanguageModel, rollout: Rollout, rows: np.ndarray, mixtures: bool):
        self.lm = lm
        self.prompts = SharedPrompts(lm, rollout, rows)
        self.vocabulary = Vocabulary(*in_fp32(lm, mixtures))

    @classmethod
    def of(cls, loss: Loss, rollout: Rollout, rows: np.ndarray, mixtures: bool) -> FrozenBase | None:
        """Returns the base model of a loss with a KL term, or None if it has none."""
        if loss.settings.kl_coefficient == 0:
            return None
        assert loss.reference is not None, "a KL term needs the model to stay close to"
        return cls(loss.reference, rollout, rows, mixtures)

    @torch.no_grad()
    def predictors(self, rollout: Rollout, completions: Completions, batch: np.ndarray, fed: int) -> torch.Tensor:
        """Returns its states at the same tokens, as `SharedPrompts.predictors` does."""
        inputs = completion_inputs(self.lm, rollout, completions, batch, fed)
        return self.prompts.predictors(self.lm, batch, inputs)


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

    def back_propagate(
        self, terms: tuple[str, ...], batch: np.ndarray, states: torch.Tensor, base_states: torch.Tensor | None
    ) -> None:
        """Adds the gradients of these rows' terms; `states` (n, L, D) predict their completions' tokens."""
        pieces, upstream = [], []
        for term, member_NL in (("cot", self.completions.cot_NL), ("answer", self.completions.answer_NL)):
            places = np.argwhere(member_NL[batch]) if term in terms else np.empty((0, 2), np.int64)
            for start in range(0, len(places), self.loss.tiling.tile_tokens):
                row, column = places[start : start + self.loss.tiling.tile_tokens].T
                at = self._on_device(row), self._on_device(column)
                pieces.append(states[at])
                hidden_MD = pieces[-1].detach().requires_grad_()
                loss = self._loss(
                    term, (batch[row], column), hidden_MD, None if base_states is None else base_states[at]
                )
                if loss.requires_grad:
                    loss.backward()
                # No gradient where fuzzy mixtures were single rows: a row of E does not depend on the logits.
                upstream.append(torch.zeros_like(hidden_MD) if hidden_MD.grad is None else hidden_MD.grad)
        torch.cat(pieces).backward(torch.cat(upstream).to(states.dtype))

    def _loss(
        self, term: str, at: tuple[np.ndarray, np.ndarray], hidden_MD: torch.Tensor, base_MD: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the loss of the tokens at these rows and columns."""
        settings, rows_M = self.loss.settings, self._on_device(at[0])
        predicted, scores = self._predict(self.own, hidden_MD), None
        loss = torch.zeros((), device=self.device)
        if term == "answer" or settings.cot_term:
            scores = self._score(term, predicted, at)
            loss = self._policy_gradient(scores.log_prob_M, at)
        if term == "cot" and settings.entropy_bonus > 0:
            bonus = (self.shares_N[rows_M] * entropy(predicted.logits_NV)).sum()
            loss = loss - settings.entropy_bonus * bonus
        if self.base is not None and base_MD is not None:
            kl_M = self._kl(term, predicted, self._predict(self.base, base_MD), scores)
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
