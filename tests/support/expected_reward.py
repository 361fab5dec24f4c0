"""Expected rewards that are small enough to know their gradient, and estimates of it as training makes them.

Shapes: K batches of samples, n reparametrised samples, P parameters, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from softtok.config.settings import TokenMode, TrainingSettings
from softtok.method.objectives import leave_one_out
from softtok.method.rollout import rollout
from softtok.method.terms import TERMS, Tiling
from softtok.method.token_modes import CotTokens
from softtok.method.trajectories import Batch, Limits, Policy, Rollout
from softtok.models.language_model import LanguageModel
from tests.support.gradients import pass_gradients
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
    """A model and rules whose expected reward is small enough to compute exactly.

    No temperature is 1 and the two prefills differ, so that no test passes without them.
    """

    lm: LanguageModel
    tokens: CotTokens
    rules: TokenRules
    limits: Limits


def make_problem(tokens: str, stop_on: str | None) -> Problem:
    """Returns a problem for a kind of token; with `stop_on` None every CoT has COT_CAP tokens."""
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


def estimates(problem: Problem, name: str, batches: int, groups: int = 1000, samples: int = 8) -> torch.Tensor:
    """Returns gradients of the expected reward as training estimates them, shape (K, P).

    Each is of `groups` x `samples` trajectories. `name` tells their randomness apart.
    """
    return estimates_by(("score",), problem, name, batches, groups, samples)["score"]


def estimates_by(
    estimators: tuple[str, ...], problem: Problem, name: str, batches: int, groups: int = 1000, samples: int = 8
) -> dict[str, torch.Tensor]:
    """Returns `estimates` by each estimator, of the same trajectories: score, pathwise, or answer, its term alone."""
    lm, rules, limits = problem.lm, problem.rules, problem.limits
    given = {"answer_temperature": limits.answer_temperature, "stop_on": limits.stop_on}
    pathwise = {"estimator": "pathwise", "adjoint_iterations": COT_CAP - 1}
    policy = Policy(lm, rules, problem.tokens, limits)
    made: dict[str, list[torch.Tensor]] = {estimator: [] for estimator in estimators}
    for batch in range(batches):
        prompts = [PROMPTS[b % len(PROMPTS)] for b in range(groups)]
        keys = [f"{name}|{batch}|{row}" for row in range(groups * samples)]
        out = rollout(policy, Batch(prompts, samples, keys), record=True)
        case = lm, problem.tokens, out, leave_one_out(rewards(out).view(groups, samples)).flatten().numpy()
        for estimator, gradients in made.items():
            settings = TrainingSettings.model_validate(given | (pathwise if estimator == "pathwise" else {}))
            terms = ("answer",) if estimator == "answer" else TERMS
            parts = pass_gradients(case, settings, terms, tiling=Tiling(50_000, 10_000))
            gradients.append(-torch.cat([gradient.flatten() for gradient in parts.values()]))
    return {estimator: torch.stack(gradients) for estimator, gradients in made.items()}


def rewards(out: Rollout) -> torch.Tensor:
    """Returns the reward of each row: the mean of its answer's tokens'."""
    values = REWARD_OF_TOKEN.tolist()
    return torch.tensor(
        [
            sum(values[row // out.samples % len(PROMPTS)][token] for token in answer) / len(answer)
            for row, answer in enumerate(out.answers)
        ]
    )


def answer_reward(problem: Problem, embeds_nSD: torch.Tensor, rewards_V: torch.Tensor) -> torch.Tensor:
    """Returns the expected reward of answers after these inputs, shape (n,): the mean of the tokens' rewards."""
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
    """Returns the expected reward after a CoT has ended and `prefill` is fed, shape (n,)."""
    words = problem.lm.embedding_VD[torch.tensor(prefill)].expand(len(embeds_nSD), -1, -1)
    return answer_reward(problem, torch.cat([embeds_nSD, words], 1), rewards_V)


def soft_reward(problem: Problem, eps_nTD: torch.Tensor, decide: Decide) -> torch.Tensor:
    """The expected reward of soft trajectories given their noise, shape (n,).

    `decide` says whose token may end the CoT.
    """
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


def frozen_shadow(lm: LanguageModel, prompt: list[int], x_ntD: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """The shadow token of a model that stays as it is: a function of x alone.

    It agrees with the paper's stop before any step.
    """
    asked = lm.embedding_VD[torch.tensor(prompt)].expand(len(x_ntD), -1, -1)
    logits: torch.Tensor = lm.model(inputs_embeds=torch.cat([asked, x_ntD[:, :-1]], 1)).logits
    return logits[:, -1].argmax(-1)


def nearest(embedding_VD: torch.Tensor, prompt: list[int], x_ntD: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """The token whose row of a given E is nearest to x: a function of x alone, as long as that E stays as it is."""
    return torch.cdist(x_ntD[:, -1], embedding_VD).argmin(-1)


def directions(
    problem: Problem, pilot_KP: torch.Tensor, parts: dict[str, str], coordinates: int
) -> dict[str, torch.Tensor]:
    """Returns unit vectors (P,) along parts of a first estimate of the gradient.

    The parts are the parameters whose names hold a given text and, of the ten largest coordinates, those with the
    least noise. A rough estimate is enough: estimate and truth must agree along any direction.
    """
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
    """Returns central differences of the expected reward's terms (n,) along a direction.

    Where noise stops a CoT for some parameters and not for others, a small step is a noisy one.
    """
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
        """The difference in standard errors."""
        return (self.estimate - self.truth) / self.standard_error


def compare(estimates_KP: torch.Tensor, differences: torch.Tensor, direction_P: torch.Tensor) -> Comparison:
    """Compares estimates with finite differences along a direction."""
    projected = estimates_KP @ direction_P
    variance = projected.var() / len(projected) + (differences.var() / len(differences) if len(differences) > 1 else 0)
    return Comparison(projected.mean().item(), differences.mean().item(), variance.sqrt().item())


def assert_unbiased(
    problem: Problem,
    estimates_KP: torch.Tensor,
    expected: Callable[[], torch.Tensor],
    along: dict[str, torch.Tensor],
) -> None:
    """Asserts agreement within 3 standard errors, which are below 5 % of the gradient, along every direction."""
    for name, direction_P in along.items():
        seen = compare(estimates_KP, finite_difference(problem, expected, direction_P), direction_P)
        print(f"{name:60s} z {seen.z:5.2f} {seen}")
        assert seen.standard_error < 0.05 * abs(seen.truth), f"{name}: too noisy to tell anything: {seen}"
        assert abs(seen.z) < 3, f"{name}: the estimate is off by {seen.z:.1f} standard errors: {seen}"


PARTS = {"whole": "", "embedding": "embed_tokens", "head": "lm_head", "attention": "self_attn", "mlp": "mlp."}
