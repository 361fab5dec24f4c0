"""The mean of the policy-gradient estimate is the gradient of the expected reward.

The estimate takes the way of training: rollouts of many small groups, leave-one-out advantages, the teacher-forced
pass. The truth comes from plain code that shares nothing with it: whole sequences through the model, without cache,
padding or shared prompts. Hard trajectories are enumerated; soft ones are reparametrised (x = h + sigma eps) with
common random numbers, and their answers summed up exactly. Its finite differences are compared with the estimate
along the gradient and along a few large parts of it.

Shapes: K batches of samples, n reparametrised samples, P parameters, T CoT steps, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from softtok.models.language_model import LanguageModel
from tests.support.expected_reward import (
    COT_CAP,
    PARTS,
    PROMPTS,
    REWARD_OF_TOKEN,
    VOCABULARY,
    WIDTH,
    Problem,
    assert_unbiased,
    compare,
    directions,
    estimates,
    finish,
    finite_difference,
    frozen_shadow,
    make_problem,
    nearest,
    shadow,
    soft_reward,
)


def hard_reward(problem: Problem) -> torch.Tensor:
    """The expected reward of hard trajectories by enumeration, shape (1,)."""
    lm, rules = problem.lm, problem.rules
    total = torch.zeros(1)
    for prompt, rewards_V in zip(PROMPTS, REWARD_OF_TOKEN, strict=True):
        unfinished = [(prompt, torch.ones(()))]
        for step in range(COT_CAP):
            grown = []
            for ids, weight in unfinished:
                logits_V = lm.model(inputs_embeds=lm.embedding_VD[torch.tensor([ids])]).logits[0, -1]
                p_V = torch.softmax(logits_V / problem.tokens.mode.temperature, -1)
                grown += [([*ids, token], weight * p_V[token]) for token in range(VOCABULARY)]
            unfinished = []
            stopped: list[tuple[list[int], torch.Tensor]] = []
            cut: list[tuple[list[int], torch.Tensor]] = []
            for ids, weight in grown:
                group = stopped if ids[-1] in rules.phrase else cut if step + 1 == COT_CAP else unfinished
                group.append((ids, weight))
            for group, prefill in ((stopped, rules.prefill_after_phrase), (cut, rules.prefill_after_cut)):
                if group:
                    embeds = lm.embedding_VD[torch.tensor([ids for ids, _ in group])]
                    weights = torch.stack([weight for _, weight in group])
                    total = total + weights @ finish(problem, embeds, prefill, rewards_V) / len(PROMPTS)
    return total


@pytest.fixture(scope="module")
def noise_nTD() -> torch.Tensor:
    return torch.randn(20_000, COT_CAP, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.thorough
@pytest.mark.parametrize("stop_on", [None, "shadow"], ids=["fixed-length", "stop-at-token"])
def test_hard_estimate_is_the_gradient_of_the_expected_reward(stop_on: str | None) -> None:
    problem = make_problem("hard", stop_on)
    along = directions(problem, estimates(problem, "pilot", 4), PARTS, 2)
    assert_unbiased(problem, estimates(problem, "hard", 20), functools.partial(hard_reward, problem), along)


@pytest.mark.thorough
@pytest.mark.parametrize("stop_on", [None, "nearest"], ids=["fixed-length", "stop-at-nearest"])
def test_soft_estimate_is_the_gradient_of_the_expected_reward(stop_on: str | None, noise_nTD: torch.Tensor) -> None:
    """The E that decides which token is nearest is held fixed in the truth.

    What it would do to the stop is no part of the estimate.
    """
    problem = make_problem("soft", stop_on)
    decide = functools.partial(nearest, problem.lm.embedding_VD.detach().clone())
    along = directions(problem, estimates(problem, "pilot", 4), PARTS, 2)
    truth = functools.partial(soft_reward, problem, noise_nTD, decide)
    assert_unbiased(problem, estimates(problem, "soft", 20), truth, along)


@pytest.mark.slow
def test_shadow_stop_biases_the_estimate(noise_nTD: torch.Tensor) -> None:
    """A property to know: the paper's stop depends on the parameters not only through x.

    The estimate does not see it. Against the same stops decided by a frozen copy of the model, hence by x alone, the
    very same estimates are right.
    """
    problem = make_problem("soft", "shadow")
    parts = {"embedding": "embed_tokens", "norm": "post_attention_layernorm"}  # where it shows
    along = directions(problem, estimates(problem, "pilot", 4), parts, 0)
    made = estimates(problem, "shadow", 30)
    frozen = functools.partial(
        frozen_shadow, LanguageModel(copy.deepcopy(problem.lm.model), problem.lm.tokenizer, "frozen")
    )
    assert_unbiased(problem, made, functools.partial(soft_reward, problem, noise_nTD, frozen), along)

    truth = functools.partial(soft_reward, problem, noise_nTD, shadow)
    for name, direction_P in along.items():
        seen = compare(made, finite_difference(problem, truth, direction_P), direction_P)
        print(f"{name:60s} z {seen.z:5.2f} {seen}")
        assert abs(seen.z) > 5, f"{name}: the shadow stop should bias the estimate: {seen}"
