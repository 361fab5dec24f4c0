"""The gradient through soft thoughts in plain code, twice: through a whole rollout, and as a series of Jacobians.

Each row is run by itself, as a whole sequence, without a cache, in the precision of the model that is given. The noise
of the rollout is held fixed. The loss is -1/N sum A log pi(answer | x), less `entropy_bonus` times the mean over the
rows of the entropy at their CoT tokens.

Shapes: T CoT steps, S positions, D width, V vocabulary, W width of the noise (D or V).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from softtok.config.settings import TokenMode, TrainingSettings
from softtok.method.token_modes import CotTokens
from softtok.method.trajectories import Rollout
from softtok.models.language_model import LanguageModel
from tests.support.gradients import SETTINGS, Case, in_double, take_gradients
from tests.support.records import actions, fed, logit_record, means

# With this noise the logits of a step differ between the samples of a prompt, wherever it lies.
PLACES = {
    "embedding": TokenMode(tokens="soft", temperature=0.5, noise_scale=0.5),
    "hidden": TokenMode(tokens="soft", temperature=0.7, noise_scale=1.0, noise_at="hidden"),
    "logits": TokenMode(tokens="soft", temperature=0.7, noise_scale=3.0, noise_at="logits"),
    "gumbel": TokenMode(tokens="soft", temperature=0.7, noise="gumbel"),
}
TOP_K = {f"{place}-top-k": mode.model_copy(update={"top_k": 6}) for place, mode in PLACES.items()}


def pathwise(iterations: int, settings: TrainingSettings = SETTINGS) -> TrainingSettings:
    """Returns the settings with the pathwise estimator, and so many adjoint iterations."""
    return settings.model_copy(update={"estimator": "pathwise", "adjoint_iterations": iterations})


def noise_of(tokens: CotTokens, out: Rollout, row: int) -> torch.Tensor:
    """Returns the noise of a row's steps in fp64, shape (T, W): from the record, or drawn again."""
    kind, steps = tokens.mode.kind, np.arange(out.cot_lengths[row])
    if kind == "embedding":
        return fed(out)[row, : len(steps)].double() - means(out)[row, : len(steps)].double()
    if kind == "hidden":
        return actions(out)[row, : len(steps)].double() - means(out)[row, : len(steps)].double()
    drawn = logit_record(out).draws.again(np.full_like(steps, row), steps).double()
    return tokens.noise_std * drawn if kind == "logits" else -(-drawn.clamp(min=2.0**-25).log()).log()


