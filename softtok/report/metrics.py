"""What is measured, as pure functions: pass@k, majority votes, spread over seeds, bootstrap over problems.

The unit of replication is the training run (a seed), never the problem: `summarise` takes one value per seed. How much
the choice of test problems moves the value of one run is another question, which `bootstrap_interval` answers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from softtok.errors import UserError

Floats = NDArray[np.float64]


@functools.lru_cache(maxsize=4096)
def _pass_at_k_by_count(samples: int, k: int) -> Floats:
    """pass@k for 0, 1, ..., `samples` correct samples. Integers up to the division: nothing overflows or cancels."""
    draws = math.comb(samples, k)
    return np.array([(draws - math.comb(samples - correct, k)) / draws for correct in range(samples + 1)])


def pass_at_k(correct: ArrayLike, samples: int, k: int) -> Floats:
    """Unbiased estimate of the chance that at least one of k samples is correct: 1 - C(n - c, k) / C(n, k), in [0, 1].

    `correct` (any shape) holds c, the correct samples of each problem, out of n = `samples`; the result has its shape.
    A k above n cannot be estimated and is a UserError: counting it as 1, as is sometimes done, flatters small n.
    """
    counts = np.asarray(correct).astype(np.int64)
    if not 1 <= k <= samples:
        raise UserError(f"pass@{k} cannot be estimated from {samples} samples per problem: k must lie in 1..{samples}")
    if counts.size and (counts.min() < 0 or counts.max() > samples):
        raise ValueError(f"correct counts must lie in 0..{samples}, got {counts.min()}..{counts.max()}")
    return _pass_at_k_by_count(samples, k)[counts]


def majority(problem: ArrayLike, vote: ArrayLike, correct: ArrayLike, problems: int) -> Floats:
    """Chance that a plurality vote of its samples answers each of `problems` problems right, shape (problems,).

    The arguments hold one entry per sample: its problem (0, 1, ...), its vote (a number per distinct answer; negative:
    it abstains) and whether it is correct. Tied answers are drawn with equal chances, which is taken in expectation; an
    answer that was judged in two ways counts by its share of correct samples; without a vote a problem is not solved.
    """
    voters = np.asarray(vote) >= 0
    of, answers = np.asarray(problem)[voters].astype(np.int64), np.asarray(vote)[voters].astype(np.int64)
    distinct = int(answers.max(initial=0)) + 1
    ballots, place, votes = np.unique(of * distinct + answers, return_inverse=True, return_counts=True)
    owner = ballots // distinct
    right = np.bincount(place, np.asarray(correct, dtype=float)[voters], len(ballots)) / votes
    most = np.zeros(problems, dtype=np.int64)
    np.maximum.at(most, owner, votes)
    leads = votes == most[owner]
    return np.bincount(owner, right * leads, problems) / np.maximum(np.bincount(owner, leads, problems), 1)


def ks(samples: int) -> list[int]:
    """The k of a pass@k curve: 1, 2, 4, ... and `samples` itself."""
    return [*(1 << power for power in range(samples.bit_length()) if 1 << power < samples), samples]


@dataclass(frozen=True)
class Summary:
    """One number over n seeds: mean, standard deviation (ddof = 1), 95 % t interval; one seed has a mean only."""

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


def t_interval(values: Sequence[float] | Floats, level: float = 0.95) -> tuple[float, float]:
    """Student t interval for the mean of at least two values, one per seed. With 3 seeds it keeps its level, where a
    bootstrap over seeds covers the truth in only three cases of four."""
    sample = np.asarray(values, dtype=float)
    if sample.size < 2:
        raise ValueError("a t interval needs at least two values")
    return t_interval_of(float(sample.mean()), float(sample.std(ddof=1)), sample.size, level)


def t_interval_of(mean: float, std: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """`t_interval` from a mean and a standard deviation (ddof = 1) over n >= 2 seeds."""
    half = float(stdtrit(n - 1, (1 + level) / 2)) * std / math.sqrt(n)
    return mean - half, mean + half


def summarise(values: Sequence[float] | Floats) -> Summary:
    """`Summary` of one value per seed."""
    sample = np.asarray(values, dtype=float)
    if sample.size == 0:
        raise ValueError("no values to summarise")
    mean = float(sample.mean())
    if sample.size == 1:
        return Summary(1, mean, None, None, None)
    return Summary(sample.size, mean, float(sample.std(ddof=1)), *t_interval(sample))


def bootstrap_interval(values: ArrayLike, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval for the mean over problems within one run; `values` holds one number per problem.

    Problems of equal value are interchangeable, so each draw is one multinomial over the distinct values: for pass@k
    there are at most n + 1 of them, however many problems there are.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    if distinct.size == 0:
        raise ValueError("no problems to draw from")
    problems = int(counts.sum())
    resampled = np.random.default_rng(seed).multinomial(problems, counts / problems, size=draws)
    low, high = np.quantile(resampled @ distinct / problems, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
