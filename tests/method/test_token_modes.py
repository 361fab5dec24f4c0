"""Noise before the mixture, Gumbel noise, top-k, Mixture of Inputs, Soft Thinking.

Densities are densities, training recomputes what was fed, the estimate is the gradient of the expected reward, and
limits lead back to known modes.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from softtok.config.manifests import CheckpointManifest, read
from softtok.config.settings import RuntimeSettings, SampledMode, TokenMode
from softtok.evaluation.evaluate import evaluate, noise_rms
from softtok.method.batches import read_problems, rms_prompts
from softtok.method.densities import gumbel, gumbel_log_density
from softtok.method.draws import Draws
from softtok.method.noise_units import embedding_rms, state_rms
from softtok.method.sampling import keep_top
from softtok.method.terms import Tiling
from softtok.method.token_modes import CotTokens, GumbelNoise, LogitNoise, bind, greedy
from softtok.method.trajectories import INFERENCE_STOPS, Limits, Rollout
from softtok.models.base_model import base_run
from softtok.models.language_model import LanguageModel, left_pad
from softtok.problems.prompting import Asking
from softtok.training.train import Trainer, train
from tests.support import expected_reward as small
from tests.support.gradients import (
    KEYS,
    PROMPTS,
    SAMPLES,
    SETTINGS,
    SMALL_TILES,
    TILING,
    Advantages,
    LargestOfVocabulary,
    assert_same,
    in_double,
    make_advantages,
    run_pass,
    take_gradients,
)
from tests.support.gradients import make_rollout as roll
from tests.support.gradients import pass_gradients as gradients
from tests.support.records import actions, change_record, fed, logit_record, means, record_of
from tests.support.specs import TEMPLATE, base_spec, evaluation_spec, toy_model, train_spec
from tests.support.steps import bound_to, step
from tests.support.tiny_models import random_logits, tiny_model

HIDDEN = TokenMode(tokens="soft", temperature=0.5, noise_scale=0.4, noise_at="hidden")
LOGITS = TokenMode(tokens="soft", temperature=0.5, noise_scale=0.4, noise_at="logits")
GUMBEL = TokenMode(tokens="soft", temperature=0.5, noise="gumbel")
MODES = {
    "embedding-top": TokenMode(tokens="soft", temperature=0.5, noise_scale=0.4, top_k=5),
    "hidden": HIDDEN,
    "hidden-fuzzy": HIDDEN.model_copy(update={"temperature": 1e-4}),
    "logits": LOGITS,
    "logits-top": LOGITS.model_copy(update={"top_k": 5}),
    "gumbel": GUMBEL,
    "gumbel-top": GUMBEL.model_copy(update={"top_k": 5}),
}


def bound(lm: LanguageModel, mode: TokenMode) -> CotTokens:
    return bind(mode, {"embedding": embedding_rms(lm.embedding_VD), **state_rms(lm, PROMPTS)})


def noise_of(tokens: CotTokens, row: int, t: int, width: int) -> torch.Tensor:
    """The draws of one CoT step, by the rules of `Draws` alone: a block is one step."""
    drawn = Draws([KEYS[row]], "cot", tokens.draw_kind, width, torch.device("cpu"), block=1).at(t, np.arange(1))
    assert drawn is not None
    return drawn[0]


def naive_states(lm: LanguageModel, out: Rollout, row: int) -> torch.Tensor:
    """Final hidden states before every completion token of one row, from a plain forward over all it was fed."""
    embedding, prompt = lm.embedding_VD, out.prompts[row // SAMPLES]
    x = fed(out)[row, : out.cot_lengths[row]].to(embedding)
    rest = embedding[out.prefill(row) + out.answers[row]]
    states: torch.Tensor = lm.model.base_model(
        inputs_embeds=torch.cat([embedding[prompt], x, rest])[None]
    ).last_hidden_state[0]
    return states[len(prompt) - 1 : -1]


def score(mode: TokenMode, noise_TX: torch.Tensor, mean_TX: torch.Tensor, sigma: float) -> torch.Tensor:
    """Something whose gradient is that of the log density: the noise's score times the action's mean."""
    if mode.noise == "gumbel":
        return ((1 - torch.exp(-noise_TX)) * mean_TX).sum()
    return (noise_TX / sigma * mean_TX).sum()


def top_only(values_TV: torch.Tensor, k: int | None) -> torch.Tensor:
    """Where a row has its k largest values."""
    rank = values_TV.argsort(-1, descending=True).argsort(-1)
    return rank < (k or values_TV.shape[1])


def naive_gradients(
    lm: LanguageModel, tokens: CotTokens, out: Rollout, advantages: Advantages
) -> dict[str, torch.Tensor]:
    """Row by row in fp64, from the noise and its score: no density, no tile, no shared prompt."""
    exact = in_double(lm)
    mode, sigma, total = tokens.mode, tokens.noise_std, torch.zeros((), dtype=torch.float64)
    for row, answer in enumerate(out.answers):
        length, words = out.cot_lengths[row], len(out.prefill(row))
        states = naive_states(exact, out, row)
        logits = states @ exact.head_VD.T
        log_pi = (logits[length + words :] / SETTINGS.answer_temperature).log_softmax(-1)[range(len(answer)), answer]
        state, z = states[:length], logits[:length]
        kept = top_only(z, mode.top_k)
        if mode.noise_at == "embedding":
            h = (z.masked_fill(~kept, -torch.inf) / mode.temperature).softmax(-1) @ exact.embedding_VD
            cot = score(mode, (fed(out)[row, :length].double() - h.detach()) / sigma, h, sigma)
        elif mode.noise_at == "hidden":
            cot = score(mode, (actions(out)[row, :length].double() - state.detach()) / sigma, state, sigma)
        else:
            draws = torch.stack([noise_of(tokens, row, t, z.shape[1]) for t in range(length)]).double()
            if mode.noise == "gumbel":
                z, draws = z.masked_fill(~kept, -torch.inf).log_softmax(-1), -(-draws.log()).log()
            cot = score(mode, draws[kept], z[kept], sigma)
        total = total - advantages[row] * (log_pi.sum() + cot) / len(advantages)
    total.backward()
    return {name: gradient.float() for name, gradient in take_gradients(exact).items()}


# Training


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen2", False)])
def test_gradients_are_the_noise_s_score_times_the_mean_s_gradient(name: str, family: str, tied: bool) -> None:
    """The pass's densities against scores of the noise, in fp64; the noise of logits is drawn again.

    So it is whatever the micro-batch and the tile.
    """
    lm = tiny_model(family, tied=tied, spread=0.15)
    tokens = bound(lm, MODES[name])
    out, advantages = roll(lm, tokens), make_advantages(len(KEYS))
    assert len(set(out.cot_lengths)) > 2 and len(set(out.stops)) > 1, "rows stop at several steps, for several reasons"
    wanted = naive_gradients(lm, tokens, out, advantages)
    case = (lm, tokens, out, advantages)
    assert_same(gradients(case), wanted, 2e-4)
    assert_same(gradients(case, tiling=SMALL_TILES), wanted, 2e-4)


@pytest.mark.parametrize("name", MODES)
def test_training_sees_the_states_of_the_rollout(name: str) -> None:
    """States, noise drawn again, and head and E give what was fed; the pass's own statistics say so too."""
    lm = tiny_model(tied=False, spread=0.15, seed=2)
    tokens, mode = bound(lm, MODES[name]), MODES[name]
    out = roll(lm, tokens, steps=20)
    sigma = 1.0 if mode.noise == "gumbel" else tokens.noise_std
    with torch.no_grad():
        for row in range(len(KEYS)):
            length = out.cot_lengths[row]
            states = naive_states(lm, out, row)[:length]
            z = states @ lm.head_VD.T
            weighed = torch.where(top_only(z, mode.top_k), z, -torch.inf)
            after: torch.Tensor | float = 0.0
            if mode.noise_at == "hidden":
                mean, weighed = states, actions(out)[row, :length] @ lm.head_VD.T
            elif mode.noise_at == "logits":
                draws = torch.stack([noise_of(tokens, row, t, z.shape[1]) for t in range(length)])
                mean, weighed = z[:, : lm.embedding_VD.shape[1]], weighed.log_softmax(-1) - (-draws.log()).log()
                if mode.noise == "gaussian":
                    weighed = torch.where(top_only(z, mode.top_k), z + sigma * draws, -torch.inf)
            else:
                mean = (weighed / mode.temperature).softmax(-1) @ lm.embedding_VD
                after = sigma * noise_in_blocks(row, length, lm.embedding_VD.shape[1])
            assert (mean - means(out)[row, :length]).abs().max() < 1e-3 * sigma
            x = (weighed / mode.temperature).softmax(-1) @ lm.embedding_VD + after
            sure = weighed.topk(2).values.diff().abs().squeeze(1) > 1e-2  # fuzzy mixtures magnify rounding at ties
            assert (x - fed(out)[row, :length])[sure].abs().max() < 1e-3 * embedding_rms(lm.embedding_VD)
            assert weighed.argmax(-1)[sure].tolist() == np.array(out.cot(row))[sure.numpy()].tolist()
            assert sure.float().mean() > 0.9 or length < 10
    metrics = run_pass((lm, tokens, out, np.ones(len(KEYS)))).as_metrics()
    assert metrics["recomputation_gap"] < 1e-3
    assert metrics["shadow_flips"] < 2 / out.cot_lengths.sum()
    assert abs(metrics["noise_check"] - 1) < 5 * math.sqrt(2 / (32 * out.cot_lengths.sum()))


