"""Sampling is the softmax, mixtures are exact, near-ties are told, and shortcuts change nothing."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from scipy import stats

from softtok.method import sampling
from softtok.method.sampling import entropy, entropy_of, log_prob, mix, sample_ids
from tests.support.steps import random_embedding
from tests.support.tiny_models import random_logits

FUZZY = 1e-4
ALMOST_ONE = 1 - 2.0**-24  # the largest uniform that a 24-bit generator draws


# Hard tokens


@pytest.mark.parametrize("vocabulary", [50, 3 * sampling.RUN])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_evenly_spread_uniforms_give_every_token_its_share(temperature: float, vocabulary: int) -> None:
    """Inverse CDF at u = 1/2n, 3/2n, ... hits a token of probability p between np - 1 and np + 1 times.

    There is no sampling error to hide in.
    """
    count, logits = 100_000, random_logits(1, vocabulary)
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids, _ = sample_ids(logits.expand(count, -1), temperature, u.float())
    share = log_prob(logits.expand(vocabulary, -1), torch.arange(vocabulary), temperature).double().exp()
    assert share.sum().item() == pytest.approx(1, abs=1e-6), "the log-probabilities are those of a distribution"
    assert (torch.bincount(ids, minlength=vocabulary) - count * share).abs().max() < 1.5


def test_sampling_by_runs_is_the_inverse_cdf() -> None:
    """Tokens, and where rounding could have changed them, are those of one cumulative sum in double precision."""
    rows, vocabulary = 4000, 40 * sampling.RUN
    logits = random_logits(rows, vocabulary, seed=3)
    u = torch.rand(rows, generator=torch.Generator().manual_seed(3))
    ids, near = sample_ids(logits, 1.0, u)
    cdf = torch.softmax(logits.double(), -1).cumsum(-1)
    at = u.double()[:, None] * cdf[:, -1:]
    wanted = torch.searchsorted(cdf, at, right=True)
    ends = torch.cat([torch.zeros(rows, 1, dtype=torch.float64), cdf], 1)
    margin = torch.minimum(ends.gather(1, wanted + 1) - at, at - ends.gather(1, wanted)).squeeze(1)
    told = sampling.NEAR_TIE_GAP / 10
    assert torch.equal(ids[margin > told / 10], wanted.squeeze(1)[margin > told / 10])
    assert near[margin < told / 2].all() and not near[margin > 2 * told].any()
    assert 10 < near.sum() < rows / 10


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_frequencies_of_sampled_tokens_are_the_softmax(temperature: float) -> None:
    count, logits = 200_000, random_logits(1, 40, seed=2)
    u = torch.rand(count, generator=torch.Generator().manual_seed(0))
    observed = torch.bincount(sample_ids(logits.expand(count, -1), temperature, u)[0], minlength=40)
    expected = count * log_prob(logits.expand(40, -1), torch.arange(40), temperature).double().exp()
    assert expected.min() > 5, "few enough rare tokens for a chi-square test"
    assert stats.chisquare(observed.numpy(), (expected * count / expected.sum()).numpy()).pvalue > 1e-3


def test_uniforms_at_the_edges_never_give_an_impossible_token() -> None:
    """Tokens of probability zero stand first, last and in the middle.

    u is 0, almost 1, and each step of the CDF from both sides.
    """
    probabilities = torch.tensor([0, 0.25, 0, 0, 0.5, 0.125, 0, 0.125, 0, 0])
    possible = {1, 4, 5, 7}
    steps = torch.tensor([0.25, 0.75, 0.875])
    below, above = torch.nextafter(steps, torch.zeros(3)), torch.nextafter(steps, torch.ones(3))
    u = torch.cat([torch.tensor([0.0, 1e-38, ALMOST_ONE]), steps, below, above])
    for logits in (probabilities.log(), torch.where(probabilities > 0, probabilities.log(), -1e4)):
        ids, _ = sample_ids(logits.expand(len(u), -1), 1.0, u)
        assert set(ids.tolist()) <= possible
        assert ids[:3].tolist() == [1, 1, 7], "u = 0 gives the first possible token, u next to 1 the last"
        # A token's own interval is closed below and open above; softmax rounds, so a step itself may fall on either
        # side.
        assert ids[6:9].tolist() == [1, 4, 5]
        assert ids[9:].tolist() == [4, 5, 7]


def test_the_last_token_is_within_reach_and_never_overrun() -> None:
    """Rounding may leave the CDF's end above or below 1: u next to 1 must still give a real token."""
    for vocabulary in (2, 3, 7, 1000, 50_000, 2 * sampling.RUN, 500 * sampling.RUN):
        for impossible in (1, vocabulary // 2, vocabulary - 1):  # the last tokens: an overrun would end there
            logits = random_logits(20, vocabulary, seed=vocabulary)
            logits[:, -impossible:] = -math.inf
            ids, _ = sample_ids(logits, 1.0, torch.full((20,), ALMOST_ONE))
            assert (ids < vocabulary - impossible).all()
            assert torch.isfinite(log_prob(logits, ids, 1.0)).all()


def test_temperature_to_zero_is_the_argmax() -> None:
    logits = random_logits(200, 30)
    u = torch.rand(200, generator=torch.Generator().manual_seed(0))
    greedy, _ = sample_ids(logits, 0.0, None)
    assert torch.equal(greedy, logits.argmax(-1))
    assert torch.equal(sample_ids(logits, 0.0, u)[0], greedy), "at temperature 0 the draw does not matter"
    clear = logits.topk(2).values.diff(dim=-1).abs().squeeze(1) > 0.01
    assert clear.sum() > 180
    assert torch.equal(sample_ids(logits, 1e-4, u)[0][clear], greedy[clear])


def test_log_prob_is_the_categorical_one() -> None:
    logits, ids = random_logits(60, 25), torch.arange(60) % 25
    for temperature in (0.5, 1.0):
        wanted = torch.distributions.Categorical(logits=logits.double() / temperature).log_prob(ids)
        torch.testing.assert_close(log_prob(logits, ids, temperature).double(), wanted, rtol=0, atol=1e-5)


def test_entropy_is_the_categorical_one() -> None:
    logits = torch.cat([random_logits(20, 25), torch.zeros(1, 25), 1000 * torch.eye(25)[:1]])
    wanted = torch.distributions.Categorical(logits=logits.double()).entropy()
    for found in (entropy(logits), entropy_of(torch.softmax(logits, -1), logits)):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    nearly_sure = torch.tensor([[30.0, 20.0, 0.0]])  # one small term: it must not drown in the rounding of big ones
    wanted = torch.distributions.Categorical(logits=nearly_sure.double()).entropy()
    found = entropy_of(torch.softmax(nearly_sure, -1), nearly_sure)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=0)


