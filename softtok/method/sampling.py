"""Choosing tokens from logits, and mixing rows of E: what every token mode is made of.

Everything vocabulary-sized is fp32. A choice also tells where it was a near-tie: two passes over the same trajectory
differ by rounding, which can then fall either way.

Shapes: N rows, D width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from softtok.method.vocabulary_products import Summed, look_up, times

# Below this temperature the mixture is nearly always one row of E: looking for the exceptions beats the product.
SINGLE_ROW_TEMPERATURE = 0.02
MOST_TIED = 16  # tokens that count in one fuzzy mixture, up to which their rows of E are gathered
# Two fp32 passes over the same trajectory differ by about 1e-6 of a logit; closer calls than this may fall either way.
NEAR_TIE_GAP = 1e-4
RUN = 64  # block size of the two-level argmax and CDF


def tempered(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns logits / temperature; at temperature 1, the usual case, it returns the logits themselves."""
    return logits_NV if temperature == 1 else logits_NV / temperature


def keep_top(logits_NV: torch.Tensor, k: int | None) -> torch.Tensor:
    """Returns the logits with all but the k largest of each row set to -inf.

    The gradient treats the choice of these k as constant: the estimate does not see a token enter or leave.
    """
    if k is None or k >= logits_NV.shape[1]:
        return logits_NV
    return logits_NV.masked_fill(logits_NV < logits_NV.detach().topk(k).values[:, -1:], -torch.inf)


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


def sample_ids(
    logits_NV: torch.Tensor, temperature: float, u_N: torch.Tensor | None, p_NV: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns token ids (N,) from softmax(logits / temperature), or the argmax at temperature 0, and near-ties (N,).

    Ids are drawn by inverse CDF at u_N, which needs one number per token, not V, and no sorting. The CDF is computed in
    two levels, over runs of the vocabulary and then over the entries of one run, because a cumulative sum over all
    entries takes several times as long as a sum. `p_NV` is the softmax at temperature 1, if it is known already.
    """
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
    """Returns which of K intervals a number lies in, where it starts and where it ends, all of shape (N, 1).

    Intervals are closed below and open above. Numbers at the end of the CDF or, by rounding, beyond it are put into the
    last interval that is not empty. So ids are valid even if p is NaN, which the caller of `rollout` has to detect.
    """
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
    """Returns h = softmax(logits / temperature) E, shape (N, D), in fp32, differentiable in logits and E.

    `p_NV`, the softmax at temperature 1, is for passes without gradients. At the paper's temperature 0.5, the weights
    are its squares divided by their sum, which costs less than another softmax.

    At fuzzy temperatures the mixture is the argmax's row, except for near-ties. If the argmax leads by more than
    temperature * (30 + ln V), all other weights together are below 1e-13, and the row is looked up instead of computed.
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


def log_prob(logits_NV: torch.Tensor, ids_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns log p_i of the sampled tokens, shape (N,)."""
    return -F.cross_entropy(tempered(logits_NV, temperature), ids_N, reduction="none")


def entropy(logits_NV: torch.Tensor) -> torch.Tensor:
    """Returns the entropy (nats) of the next-token distribution at temperature 1, shape (N,)."""
    log_p = torch.log_softmax(logits_NV, -1)
    return -(log_p.exp() * log_p).sum(-1)


def entropy_of(p_NV: torch.Tensor, logits_NV: torch.Tensor) -> torch.Tensor:
    """Returns `entropy`, given p = softmax(logits), without a graph; overwrites the logits.

    A second matrix of their size would take longer than the arithmetic. The entropy is
    log sum_i e^(z_i - z_max) - sum_i p_i (z_i - z_max). Its terms are not negative and do not cancel; the first sum is
    1 / p_max.
    """
    weighted_NV = logits_NV.sub_(logits_NV.amax(-1, keepdim=True)).mul_(p_NV)
    return -weighted_NV.sum(-1) - p_NV.amax(-1).log()