def noise_in_blocks(row: int, length: int, width: int) -> torch.Tensor:
    draws, drawn = Draws([KEYS[row]], "cot", "normal", width, torch.device("cpu")), []
    for t in range(length):
        now = draws.at(t, np.arange(1))
        assert now is not None
        drawn.append(now[0].clone())
    return torch.stack(drawn)


def test_statistics_see_noise_that_is_not_the_rollout_s() -> None:
    for mode in (LOGITS, GUMBEL):
        lm = tiny_model(spread=0.15)
        tokens = bound(lm, mode)
        out = roll(lm, tokens)
        others = [f"other {key}" for key in KEYS]
        change_record(out, draws=Draws(others, "cot", tokens.draw_kind, 64, lm.device, block=1))
        seen = run_pass((lm, tokens, out, np.ones(len(KEYS))))
        assert seen.as_metrics()["shadow_flips"] > 0.2


@pytest.mark.parametrize("name", ["hidden", "logits-top", "gumbel"])
def test_vocabulary_exists_for_one_tile_at_a_time(name: str) -> None:
    """In the pass; and of what a rollout keeps for it, nothing has the vocabulary and the steps."""
    lm = tiny_model(vocabulary=67, tied=False)
    tokens = bound(lm, MODES[name])
    out = roll(lm, tokens)
    with LargestOfVocabulary(67, 32) as largest:
        gradients((lm, tokens, out, make_advantages(len(KEYS))), tiling=Tiling(TILING.micro_batch_tokens, 5))
    assert largest.rows == 5
    kept = [value for part in (out, record_of(out)) for value in vars(part).values() if isinstance(value, torch.Tensor)]
    assert len(kept) == (4 if name == "hidden" else 3), "entropies, what is fed, its mean, and the action"
    assert all(67 not in tensor.shape for tensor in kept)
    assert name == "hidden" or logit_record(out).draws.values.shape == (len(KEYS), 1, 67)


