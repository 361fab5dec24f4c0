"""Bias and variance of gradients are what loops over stored gradients give, and right on average."""

from __future__ import annotations

import math

import numpy as np
import pytest

from softtok.training.moments import Comparison, Half, described

SIZE, BLOCKS = 6, 4


def half(gradients_nP: np.ndarray) -> Half:
    """Returns the inner products of gradients, rollout i in block i modulo the blocks."""
    blocks_n = np.arange(len(gradients_nP)) % BLOCKS
    sums_AP = np.stack([gradients_nP[blocks_n == block].sum(0) for block in range(BLOCKS)])
    squares_n = (gradients_nP**2).sum(1)
    return Half(np.bincount(blocks_n), np.bincount(blocks_n, squares_n), sums_AP @ sums_AP.T)


def comparison(reference_nP: np.ndarray, estimator_nP: np.ndarray) -> Comparison:
    """Returns two sets of gradients beside each other."""
    blocks_n, of_reference = np.arange(len(estimator_nP)) % BLOCKS, np.arange(len(reference_nP)) % BLOCKS
    sums_AP = np.stack([reference_nP[of_reference == block].sum(0) for block in range(BLOCKS)])
    norms_n = np.linalg.norm(estimator_nP, axis=1)
    return Comparison(half(reference_nP), half(estimator_nP), estimator_nP @ sums_AP.T, norms_n, blocks_n)


def gradients(generator: np.random.Generator, count: int, mean: float, std: float, tilt: float = 0.0) -> np.ndarray:
    """Returns normal gradients whose mean lies along the first coordinate, and `tilt` along the second."""
    mean_P = np.zeros(SIZE)
    mean_P[:2] = mean, tilt
    return mean_P + std * generator.normal(size=(count, SIZE))


def test_estimates_are_those_of_loops_over_stored_gradients() -> None:
    generator = np.random.default_rng(0)
    reference_nP, estimator_nP = gradients(generator, 10, 3.0, 1.0), gradients(generator, 11, 2.0, 0.7, tilt=1.0)
    seen = comparison(reference_nP, estimator_nP)
    pairs = [a @ b for i, a in enumerate(estimator_nP) for j, b in enumerate(estimator_nP) if i != j]
    assert seen.estimator.mean_square == pytest.approx(np.mean(pairs))
    assert seen.estimator.variance == pytest.approx(estimator_nP.var(0, ddof=1).sum())
    assert seen.along == pytest.approx(estimator_nP.mean(0) @ reference_nP.mean(0))
    blocks = [(i % BLOCKS, j % BLOCKS, a @ b) for i, a in enumerate(estimator_nP) for j, b in enumerate(reference_nP)]
    apart = [x * y for i, j, x in blocks for k, h, y in blocks if i != k and j != h]
    assert seen.along_square == pytest.approx(np.mean(apart))
    r = math.sqrt(seen.reference.mean_square)
    single = np.mean([a @ reference_nP.mean(0) / np.linalg.norm(a) for a in estimator_nP]) / r
    assert seen.single_cosine == pytest.approx(single)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_without_a_block_is_what_the_other_gradients_give(block: int) -> None:
    generator = np.random.default_rng(1)
    reference_nP, estimator_nP = gradients(generator, 9, 3.0, 1.0), gradients(generator, 11, 2.0, 0.7)
    seen, kept = comparison(reference_nP, estimator_nP), np.arange(11) % BLOCKS != block
    assert seen.without_estimator(block).along == pytest.approx(estimator_nP[kept].mean(0) @ reference_nP.mean(0))
    assert seen.without_estimator(block).estimator.variance == pytest.approx(estimator_nP[kept].var(0, ddof=1).sum())
    kept = np.arange(9) % BLOCKS != block
    assert seen.without_reference(block).along == pytest.approx(estimator_nP.mean(0) @ reference_nP[kept].mean(0))
    assert len({*seen.without_estimator(block).blocks_n}) == BLOCKS - 1


def bias_square(seen: Comparison) -> float:
    """Returns |m - r|^2."""
    return seen.bias_square * seen.reference.mean_square


def inverse_rollouts(seen: Comparison) -> float:
    """Returns 1 / n of the mean that has the wanted cosine."""
    return seen.inverse_rollouts


def log_variance(seen: Comparison) -> float:
    """Returns log(V / |r|^2)."""
    return seen.log_variance


def test_estimates_have_no_bias_and_intervals_their_level() -> None:
    """Even where a half's noise is larger than what it measures."""
    generator, repeats, hits, resolved = np.random.default_rng(2), 1500, np.zeros(3), 0
    found, intervals = [], {bias_square: 1.25, inverse_rollouts: (4 * 1.0 - 1.25) / 24.0, log_variance: math.log(6.0)}
    for _ in range(repeats):
        seen = comparison(gradients(generator, 12, 2.0, 1.0), gradients(generator, 12, 1.0, 2.0, tilt=0.5))
        squares = seen.along_square, bias_square(seen)
        found.append((seen.estimator.mean_square, seen.estimator.variance, seen.along, *squares))
        resolved += seen.resolved
        for place, (quantity, truth) in enumerate(intervals.items() if seen.resolved else ()):
            low, high = seen.interval(quantity)
            hits[place] += low <= truth <= high
    truths = np.array([1.25, 4.0 * SIZE, 2.0, 4.0, 1.25])
    errors = np.std(found, axis=0) / math.sqrt(repeats)
    assert (np.abs(np.mean(found, axis=0) - truths) < 4 * errors).all()
    assert resolved > 0.99 * repeats
    assert (hits / resolved > 0.85).all()
    assert (hits / resolved < 0.995).all()


def test_the_rollouts_needed_are_those_whose_mean_has_the_cosine() -> None:
    generator = np.random.default_rng(3)
    reference_nP = gradients(generator, 4000, 2.0, 0.5)
    estimator_nP = gradients(generator, 4000, 2.0, 8.0)
    told = described(comparison(reference_nP, estimator_nP), [1.0, 32.0, 1e6])
    variance = 64.0 * SIZE
    needed = variance / (3 * 4.0)  # cosine 1/2 where V / n = 3 |m|^2
    assert isinstance(rollouts := told["rollouts"], list)
    assert rollouts[0] == pytest.approx(needed, rel=0.3)
    means = estimator_nP[: 4000 // 32 * 32].reshape(-1, 32, SIZE).mean(1)
    r = reference_nP.mean(0)
    seen = float(means.mean(0) @ r) / math.sqrt((means**2).sum(1).mean()) / float(np.linalg.norm(r))
    assert isinstance(curve := told["curve"], list)
    assert curve[0][1] == pytest.approx(seen, abs=0.05)
    assert curve[0] == sorted(curve[0])


@pytest.mark.parametrize(("mean", "tilt"), [(1.0, 3.0), (-2.0, 0.0), (0.0, 1.0)])
def test_a_mean_that_points_elsewhere_never_gets_there(mean: float, tilt: float) -> None:
    generator = np.random.default_rng(4)
    seen = comparison(gradients(generator, 400, 2.0, 0.5), gradients(generator, 400, mean, 0.5, tilt))
    assert described(seen, [1.0])["rollouts"] == [None, None, None]


def test_what_is_lost_in_noise_is_not_told() -> None:
    generator = np.random.default_rng(5)
    told = described(comparison(gradients(generator, 8, 0.0, 1.0), gradients(generator, 8, 1.0, 1.0)), [1.0])
    assert told["bias"] is told["rollouts"] is told["curve"] is None
    assert isinstance(told["norm"], float)