def test_known_probabilities_change_no_sample() -> None:
    logits, u = random_logits(200, 25), torch.rand(200, generator=torch.Generator().manual_seed(2))
    for temperature in (0.0, 0.5, 1.0):
        plain = sample_ids(logits, temperature, u)
        assert all(map(torch.equal, plain, sample_ids(logits, temperature, u, torch.softmax(logits, -1))))


def test_close_calls_are_told() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0 - 5e-5, 0.0], [1.0, 1.0 - 5e-4, 0.0]])
    assert sample_ids(logits, 0.0, None)[1].tolist() == [True, True, False]
    probabilities = torch.tensor([[0.5, 0.25, 0.25]]).expand(4, -1)
    u = torch.tensor([0.5 - 2e-6, 0.5 + 2e-6, 0.5 + 1e-4, 0.4])
    ids, near = sample_ids(probabilities.log(), 1.0, u)
    assert ids.tolist() == [0, 1, 1, 0]
    assert near.tolist() == [True, True, False, False]


# Mixtures


@pytest.mark.parametrize("temperature", [2.0, 0.5, 0.1, 0.02, 1e-2, 1e-3])
def test_the_mixture_is_the_whole_product(temperature: float) -> None:
    logits, embedding = random_logits(50, 300), random_embedding(300, 16)
    wanted = torch.softmax(logits.double() / temperature, -1) @ embedding.double()
    torch.testing.assert_close(
        mix(logits, embedding, temperature).double(), wanted, rtol=0, atol=2e-3 * FUZZY / temperature + 2e-6
    )


def constructed_ties(vocabulary: int) -> torch.Tensor:
    """Rows whose runner-up, or all others, trail the best by 0, half a temperature, ... and so on.

    The last are far beyond the shortcut's threshold.
    """
    gaps = FUZZY * torch.tensor([0, 0.5, 1, 3, 8, 20, 29, 30, 33, 35, 40, 60, 1e3, 1e4])
    runner_up = torch.full((len(gaps), vocabulary), -5.0)
    runner_up[:, 3], runner_up[:, 7] = 1.0, 1.0 - gaps
    all_others = (1.0 - gaps)[:, None].repeat(1, vocabulary)
    all_others[:, 5] = 1.0
    return torch.cat([runner_up, all_others, random_logits(20, vocabulary)])