@pytest.mark.parametrize("name", ["hidden", "logits-top", "gumbel"])
def test_trajectories_depend_on_their_keys_alone(name: str) -> None:
    lm = tiny_model(spread=0.15)
    tokens = bound(lm, MODES[name])
    whole, kept = roll(lm, tokens), roll(lm, tokens, drop_rows=False)
    assert kept.decode_rows > whole.decode_rows
    assert whole.answers == kept.answers
    for row in range(len(KEYS)):
        assert whole.cot(row) == kept.cot(row)


# The estimate is the gradient of the expected reward


SMALL_MODES = {
    "hidden": TokenMode(tokens="soft", temperature=0.5, noise_scale=0.7, noise_at="hidden"),
    "logits-top": TokenMode(tokens="soft", temperature=0.5, noise_scale=1.5, noise_at="logits", top_k=4),
    "gumbel": TokenMode(tokens="soft", temperature=0.7, noise="gumbel"),
}
COT = 2


def placed_reward(problem: small.Problem, frozen: LanguageModel, noise_nTX: torch.Tensor) -> torch.Tensor:
    """Expected reward of soft trajectories of COT steps given their noise, shape (n,), reparametrised in the action.

    A frozen copy of the model says which logits are the top ones and, with its head and E, turns actions into x: what
    the parameters would do to that is no part of the estimate.
    """
    mode, sigma, total = problem.tokens.mode, problem.tokens.noise_std, torch.zeros(len(noise_nTX))
    for prompt, rewards_V in zip(small.PROMPTS, small.REWARD_OF_TOKEN, strict=True):
        embeds = problem.lm.embedding_VD[torch.tensor(prompt)].expand(len(noise_nTX), -1, -1)
        asked = frozen.embedding_VD[torch.tensor(prompt)].expand(len(noise_nTX), -1, -1)
        for t in range(COT):
            state = problem.lm.model.base_model(inputs_embeds=embeds).last_hidden_state[:, -1]
            noise = noise_nTX[:, t]
            if mode.noise_at == "hidden":
                weighed = (state + sigma * noise) @ frozen.head_VD.T
            else:
                z = state @ problem.lm.head_VD.T
                kept = top_only(frozen.model(inputs_embeds=asked).logits[:, -1], mode.top_k)
                z = z.masked_fill(~kept, -torch.inf)
                weighed = z.log_softmax(-1) + noise if mode.noise == "gumbel" else z + sigma * noise
            x = ((weighed / mode.temperature).softmax(-1) @ frozen.embedding_VD)[:, None]
            embeds, asked = torch.cat([embeds, x], 1), torch.cat([asked, x], 1)
        total = total + small.finish(problem, embeds, problem.rules.prefill_after_cut, rewards_V) / len(small.PROMPTS)
    return total


