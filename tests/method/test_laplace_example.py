"""The example of a token mode: Laplace noise is Laplace noise, and its estimate the gradient of the expected reward."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy import stats

from examples.laplace_noise import LaplaceNoise
from softtok.config.settings import TokenMode
from softtok.method.noise_units import embedding_rms
from softtok.method.trajectories import Limits
from tests.support import expected_reward as small
from tests.support.gradients import KEYS, make_rollout, run_pass
from tests.support.records import fed, means
from tests.support.tiny_models import tiny_model

MODE = TokenMode(tokens="soft", temperature=0.5, noise_scale=1.0)
STD, COT = 0.7, 2


def laplace(uniform: np.ndarray, std: float) -> np.ndarray:
    """Returns the quantiles of a Laplace distribution with this standard deviation."""
    quantiles: np.ndarray = stats.laplace(scale=std / np.sqrt(2)).ppf(uniform)
    return quantiles


def test_noise_is_laplace_noise_of_the_wanted_size() -> None:
    tokens = LaplaceNoise(MODE, STD)
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    noise = tokens.noise(uniform).double().numpy()
    assert stats.kstest(noise, stats.laplace(scale=STD / np.sqrt(2)).cdf).pvalue > 1e-3
    assert noise.std() == pytest.approx(STD, rel=0.02)
    np.testing.assert_allclose(noise, laplace(uniform.double().numpy(), STD), rtol=1e-3, atol=1e-5)
    assert tokens.noise_size(tokens.noise(uniform)).mean().item() == pytest.approx(1, abs=0.02)
    ends = tokens.noise(torch.tensor([0.0, 0.5, 1 - 2.0**-24]))
    assert ends.isfinite().all() and ends[0] < -5 and ends[1] == 0 and ends[2] > 5


def test_log_density_is_scipys_up_to_a_constant() -> None:
    """In value, and in the gradient by the mean: sign(x - h) / b."""
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(50, 6, generator=generator, dtype=torch.float64).requires_grad_()
    action = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    got = LaplaceNoise(MODE, STD).log_density(action, mean)
    law = stats.laplace(loc=mean.detach().numpy(), scale=STD / np.sqrt(2))
    difference = got.detach().numpy() - law.logpdf(action.numpy()).sum(-1)
    np.testing.assert_allclose(difference, difference[0], atol=1e-9)
    (gradient,) = torch.autograd.grad(got.sum(), mean)
    np.testing.assert_allclose(gradient, (action - mean.detach()).sign().numpy() * np.sqrt(2) / STD, rtol=1e-9)


def test_what_is_fed_is_the_mixture_and_the_noise() -> None:
    """Training finds the rollout's means and noise of size 1 again."""
    lm = tiny_model(spread=0.15)
    tokens = LaplaceNoise(MODE, embedding_rms(lm.embedding_VD))
    out = make_rollout(lm, tokens)
    seen = run_pass((lm, tokens, out, np.ones(len(KEYS)))).as_metrics()
    assert seen["recomputation_gap"] < 1e-3
    values = 32 * int(out.cot_lengths.sum())
    assert abs(seen["noise_check"] - 1) < 5 / np.sqrt(values)  # |L| has the variance 1
    noise = np.concatenate(
        [(fed(out) - means(out))[row, :length].numpy().ravel() for row, length in enumerate(out.cot_lengths)]
    )
    assert stats.kstest(noise / tokens.scale, "laplace").pvalue > 1e-3


def expected_reward(problem: small.Problem, noise_nTD: torch.Tensor) -> torch.Tensor:
    """Returns the expected reward of soft trajectories of COT steps given their noise, shape (n,)."""
    total = torch.zeros(len(noise_nTD))
    for prompt, rewards_V in zip(small.PROMPTS, small.REWARD_OF_TOKEN, strict=True):
        embeds = problem.lm.embedding_VD[torch.tensor(prompt)].expand(len(noise_nTD), -1, -1)
        for step in range(COT):
            logits_nV = problem.lm.model(inputs_embeds=embeds).logits[:, -1]
            h_nD = torch.softmax(logits_nV / problem.tokens.mode.temperature, -1) @ problem.lm.embedding_VD
            embeds = torch.cat([embeds, (h_nD + noise_nTD[:, step])[:, None]], 1)
        total = total + small.finish(problem, embeds, problem.rules.prefill_after_cut, rewards_V) / len(small.PROMPTS)
    return total


@pytest.mark.slow
def test_estimate_is_the_gradient_of_the_expected_reward() -> None:
    """Within 3 standard errors of finite differences, whose noise is NumPy's own Laplace noise."""
    base = small.make_problem("soft", None)
    tokens = LaplaceNoise(MODE, embedding_rms(base.lm.embedding_VD))
    problem = small.Problem(base.lm, tokens, base.rules, Limits(COT, 1, 1.3, "shadow"))
    drawn = np.random.default_rng(0).laplace(scale=tokens.noise_std / np.sqrt(2), size=(20_000, COT, small.WIDTH))
    along = small.directions(problem, small.estimates(problem, "pilot", 4), small.PARTS, 1)
    truth = functools.partial(expected_reward, problem, torch.from_numpy(drawn).float())
    small.assert_unbiased(problem, small.estimates(problem, "laplace", 12), truth, along)
