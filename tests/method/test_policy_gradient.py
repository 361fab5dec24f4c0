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
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from softtok.config.schema import RuntimeSettings, TokenMode, TrainingSettings
from softtok.method.objective import accumulate_gradients, leave_one_out
from softtok.method.rollout import rollout
from softtok.method.token_modes import CotTokens
from softtok.method.trajectories import Limits
from softtok.models.language_model import LanguageModel
from tests.support.tiny_models import TokenRules, tiny_model, token_mode

VOCABULARY, WIDTH, COT_CAP = 6, 8, 3
PROMPTS = [[1, 2], [3, 0, 4]]
REWARD_OF_TOKEN = torch.tensor([[1.0, 0.0, 0.1, 1.0, 0.0, 0.0], [1.0, 0.1, 0.0, 1.0, 1.0, 0.0]])  # per prompt
MODES = {
    "hard": TokenMode(tokens="hard", temperature=0.7),
    "soft": TokenMode(tokens="soft", temperature=0.5, noise_scale=1.0),
}
END = 2  # the answer token that ends an answer before its cap
STOPPERS = [3, 4]  # tokens that end a CoT; with this model and seed neither is close to the first step's argmax

# Whose token may end a CoT: from prompt, x so far (n, t, D) and the last step's logits (n, V) to ids (n,).
Decide = Callable[[list[int], torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """An expected reward small enough to know its gradient. No temperature is 1 and the two prefills differ, lest
    they be forgotten."""

    lm: LanguageModel
    tokens: CotTokens
    rules: TokenRules
    limits: Limits


def make_problem(tokens: str, stop_on: str | None) -> Problem:
    """`stop_on` None: every CoT has COT_CAP tokens."""
    lm = tiny_model(vocabulary=VOCABULARY, width=WIDTH, layers=1, tied=False, spread=0.35, seed=43)
    mode = MODES[tokens]
    rules = TokenRules(
        VOCABULARY,
        phrase=STOPPERS if stop_on else [],
        ends=[END],
        prefill_after_phrase=[5, 4],
        prefill_after_cut=[1],
    )
    return Problem(
        lm, token_mode(lm, mode), rules, Limits(COT_CAP, 2 if tokens == "hard" else 1, 1.3, stop_on or "shadow")
    )


# The estimate


def estimates(problem: Problem, name: str, batches: int, groups: int = 1000, samples: int = 8) -> torch.Tensor:
    """Gradients of the expected reward as training estimates them, each from `groups` x `samples` trajectories, shape
    (K, P). `name` tells their randomness apart."""
    lm, rules, limits = problem.lm, problem.rules, problem.limits
    settings = TrainingSettings(answer_temperature=limits.answer_temperature, stop_on=limits.stop_on)
    runtime = RuntimeSettings(micro_batch_tokens=50_000, tile_tokens=10_000)
    gradients, values = [], REWARD_OF_TOKEN.tolist()
    for batch in range(batches):
        prompts = [PROMPTS[b % len(PROMPTS)] for b in range(groups)]
        keys = [f"{name}|{batch}|{row}" for row in range(groups * samples)]
        out = rollout(lm, rules, problem.tokens, prompts, samples, keys, limits, record=True)
        rewards = [
            sum(values[row // samples % len(PROMPTS)][token] for token in answer) / len(answer)
            for row, answer in enumerate(out.answers)
        ]
        advantages = leave_one_out(torch.tensor(rewards).view(groups, samples)).flatten().numpy()
        lm.model.zero_grad()
        accumulate_gradients(lm, problem.tokens, out, advantages, settings, runtime)
        gradients.append(-torch.cat([parameter.grad.flatten() for parameter in lm.model.parameters()]))
    return torch.stack(gradients)


# The truth


def answer_reward(problem: Problem, embeds_nSD: torch.Tensor, rewards_V: torch.Tensor) -> torch.Tensor:
    """Expected reward of answers after these inputs, shape (n,): the mean of the answer's tokens' rewards."""
    lm, limits = problem.lm, problem.limits
    p_nV = torch.softmax(lm.model(inputs_embeds=embeds_nSD).logits[:, -1] / limits.answer_temperature, -1)
    reward_nV = rewards_V.expand_as(p_nV).clone()
    if limits.max_answer_tokens == 2:
        for token in set(range(VOCABULARY)) - {END}:
            longer = torch.cat([embeds_nSD, lm.embedding_VD[token].expand(len(p_nV), 1, -1)], 1)
            q_nV = torch.softmax(lm.model(inputs_embeds=longer).logits[:, -1] / limits.answer_temperature, -1)
            reward_nV[:, token] = (rewards_V[token] + q_nV @ rewards_V) / 2
    return (p_nV * reward_nV).sum(1)


def finish(problem: Problem, embeds_nSD: torch.Tensor, prefill: list[int], rewards_V: torch.Tensor) -> torch.Tensor:
    """Expected reward after a CoT has ended and `prefill` is fed, shape (n,)."""
    words = problem.lm.embedding_VD[torch.tensor(prefill)].expand(len(embeds_nSD), -1, -1)
    return answer_reward(problem, torch.cat([embeds_nSD, words], 1), rewards_V)


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
            stopped, cut = [], []
            for ids, weight in grown:
                group = stopped if ids[-1] in rules.phrase else cut if step + 1 == COT_CAP else unfinished
                group.append((ids, weight))
            for group, prefill in ((stopped, rules.prefill_after_phrase), (cut, rules.prefill_after_cut)):
                if group:
                    embeds = lm.embedding_VD[torch.tensor([ids for ids, _ in group])]
                    weights = torch.stack([weight for _, weight in group])
                    total = total + weights @ finish(problem, embeds, prefill, rewards_V) / len(PROMPTS)
    return total


def soft_reward(problem: Problem, eps_nTD: torch.Tensor, decide: Decide) -> torch.Tensor:
    """The expected reward of soft trajectories given their noise, shape (n,). `decide` says whose token may end the
    CoT."""
    lm, rules, tokens = problem.lm, problem.rules, problem.tokens
    total = torch.zeros(len(eps_nTD))
    for prompt, rewards_V in zip(PROMPTS, REWARD_OF_TOKEN, strict=True):
        left, x_ntD = torch.arange(len(eps_nTD)), torch.zeros(len(eps_nTD), 0, WIDTH)
        for step in range(COT_CAP):
            asked = lm.embedding_VD[torch.tensor(prompt)].expand(len(left), -1, -1)
            logits_nV = lm.model(inputs_embeds=torch.cat([asked, x_ntD], 1)).logits[:, -1]
            h_nD = torch.softmax(logits_nV / tokens.mode.temperature, -1) @ lm.embedding_VD
            x_ntD = torch.cat([x_ntD, (h_nD + tokens.noise_std * eps_nTD[left, step])[:, None]], 1)
            stopped = torch.isin(decide(prompt, x_ntD, logits_nV), torch.tensor(sorted(rules.phrase), dtype=torch.long))
            cut = ~stopped & (step + 1 == COT_CAP)
            for group, prefill in ((stopped, rules.prefill_after_phrase), (cut, rules.prefill_after_cut)):
                if group.any():
                    embeds = torch.cat([asked[group], x_ntD[group]], 1)
                    total = total.index_add(0, left[group], finish(problem, embeds, prefill, rewards_V) / len(PROMPTS))
            left, x_ntD = left[~stopped], x_ntD[~stopped]
            if len(left) == 0:
                break
    return total


def shadow(prompt: list[int], x_ntD: torch.Tensor, logits_nV: torch.Tensor) -> torch.Tensor:
    """The paper's stop: a function of x and, through the logits, of the parameters."""
    return logits_nV.argmax(-1)


def frozen_shadow(model: torch.nn.Module, prompt: list[int], x_ntD: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """The shadow token of a model that stays as it is: a function of x alone, which agrees with the paper's stop
    before any step."""
    asked = model.get_input_embeddings().weight[torch.tensor(prompt)].expand(len(x_ntD), -1, -1)
    return model(inputs_embeds=torch.cat([asked, x_ntD[:, :-1]], 1)).logits[:, -1].argmax(-1)


def nearest(embedding_VD: torch.Tensor, prompt: list[int], x_ntD: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """The token whose row of a given E is nearest to x: a function of x alone, as long as that E stays as it is."""
    return torch.cdist(x_ntD[:, -1], embedding_VD).argmin(-1)


def directions(
    problem: Problem, pilot_KP: torch.Tensor, parts: dict[str, str], coordinates: int
) -> dict[str, torch.Tensor]:
    """Unit vectors (P,) from a first estimate of the gradient: its parts in parameters whose names hold a given text,
    and of its ten largest coordinates those with the least noise. A rough estimate will do: estimate and truth must
    agree along any direction."""
    gradient_P, named = pilot_KP.mean(0), dict(problem.lm.model.named_parameters())
    owner = np.repeat(list(named), [parameter.numel() for parameter in named.values()])
    masks = {part: np.char.find(owner, text) >= 0 for part, text in parts.items()}
    large = gradient_P.abs().topk(10).indices
    noise = pilot_KP.std(0)[large] / gradient_P[large].abs()
    for index in large[noise.topk(coordinates, largest=False).indices].tolist():
        masks[f"coordinate {index} of {owner[index]}"] = np.arange(len(owner)) == index
    return {
        name: torch.nn.functional.normalize(gradient_P * torch.from_numpy(mask), dim=0) for name, mask in masks.items()
    }


@torch.no_grad()
def finite_difference(
    problem: Problem, expected: Callable[[], torch.Tensor], direction_P: torch.Tensor
) -> torch.Tensor:
    """Central differences of the expected reward's terms (n,) along a direction. Where noise stops a CoT for some
    parameters and not for others, a small step is a noisy one."""
    step = 0.01 if problem.tokens.mode.tokens == "hard" else 0.03
    parameters = list(problem.lm.model.parameters())
    base = torch.nn.utils.parameters_to_vector(parameters)
    values = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(base + sign * step * direction_P, parameters)
        values.append(expected())
    torch.nn.utils.vector_to_parameters(base, parameters)
    return (values[0] - values[1]) / (2 * step)


@dataclass(frozen=True)
class Comparison:
    """Estimate and truth along one direction."""

    estimate: float
    truth: float
    standard_error: float  # of their difference

    @property
    def z(self) -> float:
        return (self.estimate - self.truth) / self.standard_error


def compare(estimates_KP: torch.Tensor, differences: torch.Tensor, direction_P: torch.Tensor) -> Comparison:
    projected = estimates_KP @ direction_P
    variance = projected.var() / len(projected) + (differences.var() / len(differences) if len(differences) > 1 else 0)
    return Comparison(projected.mean().item(), differences.mean().item(), variance.sqrt().item())


def assert_unbiased(
    problem: Problem,
    estimates_KP: torch.Tensor,
    expected: Callable[[], torch.Tensor],
    along: dict[str, torch.Tensor],
) -> None:
    """Within 3 standard errors, themselves below 5 % of the gradient, along every direction."""
    for name, direction_P in along.items():
        seen = compare(estimates_KP, finite_difference(problem, expected, direction_P), direction_P)
        print(f"{name:60s} z {seen.z:5.2f} {seen}")
        assert seen.standard_error < 0.05 * abs(seen.truth), f"{name}: too noisy to tell anything: {seen}"
        assert abs(seen.z) < 3, f"{name}: the estimate is off by {seen.z:.1f} standard errors: {seen}"


PARTS = {"whole": "", "embedding": "embed_tokens", "head": "lm_head", "attention": "self_attn", "mlp": "mlp."}


@pytest.fixture(scope="module")
def noise_nTD() -> torch.Tensor:
    return torch.randn(20_000, COT_CAP, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("stop_on", [None, "shadow"], ids=["fixed-length", "stop-at-token"])
def test_hard_estimate_is_the_gradient_of_the_expected_reward(stop_on: str | None) -> None:
    problem = make_problem("hard", stop_on)
    along = directions(problem, estimates(problem, "pilot", 4), PARTS, 2)
    assert_unbiased(problem, estimates(problem, "hard", 20), functools.partial(hard_reward, problem), along)


@pytest.mark.parametrize("stop_on", [None, "nearest"], ids=["fixed-length", "stop-at-nearest"])
def test_soft_estimate_is_the_gradient_of_the_expected_reward(stop_on: str | None, noise_nTD: torch.Tensor) -> None:
    """The E that decides which token is nearest is held fixed in the truth: what it would do to the stop is no part
    of the estimate."""
    problem = make_problem("soft", stop_on)
    decide = functools.partial(nearest, problem.lm.embedding_VD.detach().clone())
    along = directions(problem, estimates(problem, "pilot", 4), PARTS, 2)
    truth = functools.partial(soft_reward, problem, noise_nTD, decide)
    assert_unbiased(problem, estimates(problem, "soft", 20), truth, along)


def test_shadow_stop_biases_the_estimate(noise_nTD: torch.Tensor) -> None:
    """A property to know: the paper's stop depends on the parameters not only through x, and the
    estimate does not see it. Against the same stops decided by a frozen copy of the model, hence by x alone, the very
    same estimates are right."""
    problem = make_problem("soft", "shadow")
    parts = {"embedding": "embed_tokens", "norm": "post_attention_layernorm"}  # where it shows
    along = directions(problem, estimates(problem, "pilot", 4), parts, 0)
    made = estimates(problem, "shadow", 30)
    frozen = functools.partial(frozen_shadow, copy.deepcopy(problem.lm.model))
    assert_unbiased(problem, made, functools.partial(soft_reward, problem, noise_nTD, frozen), along)

    truth = functools.partial(soft_reward, problem, noise_nTD, shadow)
    for name, direction_P in along.items():
        seen = compare(made, finite_difference(problem, truth, direction_P), direction_P)
        print(f"{name:60s} z {seen.z:5.2f} {seen}")
        assert abs(seen.z) > 5, f"{name}: the shadow stop should bias the estimate: {seen}"