@pytest.mark.thorough
@pytest.mark.parametrize("name", SMALL_MODES)
def test_estimate_is_the_gradient_of_the_expected_reward(name: str) -> None:
    base = small.make_problem("soft", None)
    lm, mode = base.lm, SMALL_MODES[name]
    rms = {"embedding": embedding_rms(lm.embedding_VD), **state_rms(lm, small.PROMPTS)}
    problem = small.Problem(lm, bind(mode, rms), base.rules, Limits(COT, 1, 1.3, "shadow"))
    width = problem.tokens.draw_width(lm.embedding_VD)
    generator = torch.Generator().manual_seed(0)
    if mode.noise == "gumbel":
        noise = gumbel(torch.rand(20_000, COT, width, generator=generator))
    else:
        noise = torch.randn(20_000, COT, width, generator=generator)
    frozen = LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
    along = small.directions(problem, small.estimates(problem, "pilot", 4), small.PARTS, 1)
    truth = functools.partial(placed_reward, problem, frozen, noise)
    small.assert_unbiased(problem, small.estimates(problem, name, 12), truth, along)


# Densities and limits


def test_densities_are_those_of_torch_distributions() -> None:
    """Up to constants, in value and gradient; over the kept logits alone, whose actions are finite."""
    logits, generator = random_logits(20, 30).double().requires_grad_(), torch.Generator().manual_seed(1)
    kept = top_only(logits, 6)
    for mode in (LOGITS, GUMBEL, MODES["logits-top"], MODES["gumbel-top"]):
        tokens = bound_to(mode.model_copy(update={"top_k": mode.top_k and 6}), 0.7)
        assert isinstance(tokens, LogitNoise)
        used = kept if mode.top_k else torch.ones_like(kept)
        uniform = isinstance(tokens, GumbelNoise)
        draw = (torch.rand if uniform else torch.randn)(20, 30, generator=generator, dtype=torch.float64)
        got = tokens.logit_log_density(logits, draw)
        law: torch.distributions.Distribution
        if uniform:
            mean = logits.masked_fill(~used, -torch.inf).log_softmax(-1)[used].view(20, -1)
            law = torch.distributions.Gumbel(mean, 1.0)
            action = mean.detach() + gumbel(draw)[used].view(20, -1)
        else:
            mean = logits[used].view(20, -1)
            law, action = torch.distributions.Normal(mean, 0.7), mean.detach() + 0.7 * draw[used].view(20, -1)
        wanted = law.log_prob(action).sum(-1)  # type: ignore[no-untyped-call]
        difference = (got - wanted).detach()
        torch.testing.assert_close(difference, difference[:1].expand(20), rtol=0, atol=1e-4)
        found, expected = (torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (got, wanted))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert found.isfinite().all() and (found[~used] == 0).all()


