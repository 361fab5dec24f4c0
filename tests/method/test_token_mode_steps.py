"""Steps of the token modes: draws, noise, densities, and the limits of temperature and noise."""

from __future__ import annotations

import math

import pytest
import torch

from softtok.config.settings import TokenMode
from softtok.method.densities import gaussian_log_density
from softtok.method.noise_units import embedding_rms
from softtok.method.sampling import top_gap
from softtok.method.steps import CotStep
from softtok.method.token_modes import SoftTokens
from softtok.method.vocabulary_products import Vocabulary
from tests.support.rollouts import MODES
from tests.support.steps import bound_to, mean_of, predictions, random_embedding, step, vocabulary_of
from tests.support.tiny_models import random_logits, tiny_model, token_mode

FUZZY = 1e-4


def test_squares_are_not_taken_where_tokens_were_dropped_or_moved() -> None:
    """Then p is of other logits than those that are mixed."""
    lm, logits = tiny_model(), random_logits(20, 64)
    p, noise = torch.softmax(logits, -1), random_logits(20, 64, seed=5)
    for changes in ({"top_k": 5}, {"noise_at": "logits", "noise_scale": 0.5}):
        tokens = token_mode(lm, TokenMode(tokens="soft", temperature=0.5, **changes))
        draw = noise if "noise_at" in changes else None
        assert torch.equal(step(tokens, lm, logits, draw, p).x_ND, step(tokens, lm, logits, draw).x_ND)


def test_sums_are_made_before_the_cast() -> None:
    """With a bf16 model, h is an fp32 sum over the bf16 rows, and x is rounded once, after the noise."""
    embedding = random_embedding(200, 16).bfloat16()
    logits, noise = random_logits(30, 200) / 10, random_embedding(30, 16, seed=8)
    for temperature in (0.5, 1e-4):
        tokens = bound_to(TokenMode(tokens="soft", temperature=temperature, noise_scale=0.3), 0.3)
        wanted = torch.softmax(logits.double() / temperature, -1) @ embedding.double()
        for matrix in (embedding, embedding.float()):  # a rollout has a copy of E in fp32
            vocabulary = Vocabulary(matrix, matrix, torch.bfloat16)
            made = tokens.step(predictions(vocabulary, logits), noise)
            mean = mean_of(made)
            assert mean.dtype == torch.float32
            torch.testing.assert_close(mean.double(), wanted, rtol=0, atol=2e-5 if temperature == 0.5 else 5e-3)
            assert made.x_ND.dtype == torch.bfloat16
            assert torch.equal(made.x_ND, (mean + 0.3 * noise).bfloat16())


@pytest.mark.parametrize("name", ["soft", "fuzzy"])
def test_noise_has_the_length_that_its_density_assumes(name: str) -> None:
    """E |x - h|^2 = d sigma^2 with sigma = gamma RMS(E), within four standard errors."""
    embedding = 0.2 * random_embedding(100, 64)
    sigma = 0.33 * embedding_rms(embedding)
    assert sigma == pytest.approx(0.33 * embedding.double().square().mean().sqrt().item())
    count = 2000
    noise = torch.randn(count, 64, generator=torch.Generator().manual_seed(0))
    made = step(bound_to(MODES[name], sigma), embedding, random_logits(count, 100), noise)
    ratio = ((made.x_ND - mean_of(made)).double().square().mean() / sigma**2).item()
    assert abs(ratio - 1) < 4 * math.sqrt(2 / (count * 64))


def test_the_log_density_is_the_gaussian_one_up_to_a_constant() -> None:
    sigma, h = 0.3, random_embedding(10, 16).requires_grad_()
    x = (h.detach() + sigma * random_embedding(10, 16, seed=3)).requires_grad_()
    got = gaussian_log_density(x, h, sigma)
    whole = torch.distributions.Normal(h.detach().double(), sigma).log_prob(x.detach().double()).sum(-1)
    difference = got.detach().double() - whole
    torch.testing.assert_close(difference, difference[:1].expand(10), rtol=0, atol=1e-4)
    got.sum().backward()
    torch.testing.assert_close(h.grad, (x - h).detach() / sigma**2)
    assert x.grad is None, "x is the action: nothing flows through it"


def test_fuzzy_without_noise_is_hard_greedy() -> None:
    lm = tiny_model()
    logits = random_logits(500, 64)
    fuzzy, hard = (step(token_mode(lm, MODES[name]), lm, logits) for name in ("fuzzy-greedy", "hard-greedy"))
    assert torch.equal(fuzzy.ids_N, hard.ids_N)
    clear = top_gap(logits)[1] > 40 * FUZZY
    assert clear.sum() >= 490
    assert torch.equal(fuzzy.x_ND[clear], hard.x_ND[clear])


def test_soft_goes_to_the_argmax_row_as_the_temperature_falls() -> None:
    lm = tiny_model()
    logits = random_logits(100, 64)
    row = lm.embedding_VD.detach()[logits.argmax(-1)]
    distances = []
    for temperature in (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3):
        made = step(token_mode(lm, TokenMode(tokens="soft", temperature=temperature)), lm, logits)
        assert torch.equal(made.ids_N, logits.argmax(-1)), "the shadow token does not depend on the temperature"
        distances.append((made.x_ND - row).norm(dim=-1).mean().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.02 * distances[0]


@pytest.mark.parametrize(
    ("name", "draws"),
    [("hard", "uniform"), ("hard-greedy", "none"), ("soft", "normal"), ("soft-greedy", "none"), ("fuzzy", "normal")],
)
def test_a_mode_draws_what_it_uses(name: str, draws: str) -> None:
    lm, logits = tiny_model(), random_logits(10, 64)
    tokens = token_mode(lm, MODES[name])
    assert tokens.draw_kind == draws
    assert (tokens.draw_kind == "none") == MODES[name].deterministic
    assert isinstance(tokens, SoftTokens) == (MODES[name].tokens == "soft")
    assert tokens.draw_width(lm.embedding_VD) == (32 if isinstance(tokens, SoftTokens) else 1)
    generator = torch.Generator().manual_seed(0)
    if draws != "none":
        draw = torch.rand(10, generator=generator) if draws == "uniform" else torch.randn(10, 32, generator=generator)
        first, second = step(tokens, lm, logits, draw), step(tokens, lm, logits, draw / 2)
        assert torch.equal(first.x_ND, step(tokens, lm, logits, draw).x_ND)
        assert not torch.equal(first.x_ND, second.x_ND), "the draw matters"
    if not isinstance(tokens, SoftTokens):
        made = step(tokens, lm, logits, None if draws == "none" else draw)
        assert made.mean_ND is None and made.action_ND is None
        assert torch.equal(made.x_ND, lm.embedding_VD[made.ids_N])


def test_nearest_token_is_the_nearest_row() -> None:
    """Rows of very different lengths, so that the largest product is not the smallest distance."""
    embedding = random_embedding(50, 8) * torch.linspace(0.1, 5, 50)[:, None]
    x = random_embedding(300, 8, seed=7) * 3
    tokens, made = bound_to(MODES["soft"], 0.1), CotStep(x, torch.arange(300) % 50, torch.zeros(300, dtype=torch.bool))
    nearest = torch.cdist(x.double(), embedding.double()).argmin(-1)
    assert torch.equal(tokens.text_ids(made, "nearest", vocabulary_of(embedding)), nearest)
    assert torch.equal(tokens.text_ids(made, "shadow", vocabulary_of(embedding)), made.ids_N)
    assert not torch.equal((x @ embedding.T).argmax(-1), nearest), "the case tells the two apart"
