"""Bias and variance of an estimator of a gradient, from inner products alone.

The rollouts fall into two independent halves. One gives the reference, whose mean is r; the other the estimator, whose
mean is m and whose gradient of one rollout has the variance V, the trace of its covariance. With <a, b> for inner
products of means over rollouts:

    |m|^2, |r|^2    of products of different rollouts only: that of a gradient with itself holds V
    |m - r|^2       |m|^2 + |r|^2 - 2 <m, r>, which has no sampling noise on average, and so can be below 0
    cosine of the mean of n rollouts = <m, r> / (|r| sqrt(|m|^2 + V / n))

Intervals are 95 % and by the jackknife: each half is cut into blocks, and everything is computed again without each
block. Only inner products of sums over blocks are needed for all this, so no gradient is kept.

Shapes: A blocks of the reference, B blocks and n rollouts of the estimator, Q numbers of rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

WANTED_COSINE = 0.5
LEVEL = 0.95  # of intervals
LEAST = 1e-12  # relative variance that is told of gradients which are all the same
Interval = tuple[float, float]


@dataclass(frozen=True)
class Half:
    """The gradients of one half of the rollouts, as inner products by block."""

    counts_A: np.ndarray  # rollouts
    squares_A: np.ndarray  # sum of |g|^2
    products_AA: np.ndarray  # <sum of g, sum of g>

    def without(self, block: int) -> Half:
        """Returns the half without one of its blocks."""
        kept = np.arange(len(self.counts_A)) != block
        return Half(self.counts_A[kept], self.squares_A[kept], self.products_AA[np.ix_(kept, kept)])

    @property
    def count(self) -> int:
        """How many rollouts there are."""
        return int(self.counts_A.sum())

    @property
    def mean_square(self) -> float:
        """|mean|^2 without bias."""
        return float(self.products_AA.sum() - self.squares_A.sum()) / (self.count * (self.count - 1))

    @property
    def variance(self) -> float:
        """The trace of the covariance of one rollout's gradient, without bias."""
        return float(self.squares_A.sum() - self.products_AA.sum() / self.count) / (self.count - 1)