def test_gumbel_noise_is_gumbel_noise_at_all_uniforms() -> None:
    noise = gumbel(torch.rand(100_000, generator=torch.Generator().manual_seed(0)))
    assert stats.kstest(noise.numpy(), "gumbel_r").pvalue > 1e-3
    ends = gumbel(torch.tensor([0.0, 1 - 2.0**-24]))
    assert ends.isfinite().all() and ends[0] < -2 and ends[1] > 16
    action = torch.tensor([[0.5, -torch.inf]])
    assert gumbel_log_density(action, torch.tensor([[0.5, -torch.inf]])).item() == -1, "at its mode, -0 - exp(0)"


def test_cold_gumbel_tokens_are_sampled_hard_tokens() -> None:
    """Gumbel-max: as the temperature falls x is a row of E, the shadow's, drawn with the model's probabilities."""
    count, lm, logits = 40_000, tiny_model(vocabulary=32), random_logits(1, 32, seed=4) / 2
    tokens = bind(TokenMode(tokens="soft", temperature=1e-3, noise="gumbel"), {})
    u = torch.rand(count, 32, generator=torch.Generator().manual_seed(0))
    made = step(tokens, lm, logits.expand(count, -1), u)
    near = made.near_tie_N | (gumbel(u) + logits).topk(2).values.diff().abs().squeeze(1).lt(0.02)
    rows = lm.embedding_VD.detach()[made.ids_N]
    torch.testing.assert_close(made.x_ND[~near], rows[~near], rtol=0, atol=1e-5)
    expected = count * logits.double().softmax(-1)[0]
    assert expected.min() > 5 and near.float().mean() < 0.02
    observed = torch.bincount(made.ids_N, minlength=32)
    assert stats.chisquare(observed.numpy(), expected.numpy() * count / expected.sum().item()).pvalue > 1e-3


@pytest.mark.parametrize("mode", [MODES["embedding-top"], LOGITS, GUMBEL, HIDDEN])
def test_all_of_the_vocabulary_is_no_top_k(mode: TokenMode) -> None:
    lm = tiny_model(spread=0.15)
    whole, top = (roll(lm, bound(lm, mode.model_copy(update={"top_k": k}))) for k in (None, 64))
    assert torch.equal(fed(whole), fed(top)) and np.array_equal(whole.cot_ids, top.cot_ids)
    few = roll(lm, bound(lm, mode.model_copy(update={"top_k": 2})))
    assert not torch.equal(fed(few), fed(whole))


def test_top_k_keeps_the_largest() -> None:
    kept = keep_top(random_logits(50, 30), 4)
    assert torch.equal(kept.isfinite(), top_only(random_logits(50, 30), 4))
    tokens = bound_to(TokenMode(tokens="soft", temperature=0.5, top_k=4))
    weights = step(tokens, torch.eye(30), random_logits(50, 30)).x_ND  # E is the identity: x is the weights
    assert ((weights > 0).sum(1) == 4).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(50))


@pytest.mark.parametrize(("mode", "place"), [(HIDDEN, "hidden"), (LOGITS, "logits")])
def test_noise_is_measured_in_units_of_its_place(mode: TokenMode, place: str) -> None:
    """RMS of the last states behind the prompts, and of the logits made of them, prompt by prompt without padding."""
    lm, prompts = tiny_model(tied=False), [[i % 64, 3, *range(i % 7)] for i in range(70)]
    states = []
    for prompt in prompts[:64]:
        ids, _, _ = left_pad([prompt], lm.device)
        with torch.no_grad():
            states.append(lm.model.base_model(ids).last_hidden_state[0, -1].double())
    wanted = {"hidden": torch.stack(states), "logits": torch.stack(states) @ lm.head_VD.detach().double().T}
    rms = state_rms(lm, prompts)
    assert rms[place] == pytest.approx(wanted[place].square().mean().sqrt().item(), rel=1e-5)
    assert bind(mode, rms).noise_std == pytest.approx(0.4 * rms[place])


