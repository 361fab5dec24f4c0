"""pass@k, spread over seeds, bootstrap over problems, entropy profiles: against enumeration and simulation."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softtok.errors import UserError
from softtok.report.metrics import bootstrap_interval, ks, majority, pass_at_k, summarise, t_interval


def test_pass_at_k_equals_enumeration_of_all_subsets() -> None:
    for samples in range(1, 9):
        for k in range(1, samples + 1):
            estimates = pass_at_k(np.arange(samples + 1), samples, k)
            for correct in range(samples + 1):
                drawn = list(combinations(range(samples), k))
                hits = sum(any(place < correct for place in subset) for subset in drawn)
                assert estimates[correct] == pytest.approx(hits / len(drawn), abs=1e-15), (samples, k, correct)


@given(st.integers(1, 2000), st.data())
def test_pass_at_k_is_a_probability_and_grows_with_k_and_with_what_is_correct(
    samples: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, samples))
    values = pass_at_k(np.arange(samples + 1), samples, k)
    assert values[0] == 0
    assert values[-1] == 1
    assert np.all(np.diff(values) >= 0)
    assert np.all(pass_at_k(np.arange(samples + 1), samples, samples) >= values)
    np.testing.assert_allclose(pass_at_k(np.arange(samples + 1), samples, 1), np.arange(samples + 1) / samples)


def test_small_chances_are_not_lost_to_rounding() -> None:
    assert pass_at_k(1, 10**6, 1) == 1e-6  # 1 - C(n-1, 1) / C(n, 1) in floats is off in the eleventh digit


def test_pass_at_k_keeps_the_shape_of_its_input() -> None:
    assert pass_at_k(np.zeros((3, 2), dtype=int), 4, 2).shape == (3, 2)
    assert pass_at_k([], 4, 2).shape == (0,)


@pytest.mark.parametrize("k", [0, -1, 9])
def test_a_k_that_cannot_be_estimated_is_refused(k: int) -> None:
    with pytest.raises(UserError, match=rf"pass@{k} .* 8 samples"):
        pass_at_k([1, 2], 8, k)


@pytest.mark.parametrize("correct", [[-1], [9]])
def test_impossible_counts_are_refused(correct: list[int]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.8"):
        pass_at_k(correct, 8, 2)


def test_pass_at_k_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 2, size=50)
    for k in (1, 4, 16):
        truth = np.mean(1 - (1 - rates) ** k)
        means = pass_at_k(rng.binomial(16, rates, size=(4000, 50)), 16, k).mean(axis=1)
        assert abs(means.mean() - truth) < 4 * means.std(ddof=1) / np.sqrt(len(means))


def test_ks_double_and_end_at_the_samples() -> None:
    assert [ks(samples) for samples in (1, 2, 32, 6)] == [[1], [1, 2], [1, 2, 4, 8, 16, 32], [1, 2, 4, 6]]


def test_summary_has_ddof_1_and_no_spread_for_one_seed() -> None:
    summary = summarise([40.0, 60.0])
    assert (summary.n, summary.mean) == (2, 50)
    assert summary.std == pytest.approx(np.sqrt(200))
    assert summary.high == pytest.approx(50 + 12.7062047 * 10)  # t of 97.5 % with one degree of freedom
    assert summary.low == pytest.approx(50 - 12.7062047 * 10)
    alone = summarise([7.0])
    assert (alone.n, alone.mean, alone.std, alone.low, alone.high) == (1, 7, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        summarise([])
    with pytest.raises(ValueError, match="at least two"):
        t_interval([1.0])


def test_t_intervals_over_three_seeds_cover_at_the_nominal_rate() -> None:
    draws = np.random.default_rng(1).normal(size=(10_000, 3))
    intervals = np.array([t_interval(draw) for draw in draws])
    covered = np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0))
    assert covered == pytest.approx(0.95, abs=0.01)  # 4.6 standard errors


def test_bootstrap_over_problems_covers_at_about_the_nominal_rate() -> None:
    rng = np.random.default_rng(2)
    truth = 0.5 / 2.5
    hits = 0
    for repeat in range(500):
        solved = pass_at_k(rng.binomial(8, rng.beta(0.5, 2, size=150)), 8, 1)
        low, high = bootstrap_interval(solved, draws=400, seed=repeat)
        hits += low <= truth <= high
    assert hits / 500 == pytest.approx(0.95, abs=0.035)


def test_bootstrap_equals_the_resampling_of_problems_one_by_one() -> None:
    values = np.random.default_rng(3).choice([0.0, 0.25, 1.0], size=80)
    places = np.random.default_rng(4).integers(0, 80, size=(20_000, 80))
    expected = np.quantile(values[places].mean(axis=1), [0.05, 0.95])
    np.testing.assert_allclose(bootstrap_interval(values, level=0.9, draws=20_000), expected, atol=0.006)
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1])
    with pytest.raises(ValueError, match="no problems"):
        bootstrap_interval([])


def vote(answers: list[int], correct: list[bool]) -> float:
    """By the book: every leading answer is equally likely to win, and then any of its samples to speak for it."""
    ballots = [answer for answer in answers if answer >= 0]
    leading = [answer for answer in set(ballots) if ballots.count(answer) == max(map(ballots.count, ballots))]
    chances = []
    for answer in leading:
        verdicts = [verdict for given, verdict in zip(answers, correct, strict=True) if given == answer]
        chances.append(sum(verdicts) / len(verdicts))
    return sum(chances) / len(chances) if chances else 0.0


@given(st.lists(st.lists(st.tuples(st.integers(-1, 3), st.booleans()), min_size=1, max_size=9), min_size=1, max_size=5))
def test_majority_equals_counting_the_votes_of_each_problem(problems: list[list[tuple[int, bool]]]) -> None:
    samples = [(place, *sample) for place, of_problem in enumerate(problems) for sample in of_problem]
    order = np.random.default_rng(0).permutation(len(samples))
    of_problem_S, votes_S, correct_S = np.array(samples)[order].T
    found = majority(of_problem_S, votes_S, correct_S, len(problems))
    for value, of_problem in zip(found, problems, strict=True):
        assert value == pytest.approx(vote(*map(list, zip(*of_problem, strict=True))))


def test_majority_of_hand_made_votes() -> None:
    def of_one(answers: list[int], correct: list[bool]) -> float:
        return float(majority([0] * len(answers), answers, correct, 1)[0])

    assert of_one([5, 5, 7], [True, True, False]) == 1
    assert of_one([5, 7, 7], [True, False, False]) == 0
    assert of_one([5, 7, 8], [True, False, False]) == pytest.approx(1 / 3)  # a tie, in expectation
    assert of_one([5, -1, -1], [True, False, False]) == 1  # those without a box abstain
    assert of_one([-1, -1], [False, False]) == 0
    assert majority([1], [4], [True], 3).tolist() == [0, 1, 0]


def test_majority_of_many_samples_finds_what_is_right_more_often_than_not() -> None:
    rng = np.random.default_rng(6)
    correct = rng.random((500, 31)) < 0.6
    votes = np.where(correct, 0, rng.integers(1, 6, correct.shape))
    problem = np.repeat(np.arange(500), 31)
    assert majority(problem, votes.ravel(), correct.ravel(), 500).mean() > 0.99 > correct.mean()