@dataclass(frozen=True)
class PlainRow:
    """One row of a rollout, to be run again with a graph."""

    lm: LanguageModel
    tokens: CotTokens
    out: Rollout
    row: int
    settings: TrainingSettings

    @property
    def recorded(self) -> torch.Tensor:
        """What the rollout fed at the CoT steps, shape (T, D)."""
        return fed(self.out)[self.row, : len(self.out.cot(self.row))].to(self.lm.dtype)

    @property
    def prompt(self) -> torch.Tensor:
        """The prompt's rows of E, shape (S, D)."""
        return self.lm.embedding_VD[self.out.prompts[self.row // self.out.samples]]

    def states(self, embeds_SD: torch.Tensor) -> torch.Tensor:
        """Returns the final hidden states of a sequence, shape (S, D)."""
        states: torch.Tensor = self.lm.model.base_model(inputs_embeds=embeds_SD[None]).last_hidden_state[0]
        return states

    def feed(self, states_TD: torch.Tensor, noise_TW: torch.Tensor) -> torch.Tensor:
        """Returns what is fed after these states with this noise, F, shape (T, D)."""
        mode, embedding_VD, noise_TW = self.tokens.mode, self.lm.embedding_VD, noise_TW.to(states_TD)
        logits_TV = (states_TD + noise_TW if mode.kind == "hidden" else states_TD) @ self.lm.head_VD.T
        if mode.top_k is not None:
            rank_TV = logits_TV.detach().argsort(-1, descending=True).argsort(-1)
            logits_TV = logits_TV.masked_fill(rank_TV >= mode.top_k, -torch.inf)
        if mode.kind == "logits":
            logits_TV = logits_TV + noise_TW
        if mode.kind == "gumbel":
            logits_TV = logits_TV.log_softmax(-1) + noise_TW
        learned_VD = embedding_VD if self.settings.embedding_gradient else embedding_VD.detach()
        h_TD = (logits_TV / mode.temperature).softmax(-1) @ learned_VD
        return h_TD + noise_TW if mode.kind == "embedding" else h_TD

    def answer_log_prob(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Returns log pi(answer | prompt, x, prefilled words)."""
        words, answer = self.out.prefill(self.row), self.out.answers[self.row]
        embeds_SD = torch.cat([self.prompt, x_TD, self.lm.embedding_VD[words + answer]])
        logits_SV = self.states(embeds_SD)[-len(answer) - 1 : -1] @ self.lm.head_VD.T
        return (logits_SV / self.settings.answer_temperature).log_softmax(-1)[range(len(answer)), answer].sum()

    def entropies(self, states_TD: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the entropies at temperature 1 of what these states predict."""
        log_p_TV = (states_TD @ self.lm.head_VD.T).log_softmax(-1)
        return -(log_p_TV.exp() * log_p_TV).sum()

    def before(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Returns the states that predict the CoT tokens, shape (T, D)."""
        return self.states(torch.cat([self.prompt, x_TD]))[len(self.prompt) - 1 : -1]

    def think(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes the thoughts one by one, each with a graph to those before it; returns x (T, D) and their entropies.

        The graph is that of F, the value the recorded one: what fp32 rounded in the rollout does not grow over steps.
        """
        recorded_TD, noise_TW, x_TD = self.recorded, noise_of(self.tokens, self.out, self.row), self.recorded[:0]
        entropies = torch.zeros((), dtype=self.lm.dtype)
        for step, recorded_D in enumerate(recorded_TD):
            state_1D = self.states(torch.cat([self.prompt, x_TD]))[-1:]
            x_1D = self.feed(state_1D, noise_TW[step : step + 1])
            assert (x_1D - recorded_D).abs().max() < 1e-4, "the plain rollout makes the recorded thoughts"
            x_TD = torch.cat([x_TD, x_1D + (recorded_D - x_1D).detach()])
            entropies = entropies + self.entropies(state_1D)
        return x_TD, entropies


def plain_rows(case: Case, settings: TrainingSettings) -> Iterator[tuple[PlainRow, float]]:
    """Yields the rows that contribute, with their advantages."""
    lm, tokens, out, advantages = case
    for row, advantage in enumerate(advantages):
        if advantage != 0 or settings.entropy_bonus > 0:
            yield PlainRow(lm, tokens, out, row, settings), float(advantage)


def rollout_gradients(case: Case, settings: TrainingSettings = SETTINGS) -> dict[str, torch.Tensor]:
    """Returns the gradient of the loss by autograd through a whole rollout, made in fp64."""
    exact = (in_double(case[0]), *case[1:])
    total = torch.zeros((), dtype=torch.float64)
    for plain, advantage in plain_rows(exact, settings):
        x_TD, entropies = plain.think()
        total = total - advantage * plain.answer_log_prob(x_TD) - settings.entropy_bonus * entropies
    (total / len(case[3])).backward()
    return as_fp32(exact[0])


@dataclass(frozen=True)
class Series:
    """The truncated series in plain code, and what a pass should tell of it."""

    gradients: dict[str, torch.Tensor]
    residual: float  # |lambda_(K+1) - lambda_K| / |lambda_(K+1)|, over all rows
    growth: float  # largest |lambda_K| / |g| of a row


def series(case: Case, iterations: int, settings: TrainingSettings = SETTINGS) -> Series:
    """Returns dL/dtheta at fixed x plus <lambda_K, F>'s, with lambda_K = sum_(j <= K) (J^T)^j g and J as a matrix."""
    exact = (in_double(case[0]), *case[1:])
    steps, sizes, growths = [], [], []
    for plain, advantage in plain_rows(exact, settings):
        x_TD, noise_TW = plain.recorded, noise_of(plain.tokens, plain.out, plain.row)

        def loss(x_TD: torch.Tensor, plain: PlainRow = plain, advantage: float = advantage) -> torch.Tensor:
            bonus = settings.entropy_bonus * plain.entropies(plain.before(x_TD))
            return (-advantage * plain.answer_log_prob(x_TD) - bonus) / len(case[3])

        def feed(x_TD: torch.Tensor, plain: PlainRow = plain, noise_TW: torch.Tensor = noise_TW) -> torch.Tensor:
            return plain.feed(plain.before(x_TD), noise_TW)

        g_TD, jacobian_TDTD = gradient_at(loss, x_TD), jacobian_at(feed, x_TD)
        adjoint_TD, next_TD = g_TD, g_TD + torch.einsum("sdte,sd->te", jacobian_TDTD, g_TD)
        for _ in range(iterations):
            adjoint_TD, next_TD = next_TD, g_TD + torch.einsum("sdte,sd->te", jacobian_TDTD, next_TD)
        (loss(x_TD) + (adjoint_TD * feed(x_TD)).sum()).backward()
        steps.append((next_TD - adjoint_TD).square().sum())
        sizes.append(next_TD.square().sum())
        growths.append((adjoint_TD.norm() / g_TD.norm()).item())
    residual = (torch.stack(steps).sum() / torch.stack(sizes).sum()).sqrt().item()
    return Series(as_fp32(exact[0]), residual, max(growths))


def gradient_at(function: Callable[[torch.Tensor], torch.Tensor], x_TD: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of a number with respect to x, shape (T, D), and nothing for the parameters."""
    leaf_TD = x_TD.clone().requires_grad_()
    gradient: torch.Tensor = torch.autograd.grad(function(leaf_TD), leaf_TD)[0]
    return gradient


def jacobian_at(function: Callable[[torch.Tensor], torch.Tensor], x_TD: torch.Tensor) -> torch.Tensor:
    """Returns d F_sd / d x_te, shape (T, D, T, D); a step depends on those before it alone."""
    jacobian: torch.Tensor = torch.autograd.functional.jacobian(function, x_TD)
    later = torch.arange(len(x_TD))[:, None] <= torch.arange(len(x_TD))
    assert jacobian.permute(0, 2, 1, 3)[later].abs().max() == 0, "no step depends on itself or on later ones"
    return jacobian


def as_fp32(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """Returns the gradients that have added up in a copy in fp64."""
    return {name: gradient.float() for name, gradient in take_gradients(lm).items()}