# Inference only


def test_mixture_of_inputs_is_the_published_one() -> None:
    """Weights (H p_i + (beta + 1 - H) [i = sampled]) / (beta + 1): E is the identity, so x is the weights."""
    logits, u = random_logits(40, 30), torch.rand(40, generator=torch.Generator().manual_seed(0))
    for beta in (0.0, 1.0, 5.0):
        for temperature in (1.0, 0.6):
            mode = TokenMode(tokens="hard", temperature=temperature, inputs_beta=beta)
            made = step(bound_to(mode), torch.eye(30), logits, u)
            p = (logits.double() / temperature).softmax(-1)
            share = torch.distributions.Categorical(probs=p).entropy()[:, None] / math.log(30)
            sampled = torch.nn.functional.one_hot(made.ids_N, 30)
            wanted = (share * p + (beta + 1 - share) * sampled) / (beta + 1)
            torch.testing.assert_close(made.x_ND.double(), wanted, rtol=0, atol=1e-5)
            torch.testing.assert_close(made.x_ND.sum(1), torch.ones(40))
            hard = step(bound_to(TokenMode(tokens="hard", temperature=temperature)), torch.eye(30), logits, u)
            assert torch.equal(made.ids_N, hard.ids_N), "its text is that of hard sampling"


def test_limits_of_mixture_of_inputs() -> None:
    """A large beta, or a distribution without entropy, gives the hard token; beta 0 and a flat one give p E."""
    u, sampled = torch.tensor([0.4]), TokenMode(tokens="hard", temperature=1.0)

    def fed_as(logits: torch.Tensor, beta: float | None) -> torch.Tensor:
        return step(bound_to(sampled.model_copy(update={"inputs_beta": beta})), torch.eye(30), logits, u).x_ND

    logits, sure, flat = random_logits(1, 30), 1000 * torch.eye(30)[4:5], torch.zeros(1, 30)
    torch.testing.assert_close(fed_as(logits, 1e6), fed_as(logits, None), rtol=0, atol=1e-5)
    torch.testing.assert_close(fed_as(sure, 0.0), fed_as(sure, None))
    torch.testing.assert_close(fed_as(flat, 0.0), torch.full((1, 30), 1 / 30))


def test_soft_thinking_stops_after_so_many_sure_steps_and_not_before() -> None:
    """Whether and where a row stops follows from the entropies of the same rollout without that stop."""
    lm = tiny_model(spread=0.1, seed=3)
    plain = TokenMode(tokens="soft", temperature=0.5, noise_scale=1.0, top_k=10)  # noise: entropies go up and down
    endless = roll(lm, bound(lm, plain), steps=30)
    entropies = endless.entropy_NT.numpy()
    inside = np.concatenate([entropies[row, :n] for row, n in enumerate(endless.cot_lengths)])
    threshold = float(np.median(inside))
    for steps in (1, 2, 4):
        mode = plain.model_copy(update={"end_entropy": threshold, "end_entropy_steps": steps})
        out = roll(lm, bound(lm, mode), steps=30)
        sooner = 0
        for row, length in enumerate(endless.cot_lengths):
            below = entropies[row, :length] < threshold
            run = [t for t in range(steps - 1, length) if below[t - steps + 1 : t + 1].all()]
            # Where both ends fall on one step, the text's comes first.
            if run and run[0] + 1 < length:
                sooner += 1
                assert (out.cot_lengths[row], INFERENCE_STOPS[out.stops[row]]) == (run[0] + 1, "entropy")
                assert out.cot(row) == endless.cot(row)[: run[0] + 1]
                assert out.prefill(row) == [6, 7], "the words after a cut"
            else:
                assert (out.cot_lengths[row], out.stops[row] in (endless.stops[row], 3)) == (length, True)
        assert 0 < sooner <= len(KEYS) and (steps == 1 or sooner < len(KEYS))


