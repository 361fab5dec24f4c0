"""The adjoint of soft thoughts: what the loss gains by a change of each x, without back-propagation through time.

A soft step is reparametrised noise, x_t = F_t(x_<t, eps_t; theta), and the answer's log-probability is differentiable
in every x_t. With L the loss as a function of the recorded x and of theta, g = dL/dx, and J the Jacobian of all F_t
by all x (strictly lower triangular in time), the total derivative along a trajectory whose eps stay is

    dL/dtheta at fixed x  +  sum_t lambda_t^T dF_t/dtheta,     lambda = g + J^T lambda.

One teacher-forced pass with the recorded x as leaves holds g and J: the iteration lambda <- g + J^T lambda is one
vector-Jacobian product over that pass, for all steps at once. It starts at g and is exact after T - 1 products, since
J is nilpotent; each product adds the paths over one more step. (The iteration is Jacobi's method for a triangular
system, and the formula is the adjoint method for recurrences.)

The estimate is without bias where nothing jumps: fixed CoT lengths, and no top_k. A stop that depends on x or theta,
and a token that enters the k largest, are jumps that it does not see.

Shapes: n rows of a micro-batch, L completion positions, T CoT steps, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from softtok.method.sampling import entropy
from softtok.method.terms import MicroBatch, Tile, TiledTerms
from softtok.method.token_modes import MODES
from softtok.method.vocabulary_products import Vocabulary
from softtok.models.matmul import constant_weights


class Adjoint(NamedTuple):
    """The adjoint lambda of some rows after K products, and g, where it began; both (n, T, D)."""

    lambda_nTD: torch.Tensor
    start_nTD: torch.Tensor

    def by_row(self, fixed_nTD: torch.Tensor) -> torch.Tensor:
        """Returns |lambda| / |g| and |f - lambda| / |f| of the rows with a gradient, f = g + J^T lambda; (rows, 2).

        A large |lambda| / |g| says that few steps carry the whole gradient.
        """
        parts = (self.lambda_nTD, self.start_nTD, fixed_nTD - self.lambda_nTD, fixed_nTD)
        lambda_n, start_n, missing_n, fixed_n = (part.float().flatten(1).norm(dim=1) for part in parts)
        return torch.stack([lambda_n / start_n, missing_n / fixed_n], 1)[start_n * fixed_n > 0]


def solve(
    states_nLD: torch.Tensor,
    x_nTD: torch.Tensor,
    upstream_nLD: torch.Tensor,
    through: Callable[[torch.Tensor], torch.Tensor],
    products: int,
) -> Adjoint:
    """Returns the adjoint after so many products; the graph of the states stays, and no parameter gets a gradient.

    `upstream_nLD` is dL/dstates, so that g comes from it alone. `through` returns d<lambda, F>/dstates, (n, L, D).
    """

    def to_x(upstream_nLD: torch.Tensor) -> torch.Tensor:
        with constant_weights():
            return torch.autograd.grad(states_nLD, x_nTD, upstream_nLD, retain_graph=True)[0]

    start_nTD = lambda_nTD = to_x(upstream_nLD)
    for _ in range(products):
        lambda_nTD = to_x(upstream_nLD + through(lambda_nTD))
    return Adjoint(lambda_nTD, start_nTD)


class PathwiseTerms(TiledTerms):
    """The terms of the loss with the answer's gradient through x in the place of the CoT's scores.

    The direct part, at fixed x, is the term `answer`; an entropy bonus belongs to it. The term `cot` is <lambda, F>.
    """

    def back_propagate(self, terms: tuple[str, ...], micro: MicroBatch) -> None:
        assert micro.x_nTD is not None, "soft tokens are recorded"
        learnt = self.own if "answer" in terms else self.own.frozen()
        upstream_nLD = direct_nLD = self._direct(learnt, micro)
        adjoint = None
        if "cot" in terms:
            longest = int(self.completions.cot_NL[micro.rows].sum(1).max())
            products = min(self.loss.settings.adjoint_iterations, longest - 1)
            iterated = partial(self._through, self._constants(), micro)
            adjoint = solve(micro.states_nLD, micro.x_nTD, direct_nLD, iterated, products)
            upstream_nLD = self._through(self.own, micro, adjoint.lambda_nTD)
            if "answer" in terms:
                upstream_nLD += direct_nLD
        micro.states_nLD.backward(upstream_nLD)
        if adjoint is not None and "answer" in terms:
            self._note(adjoint, micro.x_nTD)

    def _constants(self) -> Vocabulary:
        """Returns head and E of the iterations, which learn nothing and need no value of F, but its gradient.

        A built-in F adds a constant to a mixture at most; a user's may do anything with its value.
        """
        built_in = type(self.tokens) in MODES.values()
        return self.own.slope_only() if built_in else self.own.frozen()

    def _direct(self, vocabulary: Vocabulary, micro: MicroBatch) -> torch.Tensor:
        """Returns the gradient of L by the states, x fixed; `vocabulary` is what learns."""
        direct_nLD = self._upstream("answer", micro, partial(self._answer_loss, vocabulary))
        if self.loss.settings.entropy_bonus > 0:
            direct_nLD += self._upstream("cot", micro, partial(self._bonus_loss, vocabulary))
        return direct_nLD

    def _through(self, vocabulary: Vocabulary, micro: MicroBatch, lambda_nTD: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of <lambda, F> by the states."""
        return self._upstream("cot", micro, partial(self._path_loss, vocabulary, lambda_nTD))

    def _answer_loss(self, vocabulary: Vocabulary, tile: Tile) -> torch.Tensor:
        scores = self._score("answer", self._predict(vocabulary, tile.hidden_MD), tile.at)
        return self._policy_gradient(scores.log_prob_M, tile.at)

    def _bonus_loss(self, vocabulary: Vocabulary, tile: Tile) -> torch.Tensor:
        shares_M = self.shares_N[self._on_device(tile.at[0])]
        entropy_M = entropy(self._predict(vocabulary, tile.hidden_MD).logits_NV)
        return -self.loss.settings.entropy_bonus * (shares_M * entropy_M).sum()

    def _path_loss(self, vocabulary: Vocabulary, lambda_nTD: torch.Tensor, tile: Tile) -> torch.Tensor:
        """Returns <lambda, F>; where head and E learn, which is once, the pass notes how well F is computed again."""
        predicted, record = self._predict(vocabulary, tile.hidden_MD), self.experience.rollout.record
        assert record is not None, "soft tokens are recorded"
        mean_MD = self._score("cot", predicted, tile.at).mean_MD if vocabulary is self.own else None
        x_MD = self.tokens.path(predicted, record, tile.at, mean_MD)
        return (lambda_nTD[tile.on_device].float() * x_MD).sum()

    def _note(self, adjoint: Adjoint, x_nTD: torch.Tensor) -> None:
        """Notes the residual of the adjoint: the last backward pass has left g + J^T lambda at x."""
        assert x_nTD.grad is not None, "the backward pass went through x"
        fixed_nTD, seen = x_nTD.grad.float(), self.statistics
        seen.adjoint += fixed_nTD.square().sum().item()
        seen.residual += (fixed_nTD - adjoint.lambda_nTD.float()).square().sum().item()
        rows_n2 = adjoint.by_row(fixed_nTD).cpu()
        seen.adjoint_rows.append(rows_n2)
        seen.growth = max([seen.growth, *rows_n2[:, 0].tolist()])
