"""The token modes: how one CoT step is made, what of it is recorded, and how its log-probability is computed again.

Each mode is a class below, beside its equations. With logits z, p = softmax(z / tau), eps ~ N(0, I), the final hidden
state s and l = log softmax(z), the log-probabilities are, up to constants:

    HardTokens     x = E[i], i ~ p                  log pi = log p_i
    SoftTokens     x = p E + sigma eps              log pi = -|x - p E|^2 / (2 sigma^2)     (fuzzy: tau = 1e-4)
    HiddenNoise    x = softmax(head a / tau) E      log pi = -|a - s|^2 / (2 sigma^2),  a = s + sigma eps
    LogitNoise     x = softmax(a / tau) E           log pi = -|a - z|^2 / (2 sigma^2),  a = z + sigma eps
    GumbelNoise    x = softmax(y / tau) E           log pi = sum_i -g_i - exp(-g_i),    y = l + g

With `top_k`, all but the k largest z (of head a, for noise on the hidden state) are set to -inf first. For these
scores, what is fed, x, is a constant. Where the noise lies before the mixture, head and E turn the action into x as if
they were frozen copies of the present ones. `path` is x as a function of the states, of head and of E, whose noise
stays (`pathwise.py`).

The text of a CoT is the text of its ids: the sampled tokens, or the *shadow*, the heaviest token of the mixture.

Your own mode is a subclass: see `examples/laplace_noise.py`.

Shapes: N rows, M tokens of a tile, T CoT steps, D width, V vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F

from softtok.config.settings import TokenMode
from softtok.method.densities import gaussian_kl, gaussian_log_density, gumbel, gumbel_log_density, hard_kl
from softtok.method.draws import DRAW_BLOCK, Draws
from softtok.method.sampling import NEAR_TIE_GAP, entropy, keep_top, log_prob, mix, sample_ids, top_gap
from softtok.method.steps import CotStep, HiddenRecord, LogitRecord, Place, Predictions, Record, Scores
from softtok.method.vocabulary_products import Vocabulary
from softtok.models.language_model import logits_fp32
from softtok.plugins import Reference, load_class

DrawKind = Literal["normal", "uniform", "none"]


class CotTokens(ABC):
    """A token mode with its noise: makes CoT steps from predictions and draws, and scores them again in training."""

    draw_block: ClassVar[int] = DRAW_BLOCK  # steps that are drawn at a time
    mixes: ClassVar[bool]  # whether all rows of E take part in a step
    has_ratios: ClassVar[bool] = False  # whether ratios of its probabilities are sound (see `objectives.py`)
    without_noise: ClassVar[Mapping[str, object]]  # the settings that make it deterministic

    def __init__(self, mode: TokenMode, noise_std: float = 0.0):
        """`noise_std` is sigma, in the units of what the noise is added to."""
        self.mode = mode
        self.noise_std = noise_std

    @property
    @abstractmethod
    def draw_kind(self) -> DrawKind:
        """What a step's draws are: standard normals, uniforms in [0, 1), or none for a deterministic mode."""

    @abstractmethod
    def draw_width(self, embedding_VD: torch.Tensor) -> int:
        """Returns how many random numbers a step takes per row."""

    @abstractmethod
    def step(self, predicted: Predictions, draw: torch.Tensor | None) -> CotStep:
        """Makes the next CoT token of each row; `draw` has the shape (N, `draw_width`), and is None without draws."""

    @abstractmethod
    def score(self, predicted: Predictions, ids_M: torch.Tensor, record: Record | None, at: Place) -> Scores:
        """Scores the recorded tokens at these rows and columns, with a gradient to `predicted`."""

    @abstractmethod
    def kl(self, own: Predictions, base: Predictions, mean_MD: torch.Tensor | None) -> torch.Tensor:
        """Returns KL(own || base) of each token, shape (M,); `mean_MD` is that of `score`, where it is known."""

    def path(
        self, predicted: Predictions, record: Record, at: Place, mean_MD: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns x = F(prediction) of the recorded tokens in fp32, (M, D): its noise stays, its gradient is F's.

        This is what `estimator: pathwise` differentiates. `mean_MD` is that of `score`, where it is known.
        """
        raise NotImplementedError(f"{type(self).__name__} has no path; the configuration and the dry check refuse it")

    def draws(self, keys: list[str], embedding_VD: torch.Tensor) -> Draws:
        """Returns the random numbers of these rows' CoTs."""
        width = self.draw_width(embedding_VD)
        return Draws(keys, "cot", self.draw_kind, width, embedding_VD.device, self.draw_block)

    def new_record(self, steps: int, embedding_VD: torch.Tensor, draws: Draws) -> Record | None:
        """Returns an empty record of so many steps; None where ids are all that training needs."""
        return None

    def text_ids(self, made: CotStep, stop_on: str, vocabulary: Vocabulary) -> torch.Tensor:
        """Returns the ids whose text the CoT has, shape (N,)."""
        return made.ids_N

    @property
    def known_mixture(self) -> bool:
        """Whether `weights` tells which rows of E a step mixes."""
        return False

    def weights(self, predicted: Predictions, draw: torch.Tensor | None) -> torch.Tensor:
        """Returns the weights of all rows of E in the mixtures of a step, shape (N, V), for `thoughts.py`."""
        raise NotImplementedError(f"{type(self).__name__} mixes nothing, or does not say what")


class HardTokens(CotTokens):
    """Sampled tokens: x = E[i], i ~ softmax(z / tau); log pi = log p_i. At temperature 0 i is the argmax."""

    mixes = False
    has_ratios = True
    without_noise: ClassVar[Mapping[str, object]] = {"temperature": 0.0}

    @property
    def draw_kind(self) -> DrawKind:
        return "uniform" if self.mode.temperature > 0 else "none"

    def draw_width(self, embedding_VD: torch.Tensor) -> int:
        return 1

    def step(self, predicted: Predictions, draw: torch.Tensor | None) -> CotStep:
        u_N = None if draw is None else draw[:, 0]
        ids, near_tie = sample_ids(predicted.logits_NV, self.mode.temperature, u_N, predicted.p_NV)
        return CotStep(self.inputs(predicted, ids).to(predicted.vocabulary.dtype), ids, near_tie)

    def inputs(self, predicted: Predictions, ids_N: torch.Tensor) -> torch.Tensor:
        """Returns what the tokens are fed as, shape (N, D)."""
        return F.embedding(ids_N, predicted.vocabulary.embedding)

    def score(self, predicted: Predictions, ids_M: torch.Tensor, record: Record | None, at: Place) -> Scores:
        return Scores(log_prob(predicted.logits_NV, ids_M, self.mode.temperature))

    def kl(self, own: Predictions, base: Predictions, mean_MD: torch.Tensor | None) -> torch.Tensor:
        return hard_kl(own.logits_NV / self.mode.temperature, base.logits_NV / self.mode.temperature)


class MixtureOfInputs(HardTokens):
    """Sampled tokens, fed mixed with all (Mixture of Inputs, arXiv 2505.14827); for inference.

    The weight of E[j] is (H p_j + (beta + 1 - H) [j is the token]) / (beta + 1), with H the entropy of p over ln V.
    """

    mixes = True

    def inputs(self, predicted: Predictions, ids_N: torch.Tensor) -> torch.Tensor:
        assert self.mode.inputs_beta is not None, "the mode has a beta"
        logits_NV, embedding_VD = predicted.logits_NV, predicted.vocabulary.embedding
        rows, scale = F.embedding(ids_N, embedding_VD), math.log(logits_NV.shape[1]) * (self.mode.inputs_beta + 1)
        share_N1 = entropy(logits_NV / self.mode.temperature)[:, None] / scale
        mixture = mix(logits_NV, embedding_VD, self.mode.temperature)
        return (share_N1 * mixture + (1 - share_N1) * rows.float()).to(rows.dtype)


class SoftTokens(CotTokens):
    """Mixtures with noise: x = h + sigma eps, h = softmax(z / tau) E; log pi = -|x - h|^2 / (2 sigma^2).

    The paper's soft tokens (tau = 0.5) and fuzzy tokens (tau = 1e-4); without noise (sigma = 0) there is no density.
    A subclass with other noise on the mixture overrides `noise_draws`, `noise`, `log_density` and `noise_size`.
    """

    mixes = True
    noise_draws: ClassVar[DrawKind] = "normal"
    without_noise: ClassVar[Mapping[str, object]] = {
        "noise_scale": 0.0,
        "noise": "gaussian",
        "noise_at": "embedding",
    }

    @property
    def draw_kind(self) -> DrawKind:
        return self.noise_draws if self.noise_std > 0 else "none"

    def draw_width(self, embedding_VD: torch.Tensor) -> int:
        return embedding_VD.shape[1]

    def step(self, predicted: Predictions, draw: torch.Tensor | None) -> CotStep:
        kept_NV = self.mixed_logits(predicted, draw)
        p_NV = predicted.p_NV if kept_NV is predicted.logits_NV else None
        mean, ids, near_tie = self.mixture(kept_NV, predicted.vocabulary, p_NV)
        x_ND = mean if draw is None else mean + self.noise(draw)
        return CotStep(x_ND.to(predicted.vocabulary.dtype), ids, near_tie, mean)

    def mixed_logits(self, predicted: Predictions, draw: torch.Tensor | None) -> torch.Tensor:
        """Returns the logits whose softmax at `temperature` weighs the rows of E, shape (N, V)."""
        return keep_top(predicted.logits_NV, self.mode.top_k)

    @property
    def known_mixture(self) -> bool:
        # A subclass may make its steps in another way, and then has to say of what.
        made, told = (next(c for c in type(self).__mro__ if name in vars(c)) for name in ("step", "mixed_logits"))
        return issubclass(told, made)

    def weights(self, predicted: Predictions, draw: torch.Tensor | None) -> torch.Tensor:
        kept_NV = self.mixed_logits(predicted, draw)
        # The lead is taken before the division, as in `mix`.
        return torch.softmax((kept_NV - kept_NV.amax(-1, keepdim=True)) / self.mode.temperature, -1)

    def mixture(
        self, kept_NV: torch.Tensor, vocabulary: Vocabulary, p_NV: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns softmax(logits / tau) E, its heaviest tokens, and where these are near-ties."""
        best, gap = top_gap(kept_NV)
        return mix(kept_NV, vocabulary.embedding, self.mode.temperature, best, gap, p_NV), best, gap < NEAR_TIE_GAP

    def noise(self, draw_ND: torch.Tensor) -> torch.Tensor:
        """Returns what is added to the mean, from the draws of a step."""
        return self.noise_std * draw_ND

    def log_density(self, action_MD: torch.Tensor, mean_MD: torch.Tensor) -> torch.Tensor:
        """Returns the log-density of the actions around their means, shape (M,), up to a constant."""
        return gaussian_log_density(action_MD, mean_MD, self.noise_std)

    def noise_size(self, noise_MD: torch.Tensor) -> torch.Tensor:
        """Returns the size of each coordinate's noise, in units in which it is 1 on average."""
        return (noise_MD / self.noise_std).square()

    def mean(self, predicted: Predictions) -> torch.Tensor:
        """Returns h = p E, shape (M, D)."""
        kept_MV = keep_top(predicted.logits_NV, self.mode.top_k)
        return mix(kept_MV, predicted.vocabulary.embedding_VD, self.mode.temperature)

    def score(self, predicted: Predictions, ids_M: torch.Tensor, record: Record | None, at: Place) -> Scores:
        assert record is not None, "the rollout was recorded"
        mean, action = self.mean(predicted), self.action(record, at)
        return Scores(
            self.log_density(action, mean),
            mean,
            largest_gap(mean, record, at) / self.noise_std,
            self.noise_size(action - mean.detach()).mean(-1),
            self.shadow(predicted, action),
        )

    def action(self, record: Record, at: Place) -> torch.Tensor:
        """Returns the recorded actions in fp32, shape (M, D)."""
        return record.x_NTD[at].float()

    def path(
        self, predicted: Predictions, record: Record, at: Place, mean_MD: torch.Tensor | None = None
    ) -> torch.Tensor:
        mean = self.mean(predicted) if mean_MD is None else mean_MD
        return mean + (self.action(record, at) - record.mean_NTD[at])

    def shadow(self, predicted: Predictions, action_MD: torch.Tensor) -> torch.Tensor:
        """Returns the heaviest tokens of the mixtures that are fed, shape (M,)."""
        return predicted.logits_NV.detach().argmax(-1)

    def kl(self, own: Predictions, base: Predictions, mean_MD: torch.Tensor | None) -> torch.Tensor:
        return gaussian_kl(self.mean(own) if mean_MD is None else mean_MD, self.mean(base), self.noise_std)

    def new_record(self, steps: int, embedding_VD: torch.Tensor, draws: Draws) -> Record:
        return Record(*self.empty(len(draws.seeds), steps, embedding_VD, embedding_VD.shape[1]))

    @staticmethod
    def empty(count: int, steps: int, embedding_VD: torch.Tensor, mean_width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns room for what is fed and for means of a given width."""
        x_NTD = torch.zeros(count, steps, embedding_VD.shape[1], dtype=embedding_VD.dtype, device=embedding_VD.device)
        return x_NTD, torch.zeros(count, steps, mean_width, device=embedding_VD.device)

    def text_ids(self, made: CotStep, stop_on: str, vocabulary: Vocabulary) -> torch.Tensor:
        """Returns the shadow tokens, or those whose rows of E are nearest to x.

        The stop at the nearest token depends on the action, not on the states that made it. (The stop at the shadow
        token does depend on them, and the estimate does not see it.) It reads the present E: what a step on E does to
        the regions of the tokens is no part of the gradient, as if the stop had a frozen copy of E.
        """
        if stop_on != "nearest":
            return made.ids_N
        embedding = vocabulary.embedding.float()
        return (logits_fp32(made.x_ND, embedding) - embedding.square().sum(1) / 2).argmax(-1)


class HiddenNoise(SoftTokens):
    """Noise on the hidden state: a = s + sigma eps, x = softmax(head a / tau) E; log pi = -|a - s|^2 / (2 sigma^2)."""

    def step(self, predicted: Predictions, draw: torch.Tensor | None) -> CotStep:
        if draw is None:
            return super().step(predicted, draw)
        mean = predicted.hidden_ND.float()
        kept_NV = self.mixed_logits(predicted, draw)
        mixture, ids, near_tie = self.mixture(kept_NV, predicted.vocabulary)
        return CotStep(mixture.to(predicted.vocabulary.dtype), ids, near_tie, mean, mean + self.noise(draw))

    def mixed_logits(self, predicted: Predictions, draw: torch.Tensor | None) -> torch.Tensor:
        if draw is None:
            return super().mixed_logits(predicted, draw)
        action = predicted.hidden_ND.float() + self.noise(draw)
        return keep_top(predicted.vocabulary.logits(action), self.mode.top_k)

    def mean(self, predicted: Predictions) -> torch.Tensor:
        return predicted.hidden_ND.float()

    def action(self, record: Record, at: Place) -> torch.Tensor:
        assert isinstance(record, HiddenRecord), "the rollout recorded noise on the hidden state"
        return record.action_NTD[at]

    def path(
        self, predicted: Predictions, record: Record, at: Place, mean_MD: torch.Tensor | None = None
    ) -> torch.Tensor:
        action = super().path(predicted, record, at, mean_MD)
        kept_MV = keep_top(predicted.vocabulary.logits(action), self.mode.top_k)
        return mix(kept_MV, predicted.vocabulary.embedding_VD, self.mode.temperature)

    def shadow(self, predicted: Predictions, action_MD: torch.Tensor) -> torch.Tensor:
        return predicted.vocabulary.logits(action_MD.detach()).detach().argmax(-1)

    def new_record(self, steps: int, embedding_VD: torch.Tensor, draws: Draws) -> Record:
        if self.draw_kind == "none":
            return super().new_record(steps, embedding_VD, draws)
        count, width = len(draws.seeds), embedding_VD.shape[1]
        action_NTD = torch.zeros(count, steps, width, device=embedding_VD.device)
        return HiddenRecord(*self.empty(count, steps, embedding_VD, width), action_NTD)


class LogitNoise(SoftTokens):
    """Noise on the logits: a = z + sigma eps, x = softmax(a / tau) E; log pi = -|a - z|^2 / (2 sigma^2).

    The noise is as wide as the vocabulary: it is not recorded but drawn again. The gradient of the log-density is
    (eps / sigma) . dz over the kept tokens.
    """

    draw_block = 1

    def draw_width(self, embedding_VD: torch.Tensor) -> int:
        return embedding_VD.shape[0]

    def step(self, predicted: Predictions, draw: torch.Tensor | None) -> CotStep:
        if draw is None:
            return super().step(predicted, draw)
        vocabulary = predicted.vocabulary
        mixture, ids, near_tie = self.mixture(self.mixed_logits(predicted, draw), vocabulary)
        seen = predicted.logits_NV[:, : vocabulary.embedding.shape[1]]
        return CotStep(mixture.to(vocabulary.dtype), ids, near_tie, seen)

    def mixed_logits(self, predicted: Predictions, draw: torch.Tensor | None) -> torch.Tensor:
        kept_NV = super().mixed_logits(predicted, None)
        return kept_NV if draw is None else self.with_noise(kept_NV, draw)

    def with_noise(self, kept_NV: torch.Tensor, draw_NV: torch.Tensor) -> torch.Tensor:
        """Returns the action that these logits make; those at -inf stay there."""
        return kept_NV + self.noise_std * draw_NV

    def logit_log_density(self, logits_NV: torch.Tensor, draw_NV: torch.Tensor) -> torch.Tensor:
        """Returns the log-density of the action that these logits and draws make, shape (N,)."""
        kept_NV = keep_top(logits_NV, self.mode.top_k)
        noise_NV = (self.noise_std * draw_NV).masked_fill(torch.isinf(kept_NV), 0.0)
        return gaussian_log_density(logits_NV.detach() + noise_NV, logits_NV, self.noise_std)

    def draw_size(self, draw_NV: torch.Tensor) -> torch.Tensor:
        """Returns the size of the noise that is made of these draws: 1 on average."""
        return draw_NV.square()

    def gap_unit(self) -> float:
        """Returns the unit of the gap between recorded and recomputed logits."""
        return self.noise_std

    @staticmethod
    def draws_again(record: Record | None, at: Place) -> torch.Tensor:
        """Returns the draws of recorded steps, shape (M, V)."""
        assert isinstance(record, LogitRecord), "the rollout recorded noise on the logits"
        rows, steps = at
        assert isinstance(rows, np.ndarray) and isinstance(steps, np.ndarray), "rows and steps of a tile"
        return record.draws.again(rows, steps)

    def path(
        self, predicted: Predictions, record: Record, at: Place, mean_MD: torch.Tensor | None = None
    ) -> torch.Tensor:
        kept_MV = self.with_noise(keep_top(predicted.logits_NV, self.mode.top_k), self.draws_again(record, at))
        return mix(kept_MV, predicted.vocabulary.embedding_VD, self.mode.temperature)

    def score(self, predicted: Predictions, ids_M: torch.Tensor, record: Record | None, at: Place) -> Scores:
        draw_MV, logits_MV = self.draws_again(record, at), predicted.logits_NV.detach()
        assert record is not None, "the rollout was recorded"
        mean = logits_MV[:, : record.mean_NTD.shape[2]]
        return Scores(
            self.logit_log_density(predicted.logits_NV, draw_MV),
            None,
            largest_gap(mean, record, at) / self.gap_unit(),
            self.draw_size(draw_MV).mean(-1),
            self.with_noise(keep_top(logits_MV, self.mode.top_k), draw_MV).argmax(-1),
        )

    def kl(self, own: Predictions, base: Predictions, mean_MD: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError("the configuration and the dry check refuse a KL term beside noise on the logits")

    def new_record(self, steps: int, embedding_VD: torch.Tensor, draws: Draws) -> Record:
        if self.draw_kind == "none":
            return super().new_record(steps, embedding_VD, draws)
        kept_logits = min(embedding_VD.shape)  # D of them tell whether the pass sees the rollout's
        return LogitRecord(*self.empty(len(draws.seeds), steps, embedding_VD, kept_logits), draws)


class GumbelNoise(LogitNoise):
    """Gumbel noise on the log-probabilities: y = l + g, x = softmax(y / tau) E; log pi = sum_i -g_i - exp(-g_i).

    The gradient of the log-density is sum_i (1 - exp(-g_i)) dl_i over the kept tokens.
    """

    @property
    def draw_kind(self) -> DrawKind:
        return "uniform" if self.mode.noise == "gumbel" else "none"

    def with_noise(self, kept_NV: torch.Tensor, draw_NV: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(kept_NV, -1) + gumbel(draw_NV)

    def logit_log_density(self, logits_NV: torch.Tensor, draw_NV: torch.Tensor) -> torch.Tensor:
        mean_NV = torch.log_softmax(keep_top(logits_NV, self.mode.top_k), -1)
        return gumbel_log_density(mean_NV.detach() + gumbel(draw_NV), mean_NV)

    def draw_size(self, draw_NV: torch.Tensor) -> torch.Tensor:
        return torch.exp(-gumbel(draw_NV))

    def gap_unit(self) -> float:
        return 1.0


MODES: dict[str, type[CotTokens]] = {
    "hard": HardTokens,
    "mixture-of-inputs": MixtureOfInputs,
    "embedding": SoftTokens,
    "hidden": HiddenNoise,
    "logits": LogitNoise,
    "gumbel": GumbelNoise,
}
"""The class of each kind of mode (`TokenMode.kind`)."""


def class_of(mode: TokenMode) -> type[CotTokens]:
    """Returns the class that makes a mode's tokens, built in or a user's."""
    if isinstance(mode.tokens, Reference):
        return load_class(mode.tokens, CotTokens)  # type: ignore[type-abstract]
    return MODES[mode.kind]


def bind(mode: TokenMode, rms: Mapping[str, float]) -> CotTokens:
    """Returns the mode with its noise, in units of the base model's RMS by place (`TokenMode.noise_place`)."""
    place = mode.noise_place
    return class_of(mode)(mode, 0.0 if place is None else mode.noise_scale * rms[place])


def greedy(mode: TokenMode) -> TokenMode:
    """Returns the mode of greedy validation: what is left of a mode without its noise."""
    return mode.model_copy(update=class_of(mode).without_noise)


@torch.no_grad()
def largest_gap(mean_MD: torch.Tensor, record: Record, at: Place) -> float:
    """Returns the largest difference of a coordinate of the means from the recorded ones."""
    return float((mean_MD - record.mean_NTD[at]).abs().max())