# From the configuration to files


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "temperature: 0": {"tokens": "soft", "temperature": 0.0, "noise": "gumbel"},
    "top_k: 5 has no effect on hard": {"tokens": "hard", "top_k": 5},
    "noise_at: hidden has no effect on hard": {"tokens": "hard", "noise_at": "hidden"},
    "noise: gumbel has no effect on hard": {"tokens": "hard", "noise": "gumbel", "noise_at": "embedding"},
    "inputs_beta: mixes": {"tokens": "soft", "temperature": 0.5, "inputs_beta": 1.0},
    "nothing is sampled": {"tokens": "hard", "temperature": 0.0, "inputs_beta": 1.0},
    "noise_scale: 0.3 has no effect on Gumbel": {"tokens": "soft", "noise": "gumbel", "noise_scale": 0.3},
    "noise_at: Gumbel noise is added to log-probabilities": {"tokens": "soft", "noise": "gumbel", "noise_at": "hidden"},
    "has no effect without noise": {"tokens": "soft", "noise_at": "logits"},
    "end_entropy_steps: has no effect": {"tokens": "soft", "end_entropy_steps": 3},
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_impossible_modes_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenMode(**IMPOSSIBLE[message])


def test_gumbel_noise_has_one_spelling() -> None:
    assert TokenMode(tokens="soft", noise="gumbel") == TokenMode(tokens="soft", noise="gumbel", noise_at="logits")
    assert not GUMBEL.deterministic and greedy(GUMBEL).deterministic
    assert greedy(GUMBEL).temperature == GUMBEL.temperature


@pytest.mark.parametrize("name", ["hidden", "logits-top", "gumbel"])
def test_a_run_trains_and_keeps_its_units(name: str, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]) -> None:
    """Two steps with save and stop between them equal two steps.

    The checkpoint keeps the base's RMS, with which other modes are tested.
    """
    spec = train_spec(MODES[name], steps=2, max_cot_tokens=8)
    train(spec, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    train(spec, RuntimeSettings(micro_batch_tokens=100, tile_tokens=7), tiny_toy, toy_sets["train"], tmp_path / "other")
    rows = [read_lines(tmp_path / run) for run in ("run", "other")]
    for one, other in zip(*rows, strict=True):
        for key in {"reward", "entropy", "gradient_norm", "noise_check"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=2e-3), f"{key} at step {one['step']}"
    assert all(line["recomputation_gap"] < 1e-3 for line in rows[0] if "recomputation_gap" in line)
    assert any("recomputation_gap" in line for line in rows[0])
    base = Trainer(spec, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "third")
    checkpoint = read(CheckpointManifest, tmp_path / "run" / "checkpoint" / "checkpoint.json")
    assert checkpoint.state_rms == state_rms(
        base.lm, rms_prompts(read_problems(toy_sets["train"], base.lm, Asking(TEMPLATE)))
    )
    assert noise_rms(base.lm, checkpoint, [HIDDEN], [])["hidden"] == checkpoint.state_rms["hidden"]


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_mode_is_evaluated(tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]) -> None:
    """On a base, which has no units of its own yet; a mode's shard is not made again."""
    base_run(base_spec(toy_model()), tiny_toy, tmp_path / "run")
    modes = MODES | {
        "inputs": TokenMode(tokens="hard", temperature=1.0, inputs_beta=1.0),
        "thinking": TokenMode(tokens="soft", temperature=0.6, top_k=5, end_entropy=3.0, end_entropy_steps=2),
    }
    sampled = {
        name: SampledMode(**mode.model_dump(), samples=1 if name == "thinking" else 2) for name, mode in modes.items()
    }
    evaluate(
        evaluation_spec(modes=sampled), RuntimeSettings(), tmp_path / "run", toy_sets["test"], tmp_path / "out.parquet"
    )
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert table.groupby("inference_mode").size().to_dict() == {
        name: 6 * (1 if name == "thinking" else 2) for name in modes
    }
    assert "entropy" in set(table[table.inference_mode == "thinking"].stop)
    assert "entropy" not in set(table[table.inference_mode != "thinking"].stop)