def test_the_shortcut_of_fuzzy_mixtures_equals_the_whole_product() -> None:
    """In value and in both gradients, on exact ties, near-ties, clear cases and batches of all of them."""
    embedding, weights = random_embedding(40, 16), random_embedding(100, 16, seed=5)
    for logits in (constructed_ties(40), constructed_ties(40)[:1], constructed_ties(40)[-5:]):
        results = []
        for shortcut in (True, False):
            z, e = logits.clone().requires_grad_(), embedding.clone().requires_grad_()
            # fp64, because z / 1e-4 in fp32 is rounded to thousandths of a nat.
            h = mix(z, e, FUZZY) if shortcut else torch.softmax(z.double() / FUZZY, -1).float() @ e
            (h * weights[: len(z)]).sum().backward()
            results.append((h.detach(), torch.zeros_like(z) if z.grad is None else z.grad, e.grad))
        for got, wanted, name in zip(*results, ("value", "gradient in logits", "gradient in E"), strict=True):
            # d softmax(z / tau) / dz is of the order of 1 / tau.
            scale = 1 / FUZZY if name == "gradient in logits" else 1.0
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6 * scale, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("most", [1, 16, 40])
def test_near_ties_without_gradients_equal_the_whole_product(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the rows of E that count are gathered or, where they are many, multiplied; in one batch or alone."""
    monkeypatch.setattr(sampling, "MOST_TIED", most)
    embedding, logits = random_embedding(40, 16), constructed_ties(40)
    wanted = (torch.softmax(logits.double() / FUZZY, -1) @ embedding.double()).float()
    with torch.no_grad():
        torch.testing.assert_close(mix(logits, embedding, FUZZY), wanted, rtol=1e-5, atol=1e-6)
        for row in range(len(logits)):
            alone = mix(logits[row : row + 1], embedding, FUZZY)
            torch.testing.assert_close(alone, wanted[row : row + 1], rtol=1e-5, atol=1e-6)
        half = mix(logits, embedding.bfloat16(), FUZZY)
    assert half.dtype == torch.float32, "sums of bf16 rows are fp32"
    wanted = (torch.softmax(logits.double() / FUZZY, -1) @ embedding.bfloat16().double()).float()
    torch.testing.assert_close(half, wanted, rtol=1e-5, atol=1e-6)


def test_the_shortcut_leaves_out_nothing_that_counts() -> None:
    """Against fp64, with all others at one distance: what the looked-up row leaves out does not show in fp32."""
    vocabulary, embedding = 5000, random_embedding(5000, 8)
    gaps = FUZZY * torch.linspace(0, 60, 200)
    logits = -gaps[:, None].repeat(1, vocabulary)
    logits[:, 9] = 0.0
    wanted = torch.softmax(logits.double() / FUZZY, -1) @ embedding.double()
    got = mix(logits, embedding, FUZZY)
    assert (got.double() - wanted).abs().max() < 1e-4
    looked_up = (got == embedding[9]).all(-1)
    assert looked_up.any() and not looked_up.all()
    assert (wanted[looked_up] - embedding[9].double()).abs().max() < 1e-6


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 300.0])
def test_squares_of_the_softmax_are_the_weights_at_half_its_temperature(spread: float) -> None:
    """Up to rounding, for flat and for peaked distributions, whose small weights the squares lose to underflow."""
    logits, embedding = spread * random_logits(50, 3000), random_embedding(3000, 16)
    wanted = torch.softmax(logits.double() / 0.5, -1) @ embedding.double()
    scale = wanted.abs().max()
    for p in (None, torch.softmax(logits, -1)):
        assert (mix(logits, embedding, 0.5, p_NV=p) - wanted).abs().max() < 3e-6 * scale
    for temperature in (1e-4, 0.3, 1.0):
        assert torch.equal(
            mix(logits, embedding, temperature, p_NV=torch.softmax(logits, -1)), mix(logits, embedding, temperature)
        )


def test_a_given_argmax_changes_nothing() -> None:
    logits, embedding = constructed_ties(40), random_embedding(40, 16)
    assert torch.equal(mix(logits, embedding, FUZZY, *sampling.top_gap(logits)), mix(logits, embedding, FUZZY))


@pytest.mark.parametrize(
    "vocabulary", [2, 100, 2 * sampling.RUN, 3 * sampling.RUN, 64 * sampling.RUN, 64 * sampling.RUN + 1]
)
def test_the_lead_is_that_over_the_second_of_all(vocabulary: int) -> None:
    """Wherever the two largest stand: in one run of entries that are searched together, in two, at the ends."""
    places = [0, 1, vocabulary // 2, vocabulary - 2, vocabulary - 1]
    pairs = [(a, b) for a in places for b in places if a != b]
    logits = random_logits(2 * len(pairs), vocabulary)
    for row, (first, second) in enumerate(pairs):
        logits[row, first], logits[row, second] = 1000.0, 998.0
    logits[-1] = -math.inf  # as `top_k` leaves it: one token has all the weight
    logits[-1, vocabulary // 2] = 3.0
    best, lead = sampling.top_gap(logits)
    top = logits.topk(2).values
    assert torch.equal(best, logits.argmax(-1))
    assert torch.equal(lead, top[:, 0] - top[:, 1])
    assert (lead[: len(pairs)] == 2).all() and torch.isinf(lead[-1])
    tied = torch.zeros(1, vocabulary)
    tied[0, [0, -1]] = 1.0
    best, lead = sampling.top_gap(tied)
    assert lead == 0 and best in (0, vocabulary - 1)
