"""The token modes: how one CoT step is made, and how its log-probability is recomputed.

All of them are settings of one family. With logits z, p = softmax(z / tau) and eps ~ N(0, I):
    hard             x = E[i], i ~ p                           log pi = log p_i
    soft, fuzzy      x = p E + sigma eps                       log pi = -|x - p E|^2 / (2 sigma^2)
    noise on hidden  x = softmax(head a / tau) E               log pi = -|a - s|^2 / (2 sigma^2), a = s + sigma eps
    noise on logits  x = softmax(a / tau) E                    log pi = -|a - z|^2 / (2 sigma^2), a = z + sigma eps
    Gumbel           x = softmax(y / tau) E                    log pi = sum_i -g_i - exp(-g_i), y = l + g
up to constants, where s is the final hidden state and l = log softmax(z). With `top_k`, all but the k largest z (of
head a, for noise on hidden) are at -inf first. What is fed, x, is a constant in training: where the noise lies before
the mixture, head and E turn the action into x as if they were frozen copies of the present ones. Everything
vocabulary-sized is fp32.

A CoT's text is that of its ids: the sampled tokens, or the *shadow*, the heaviest token of the mixture that is fed.

Shapes: N rows, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from softtok.config.settings import TokenMode
from softtok.method.vocabulary_products import Summed, look_up, times
from softtok.models.language_model import LanguageModel, logits_fp32, prefill

# Below this temperature the mixture is nearly always one row of E: looking for the exceptions beats the product.
SINGLE_ROW_TEMPERATURE = 0.02
MOST_TIED = 16  # tokens that count in one fuzzy mixture, up to which their rows of E are gathered
# Two fp32 passes over the same trajectory differ by about 1e-6 of a logit; closer calls than this may fall either way.
NEAR_TIE_GAP = 1e-4
# The smallest uniform that Gumbel noise is made of: half a step of a 24-bit generator, in the place of its 0.
SMALLEST_UNIFORM = 2.0**-25
RUN = 64  # vocabulary entries of which the maximum, or the sum, is taken first
RMS_PROMPTS = 64
RMS_PROMPTS_AT_ONCE = 8


def embedding_rms(embedding_VD: torch.Tensor) -> float:
    """RMS(E) over all entries; sigma = gamma * RMS(E), measured once on the base model."""
    return embedding_VD.detach().float().square().mean().sqrt().item()


@torch.no_grad()
def state_rms(lm: LanguageModel, prompts: list[list[int]]) -> dict[str, float]:
    """RMS of the final hidden states and of all logits where the first CoT token is made, behind the first
    RMS_PROMPTS of these prompts. Which prompts they are is the caller's choice, once, with the base model."""
    squares = {"hidden": 0.0, "logits": 0.0}
    prompts = prompts[:RMS_PROMPTS]
    for start in range(0, len(prompts), RMS_PROMPTS_AT_ONCE):
        last_BD = prefill(lm, prompts[start : start + RMS_PROMPTS_AT_ONCE])[0]
        squares["hidden"] += last_BD.float().square().mean(-1).sum().item()
        squares["logits"] += logits_fp32(last_BD, lm.head_VD).square().mean(-1).sum().item()
    return {name: math.sqrt(square / len(prompts)) for name, square in squares.items()}


@dataclass(frozen=True)
class CotStep:
    """One CoT step of N rows."""

    x_ND: torch.Tensor  # what is fed, in the dtype of E
    ids_N: torch.Tensor  # the token (hard) or its shadow (soft)
    mixture_ND: torch.Tensor | None  # the action's mean in fp32 (soft): h = p E; the hidden state; D of the logits
    near_tie_N: torch.Tensor  # true where rounding could have changed ids_N
    action_ND: torch.Tensor | None = None  # s + sigma eps in fp32 (noise on the hidden state)


