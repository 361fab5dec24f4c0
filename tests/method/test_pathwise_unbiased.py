"""Where the pathwise estimate is right: CoTs of a fixed length. Stops are jumps, and bias it.

The truth is that of `tests/support/expected_reward.py`: finite differences of the expected reward, in plain code. All
estimators see the same trajectories.

Shapes: K batches of samples, P parameters, T CoT steps, D width.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
import torch

from tests.support.expected_reward import (
    COT_CAP,
    PARTS,
    WIDTH,
    Decide,
    Problem,
    assert_unbiased,
    compare,
    directions,
    estimates_by,
    finite_difference,
    make_problem,
    nearest,
    shadow,
    soft_reward,
)

ESTIMATORS = ("score", "pathwise", "answer")
PARTS_OF_STOPS = {"embedding": "embed_tokens", "norm": "post_attention_layernorm"}  # where a bias shows


@pytest.fixture(scope="module")
def noise_nTD() -> torch.Tensor:
    return torch.randn(20_000, COT_CAP, WIDTH, generator=torch.Generator().manual_seed(1))


def held_stops(problem: Problem, noise_nTD: torch.Tensor, decide: Decide) -> Callable[[], torch.Tensor]:
    """Returns the expected reward (n,) of trajectories that end where they end now, whatever the parameters become."""
    decided: list[torch.Tensor] = []

    def note(prompt: list[int], x_ntD: torch.Tensor, logits_nV: torch.Tensor) -> torch.Tensor:
        decided.append(decide(prompt, x_ntD, logits_nV))
        return decided[-1]

    with torch.no_grad():
        soft_reward(problem, noise_nTD, note)
    again = itertools.cycle(decided)  # asked in the same order, for the same trajectories
    return functools.partial(soft_reward, problem, noise_nTD, lambda *_: next(again))


@pytest.mark.thorough
def test_the_estimate_is_the_gradient_of_the_expected_reward(noise_nTD: torch.Tensor) -> None:
    """And the score's mean, while the answer's term alone is another."""
    problem = make_problem("soft", None)
    truth = functools.partial(soft_reward, problem, noise_nTD, shadow)
    along = directions(problem, estimates_by(("pathwise",), problem, "pilot", 4, 250)["pathwise"], PARTS, 2)
    made = estimates_by(ESTIMATORS, problem, "fixed", 8)
    assert_unbiased(problem, made["pathwise"], truth, along)
    for name, direction_P in along.items():
        pair = compare(made["score"] - made["pathwise"], torch.zeros(1), direction_P)
        spread = [(made[estimator] @ direction_P).std().item() for estimator in ESTIMATORS]
        print(f"{name:60s} score - pathwise: z {pair.z:5.2f} {pair}; standard deviations {spread}")
        size = abs((made["pathwise"] @ direction_P).mean().item())
        assert pair.standard_error < 0.05 * size, f"{name}: too noisy to tell anything: {pair}"
        assert abs(pair.z) < 3, f"{name}: score and pathwise differ: {pair}"
    alone = compare(made["answer"], finite_difference(problem, truth, along["whole"]), along["whole"])
    assert abs(alone.z) > 5, f"the answer's term alone should not be the gradient: {alone}"


@pytest.mark.slow
@pytest.mark.parametrize("stop_on", ["shadow", "nearest"])
def test_what_stops_cost(stop_on: str, noise_nTD: torch.Tensor) -> None:
    """Stops at the nearest token depend on x alone: the score's estimate is right, and only it.

    Stops at the shadow token depend on the parameters too, which none sees. What the pathwise estimate misses is that
    stops move: with each trajectory's held where it is, it is right under both rules.
    """
    problem = make_problem("soft", stop_on)
    along = directions(problem, estimates_by(("pathwise",), problem, "pilot", 4, 250)["pathwise"], PARTS_OF_STOPS, 0)
    made = estimates_by(ESTIMATORS, problem, stop_on, 8)
    decide: Decide = shadow
    if stop_on == "nearest":  # the E that decides is a constant
        decide = functools.partial(nearest, problem.lm.embedding_VD.detach().clone())
    assert_unbiased(problem, made["pathwise"], held_stops(problem, noise_nTD, decide), along)

    truth = functools.partial(soft_reward, problem, noise_nTD, decide)
    for name, direction_P in along.items():
        differences = finite_difference(problem, truth, direction_P)
        seen = {estimator: compare(made[estimator], differences, direction_P) for estimator in ESTIMATORS}
        for estimator, one in seen.items():
            bias, error = (one.estimate - one.truth) / abs(one.truth), one.standard_error / abs(one.truth)
            print(f"{stop_on}, {name}, {estimator}: bias {bias:.1%} of {one.truth:.4f}, +- {error:.1%}")
            exact = (estimator, stop_on) == ("score", "nearest")
            assert error < 0.06, f"{name}: too noisy to tell anything: {one}"
            assert abs(one.z) < 3 if exact else abs(one.z) > 5, f"{name}, {estimator}: {one}"
        size = {estimator: abs(one.estimate - one.truth) for estimator, one in seen.items()}
        assert size["score"] < size["pathwise"] < size["answer"], f"{name}: biases {size}"