@dataclass(frozen=True)
class Comparison:
    """An estimator beside the reference; `dots_nA` are products of each of its gradients with the reference's sums."""

    reference: Half
    estimator: Half
    dots_nA: np.ndarray
    norms_n: np.ndarray  # |g|
    blocks_n: np.ndarray  # the block of each rollout

    def without_reference(self, block: int) -> Comparison:
        """Returns the comparison without a block of the reference."""
        kept = np.arange(self.dots_nA.shape[1]) != block
        return replace(self, reference=self.reference.without(block), dots_nA=self.dots_nA[:, kept])

    def without_estimator(self, block: int) -> Comparison:
        """Returns the comparison without a block of the estimator."""
        kept, names = self.blocks_n != block, np.delete(np.arange(len(self.estimator.counts_A)), block)
        blocks_n = np.searchsorted(names, self.blocks_n[kept])
        return Comparison(
            self.reference, self.estimator.without(block), self.dots_nA[kept], self.norms_n[kept], blocks_n
        )

    @property
    def along(self) -> float:
        """<m, r>."""
        return float(self.dots_nA.sum()) / (self.estimator.count * self.reference.count)

    @property
    def along_square(self) -> float:
        """<m, r>^2 without bias: of pairs of products that share no block."""
        cross_BA = np.zeros((len(self.estimator.counts_A), self.dots_nA.shape[1]))
        np.add.at(cross_BA, self.blocks_n, self.dots_nA)
        counts_BA = np.outer(self.estimator.counts_A, self.reference.counts_A)
        return _of_different(cross_BA) / _of_different(counts_BA)

    @property
    def projection_square(self) -> float:
        """The square of m's component along r, with the sign of the component."""
        return math.copysign(max(self.along_square, 0.0) / self.reference.mean_square, self.along)

    @property
    def mean_square(self) -> float:
        """|m|^2, which is no less than the square of its component along r, whatever the noise says."""
        return max(self.estimator.mean_square, abs(self.projection_square))

    def cosine_of(self, rollouts: float) -> float:
        """Returns the cosine of the mean of so many rollouts."""
        total = self.mean_square + self.estimator.variance / rollouts
        return math.copysign(math.sqrt(abs(self.projection_square) / total), self.along) if total > 0 else 0.0

    @property
    def single_cosine(self) -> float:
        """The cosine of one rollout's gradient, on average over rollouts that have a gradient."""
        some = self.norms_n > 0
        along_n = self.dots_nA[some].sum(1) / self.reference.count
        return float((along_n / self.norms_n[some]).mean()) / math.sqrt(self.reference.mean_square)

    @property
    def inverse_rollouts(self) -> float:
        """1 / n of the mean that has the wanted cosine; where it is not above 0, no n will do."""
        wanted = self.projection_square / WANTED_COSINE**2 - self.mean_square
        return wanted / max(self.estimator.variance, LEAST * self.reference.mean_square)

    @property
    def bias_square(self) -> float:
        """|m - r|^2 / |r|^2."""
        reference = self.reference.mean_square
        return (self.estimator.mean_square + reference - 2 * self.along) / reference

    @property
    def log_variance(self) -> float:
        """log(V / |r|^2), whose intervals end above V = 0."""
        return math.log(max(self.estimator.variance, LEAST * self.reference.mean_square) / self.reference.mean_square)

    @property
    def resolved(self) -> bool:
        """Whether |r| is above its noise, with every block and without any one of them."""
        blocks = range(len(self.reference.counts_A))
        return min(half.mean_square for half in (self.reference, *map(self.reference.without, blocks))) > 0

    def interval(self, quantity: Callable[[Comparison], float | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the interval of a quantity, or of several at once."""
        variance: np.ndarray | float = 0.0
        parts: list[list[Comparison]] = [
            [self.without_reference(block) for block in range(len(self.reference.counts_A))],
            [self.without_estimator(block) for block in range(len(self.estimator.counts_A))],
        ]
        for part in parts:
            values = np.array([quantity(one) for one in part])
            variance = variance + (len(part) - 1) * values.var(0)
        reach = stats.t.ppf((1 + LEVEL) / 2, min(map(len, parts)) - 1) * np.sqrt(variance)
        middle = np.asarray(quantity(self))
        return middle - reach, middle + reach

    def cosines(self, rollouts_Q: Sequence[float]) -> np.ndarray:
        """Returns the cosine of the mean of each of these numbers of rollouts, shape (Q,)."""
        return np.array([self.cosine_of(rollouts) for rollouts in rollouts_Q])


def _of_different(values_BA: np.ndarray) -> float:
    """Returns the sum of products of two entries that share neither row nor column."""
    rows, columns = values_BA.sum(1), values_BA.sum(0)
    return float(values_BA.sum() ** 2 - rows @ rows - columns @ columns + (values_BA**2).sum())


def described(comparison: Comparison, rollouts_Q: Sequence[float]) -> dict[str, object]:
    """Returns what is told of an estimator, as JSON: numbers, each with the lower and the upper end of its interval.

    `bias` and `variance` are relative to |r| and |r|^2, `rollouts` is None for never. All but the norm is None where
    the reference does not stand out of its noise.
    """
    told: dict[str, object] = {"norm": float(comparison.norms_n.mean())}
    if not comparison.resolved:
        return told | dict.fromkeys(("bias", "bias_square", "variance", "cosine", "rollouts", "curve"))
    bias_square = _told(comparison, lambda c: c.bias_square)
    inverse, low, high = _told(comparison, lambda c: c.inverse_rollouts)
    curve = (comparison.cosines(rollouts_Q), *comparison.interval(lambda c: c.cosines(rollouts_Q)))
    return told | {
        "bias": [math.sqrt(max(value, 0.0)) for value in bias_square],
        "bias_square": bias_square,
        "variance": [math.exp(value) for value in _told(comparison, lambda c: c.log_variance)],
        "cosine": _told(comparison, lambda c: c.single_cosine),
        "rollouts": [1 / value if value > 0 else None for value in (inverse, high, low)],
        "curve": [values_Q.clip(-1, 1).tolist() for values_Q in curve],
    }


def _told(comparison: Comparison, quantity: Callable[[Comparison], float]) -> list[float]:
    """Returns a quantity and the ends of its interval."""
    low, high = comparison.interval(quantity)
    return [quantity(comparison), float(low), float(high)]