@dataclass(frozen=True)
class CotTokens:
    """A token mode bound to a model's E and noise: makes steps from logits and draws."""

    mode: TokenMode
    embedding_VD: torch.Tensor
    noise_std: float  # sigma; 0 for hard tokens, for soft tokens without noise and for Gumbel noise
    head_VD: torch.Tensor | None = None  # for noise on the hidden state

    @property
    def soft(self) -> bool:
        return self.mode.tokens == "soft"

    @property
    def mixes(self) -> bool:
        """Whether what is fed is a mixture of E's rows."""
        return self.soft or self.mode.inputs_beta is not None

    @property
    def gumbel(self) -> bool:
        return self.mode.noise == "gumbel"

    @property
    def noise_on_hidden(self) -> bool:
        return self.soft and self.mode.noise_at == "hidden" and self.draws != "none"

    @property
    def noise_on_logits(self) -> bool:
        """Whether the action is as wide as the vocabulary: its noise is not recorded but drawn again."""
        return self.soft and self.mode.noise_at == "logits" and self.draws != "none"

    @property
    def draws(self) -> str:
        """What a step's draws are: "normal", "uniform" or "none" (deterministic)."""
        if self.soft:
            return "uniform" if self.gumbel else "normal" if self.noise_std > 0 else "none"
        return "uniform" if self.mode.temperature > 0 else "none"

    @property
    def draw_width(self) -> int:
        """How many of them a step consumes per row: 1 (hard), D or V."""
        vocabulary, width = self.embedding_VD.shape
        return 1 if not self.soft else vocabulary if self.noise_on_logits else width

    def step(
        self,
        logits_NV: torch.Tensor,
        draw: torch.Tensor | None,
        hidden_ND: torch.Tensor | None = None,
        p_NV: torch.Tensor | None = None,
    ) -> CotStep:
        """The next CoT token of each row; `draw` is eps (N, D or V) for noisy soft tokens, u in [0, 1) for sampled hard
        ones (N,) and for Gumbel noise (N, V). `hidden_ND`, what the logits were made of, is for noise on it; `p_NV` is
        their softmax, where it is known (and no gradient is wanted)."""
        if not self.soft:
            ids, near_tie = sample_ids(logits_NV, self.mode.temperature, draw, p_NV)
            return CotStep(self._inputs(logits_NV, ids), ids, None, near_tie)
        kept_NV, mean, action, noise_after = keep_top(logits_NV, self.mode.top_k), None, None, None
        if draw is None or self.mode.noise_at == "embedding":
            noise_after = draw
        elif self.noise_on_logits:
            mean = logits_NV[:, : self.embedding_VD.shape[1]]
            kept_NV = self.logit_action(kept_NV, draw)
        else:
            assert hidden_ND is not None and self.head_VD is not None, (
                "noise on the hidden state needs it, and the head"
            )
            mean = hidden_ND.float()
            action = mean + self.noise_std * draw
            kept_NV = keep_top(logits_fp32(action, self.head_VD), self.mode.top_k)
        best, gap = top_gap(kept_NV)
        p_NV = p_NV if kept_NV is logits_NV else None
        mixture = mix(kept_NV, self.embedding_VD, self.mode.temperature, best, gap, p_NV)
        x = mixture if noise_after is None else mixture + self.noise_std * noise_after
        return CotStep(
            x.to(self.embedding_VD.dtype), best, mixture if mean is None else mean, gap < NEAR_TIE_GAP, action
        )

    def _inputs(self, logits_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
        """What hard tokens are fed as: their rows of E, or their Mixture of Inputs, with weights (H p_i + (beta + 1 -
        H) [i is the token]) / (beta + 1), where H is the entropy of p over ln V."""
        rows, beta = F.embedding(ids_N, self.embedding_VD), self.mode.inputs_beta
        if beta is None:
            return rows
        share_N1 = entropy(logits_NV / self.mode.temperature)[:, None] / (math.log(logits_NV.shape[1]) * (beta + 1))
        mixture = mix(logits_NV, self.embedding_VD, self.mode.temperature)
        return (share_N1 * mixture + (1 - share_N1) * rows.float()).to(rows.dtype)

    def logit_action(self, kept_NV: torch.Tensor, draw_NV: torch.Tensor) -> torch.Tensor:
        """z + sigma eps, or l + g, of logits where some may be at -inf (and stay there)."""
        if self.gumbel:
            return torch.log_softmax(kept_NV, -1) + gumbel(draw_NV)
        return kept_NV + self.noise_std * draw_NV

    def logit_log_density(self, logits_NV: torch.Tensor, draw_NV: torch.Tensor) -> torch.Tensor:
        """log density of the action that these logits and draws make, shape (N,); the action is a constant. Its
        gradient is (eps / sigma) . dz, or sum_i (1 - exp(-g_i)) dl_i, over the kept tokens."""
        kept_NV = keep_top(logits_NV, self.mode.top_k)
        if self.gumbel:
            mean_NV = torch.log_softmax(kept_NV, -1)
            return gumbel_log_density(mean_NV.detach() + gumbel(draw_NV), mean_NV)
        noise_NV = (self.noise_std * draw_NV).masked_fill(torch.isinf(kept_NV), 0.0)
        return soft_log_density(logits_NV.detach() + noise_NV, logits_NV, self.noise_std)

    def nearest_ids(self, x_ND: torch.Tensor) -> torch.Tensor:
        """The token whose embedding is nearest to x: a stop that depends on the action, not on the states that made it.
        (The stop at the shadow token does depend on them, and the estimate does not see it.) It reads the present E:
        what a step on E does to the regions of the tokens is no part of the gradient, as if the stop had a frozen copy
        of E."""
        embedding = self.embedding_VD.float()
        return (logits_fp32(x_ND, embedding) - embedding.square().sum(1) / 2).argmax(-1)


def bind(mode: TokenMode, lm: LanguageModel, rms: Mapping[str, float]) -> CotTokens:
    """The mode for this model; sigma in units of the base model's RMS, by place (`TokenMode.noise_at`)."""
    noise_std = mode.noise_scale * rms[mode.noise_at] if mode.noise_scale > 0 else 0.0
    return CotTokens(mode, lm.embedding_VD.detach(), noise_std, lm.head_VD.detach())


def keep_top(logits_NV: torch.Tensor, k: int | None) -> torch.Tensor:
    """The logits, all but the k largest of a row at -inf. Which they are is no part of the gradient: the estimate does
    not see a token enter or leave."""
    if k is None or k >= logits_NV.shape[1]:
        return logits_NV
    return logits_NV.masked_fill(logits_NV < logits_NV.detach().topk(k).values[:, -1:], -torch.inf)


def gumbel(uniform: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise from uniforms in [0, 1)."""
    return -(-uniform.clamp(min=SMALLEST_UNIFORM).log()).log()


def top_gap(logits_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The argmax and its lead over the runner-up, both of shape (N,).

    The two largest are in the two runs of RUN entries whose maxima are the largest: `topk` need not look at the rest,
    over which it takes several times as long as a maximum.
    """
    candidates_NC = logits_NV.detach()
    vocabulary, runs_N2 = candidates_NC.shape[1], None
    if vocabulary % RUN == 0 and vocabulary > 2 * RUN:
        runs_NQR = candidates_NC.unflatten(1, (-1, RUN))
        runs_N2 = runs_NQR.amax(-1).topk(2).indices
        candidates_NC = runs_NQR.gather(1, runs_N2.unsqueeze(-1).expand(-1, -1, RUN)).flatten(1)
    top_N2, place_N2 = candidates_NC.topk(2)
    best_N1 = place_N2[:, :1]
    if runs_N2 is not None:
        best_N1 = runs_N2.gather(1, best_N1 // RUN) * RUN + best_N1 % RUN
    return best_N1.squeeze(1), top_N2[:, 0] - top_N2[:, 1]


def tempered(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """logits / temperature; at 1, the usual case, without a pass over them."""
    return logits_NV if temperature == 1 else logits_NV / temperature


def sample_ids(
    logits_NV: torch.Tensor, temperature: float, u_N: torch.Tensor | None, p_NV: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (N,) from softmax(logits / temperature) by inverse CDF at u_N, or the argmax at temperature 0; and
    where the choice was a near-tie. Inverse CDF needs one number per token, not V, and no sorting; it is over runs of
    the vocabulary first and then over the entries of one, for a cumulative sum over all takes several times as long as
    a sum. `p_NV`, the softmax at temperature 1, saves making it again."""
    if temperature == 0 or u_N is None:
        best, gap = top_gap(logits_NV)
        return best, gap < NEAR_TIE_GAP
    if p_NV is None or temperature != 1:
        p_NV = torch.softmax(tempered(logits_NV, temperature), -1)
    vocabulary = p_NV.shape[1]
    run = RUN if vocabulary % RUN == 0 else vocabulary
    p_NQR = p_NV.unflatten(1, (-1, run))
    cdf_NQ = p_NQR.sum(-1).cumsum(-1)
    at_N1 = u_N.unsqueeze(1) * cdf_NQ[:, -1:]
    run_N1, before_N1, _ = _interval(cdf_NQ, at_N1)
    cdf_NR = p_NQR.gather(1, run_N1.unsqueeze(-1).expand(-1, -1, run)).squeeze(1).cumsum(-1)
    at_N1 = at_N1 - before_N1
    place_N1, from_N1, to_N1 = _interval(cdf_NR, at_N1)
    margin_N1 = torch.minimum(to_N1 - at_N1, at_N1 - from_N1)
    return (run_N1 * run + place_N1).squeeze(1), margin_N1.squeeze(1) < NEAR_TIE_GAP / 10


def _interval(cdf_NK: torch.Tensor, at_N1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In which of K intervals, closed below and open above, a number lies, where that one starts and where it ends, all
    (N, 1). Numbers at the end or, by rounding, behind it are in the last that is not empty; so that ids are some where
    p is not a number (`rollout` leaves that to its caller to see)."""
    end_N1 = cdf_NK[:, -1:]
    at_N1 = torch.minimum(at_N1, torch.nextafter(end_N1, torch.zeros_like(end_N1)))
    place_N1 = torch.searchsorted(cdf_NK, at_N1, right=True).clamp(max=cdf_NK.shape[1] - 1)
    return place_N1, cdf_NK.gather(1, (place_N1 - 1).clamp(min=0)) * (place_N1 > 0), cdf_NK.gather(1, place_N1)


def mix(
    logits_NV: torch.Tensor,
    embedding_VD: torch.Tensor | Summed,
    temperature: float,
    best_N: torch.Tensor | None = None,
    gap_N: torch.Tensor | None = None,
    p_NV: torch.Tensor | None = None,
) -> torch.Tensor:
    """h = softmax(logits / temperature) E, shape (N, D), fp32, differentiable in logits and E. `p_NV`, the softmax at
    temperature 1, is for passes without gradients: at 0.5, the paper's temperature, the weights are its squares over
    their sum, which costs less than a softmax of their own.

    At fuzzy temperatures the mixture is the argmax's row but for near-ties: where the argmax leads by more than
    temperature * (30 + ln V), the others weigh less than 1e-13 together, and the row is looked up instead of computed.
    """
    if temperature == 0.5 and p_NV is not None:
        squares_NV = p_NV.square()
        return times(squares_NV, _fp32(embedding_VD)) / squares_NV.sum(-1, keepdim=True)
    if temperature >= SINGLE_ROW_TEMPERATURE:
        return times(torch.softmax(logits_NV / temperature, -1), _fp32(embedding_VD))
    if best_N is None or gap_N is None:
        best_N, gap_N = top_gap(logits_NV)
    negligible = temperature * (30 + math.log(logits_NV.shape[1]))
    mixed = (gap_N <= negligible).nonzero().squeeze(1)
    rows = look_up(best_N, embedding_VD).float()
    if len(mixed) == 0:
        return rows
    # The lead is taken before the division: logits / 1e-4 is rounded to a few thousandths of a nat.
    lead = logits_NV[mixed] - logits_NV[mixed].amax(-1, keepdim=True)
    if not torch.is_grad_enabled() and not isinstance(embedding_VD, Summed):
        tied = int((lead >= -negligible).sum(-1).max())
        if tied <= MOST_TIED:  # a handful of rows of E, in the place of a product with all of it
            top, ids = lead.topk(tied)
            weights = torch.softmax(top / temperature, -1)
            return rows.index_copy(0, mixed, (weights.unsqueeze(1) @ embedding_VD[ids].float()).squeeze(1))
    return rows.index_copy(0, mixed, times(torch.softmax(lead / temperature, -1), _fp32(embedding_VD)))


def _fp32(embedding_VD: torch.Tensor | Summed) -> torch.Tensor | Summed:
    return embedding_VD if isinstance(embedding_VD, Summed) else embedding_VD.float()


def hard_log_prob(logits_NV: torch.Tensor, ids_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """log p_i of the sampled tokens, shape (N,)."""
    return -F.cross_entropy(tempered(logits_NV, temperature), ids_N, reduction="none")


def soft_log_density(x_ND: torch.Tensor, mixture_ND: torch.Tensor, noise_std: float) -> torch.Tensor:
    """-|x - h|^2 / (2 sigma^2), shape (N,): the Gaussian log-density of x up to a constant. x is the action: no
    gradient through it."""
    return -(x_ND.detach().float() - mixture_ND).square().sum(-1) / (2 * noise_std**2)


def gumbel_log_density(action_NV: torch.Tensor, mean_NV: torch.Tensor) -> torch.Tensor:
    """sum_i -(y_i - l_i) - exp(-(y_i - l_i)), shape (N,), over the tokens whose l is not -inf: the log density of
    Gumbel variables y around l. y is the action: no gradient through it."""
    dropped_NV = torch.isinf(mean_NV)
    excess_NV = action_NV.detach().masked_fill(dropped_NV, 0.0) - mean_NV.masked_fill(dropped_NV, 0.0)
    return -(excess_NV + torch.exp(-excess_NV)).masked_fill(dropped_NV, 0.0).sum(-1)


def entropy(logits_NV: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the next-token distribution at temperature 1, shape (N,)."""
    log_p = torch.log_softmax(logits_NV, -1)
    return -(log_p.exp() * log_p).sum(-1)


def entropy_of(p_NV: torch.Tensor, logits_NV: torch.Tensor) -> torch.Tensor:
    """`entropy` where p = softmax(logits) is known, without a graph; overwrites the logits, for a second matrix of
    their size takes longer than the arithmetic. It is log sum_i e^(z_i - z_max) - sum_i p_i (z_i - z_max), whose terms
    are not negative and do not cancel; the first sum is 1 / p_max."""
    weighted_NV = logits_NV.sub_(logits_NV.amax(-1, keepdim=True)).mul_(p_NV)
    return -weighted_NV.sum(-1) - p_NV.amax(-1).log()
