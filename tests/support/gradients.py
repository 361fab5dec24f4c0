"""Recorded rollouts of tiny models, the paper's loss on them without any shortcut, and comparisons of gradients."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from softtok.config.settings import RuntimeSettings, TokenMode, TrainingSettings
from softtok.method.objectives import objective_of
from softtok.method.policy_gradient import accumulate_gradients
from softtok.method.rollout import rollout
from softtok.method.terms import TERMS, Experience, Loss, PassStatistics, Tiling
from softtok.method.token_modes import CotTokens, SoftTokens
from softtok.method.trajectories import Batch, Limits, Policy, Rollout
from softtok.models.language_model import LanguageModel
from tests.support.records import fed
from tests.support.tiny_models import TokenRules

MODES = {
    "hard": TokenMode(tokens="hard", temperature=0.7),
    "soft": TokenMode(tokens="soft", temperature=0.5, noise_scale=0.5),
    "fuzzy": TokenMode(tokens="soft", temperature=1e-4, noise_scale=0.5),
    # Between the two: by the shortcut's rule a third of the mixtures are single rows of E here.
    "half-fuzzy": TokenMode(tokens="soft", temperature=0.015, noise_scale=0.5),
}
SETTINGS = TrainingSettings(answer_temperature=1.3)
TILING = Tiling.of(RuntimeSettings())
SMALL_TILES = Tiling(micro_batch_tokens=40, tile_tokens=7)
PROMPTS = [[3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14]]
SAMPLES = 8
Advantages = npt.NDArray[np.float64]  # (N,)
Case = tuple[LanguageModel, CotTokens, Rollout, Advantages]
KEYS = [f"row{row}" for row in range(len(PROMPTS) * SAMPLES)]


def make_rollout(
    lm: LanguageModel,
    tokens: CotTokens,
    steps: int = 7,
    *,
    drop_rows: bool = True,
    prompts: list[list[int]] = PROMPTS,
) -> Rollout:
    """Returns trajectories that end in every way: by the phrase, by EOS and at the cap."""
    size = lm.embedding_VD.shape[0]
    rules = TokenRules(size, phrase=range(20, 32), eos=range(32, 38), ends=range(10, 24))
    limits = Limits(steps, 4, SETTINGS.answer_temperature, "shadow")
    batch = Batch(prompts, SAMPLES, KEYS)
    return rollout(Policy(lm, rules, tokens, limits), batch, record=True, drop_rows=drop_rows)


def make_advantages(count: int) -> Advantages:
    """Returns advantages of both signs, and zero for every third row."""
    return np.where(np.arange(count) % 3 == 0, 0.0, np.random.default_rng(0).normal(size=count))


def run_pass(
    case: Case,
    settings: TrainingSettings = SETTINGS,
    terms: tuple[str, ...] = TERMS,
    *,
    tiling: Tiling = TILING,
    reference: LanguageModel | None = None,
    old_log_prob_NL: torch.Tensor | None = None,
) -> PassStatistics:
    """Runs the pass of the code under test over a case, which adds to `.grad`."""
    lm, tokens, out, advantages = case
    loss = Loss(settings, objective_of(settings), tiling, reference)
    experience = Experience(out, advantages, old_log_prob_NL)
    return accumulate_gradients(lm, tokens, experience, loss, terms)


def pass_gradients(
    case: Case,
    settings: TrainingSettings = SETTINGS,
    terms: tuple[str, ...] = TERMS,
    *,
    tiling: Tiling = TILING,
    reference: LanguageModel | None = None,
    old_log_prob_NL: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Returns what `run_pass` adds to `.grad`."""
    case[0].model.zero_grad()
    run_pass(case, settings, terms, tiling=tiling, reference=reference, old_log_prob_NL=old_log_prob_NL)
    return take_gradients(case[0])


def naive_loss(
    lm: LanguageModel,
    tokens: CotTokens,
    out: Rollout,
    advantages: Advantages,
    settings: TrainingSettings = SETTINGS,
    terms: tuple[str, ...] = TERMS,
) -> torch.Tensor:
    """Returns the paper's loss, row by row."""
    embedding, total = lm.embedding_VD, torch.zeros((), dtype=lm.dtype)
    for row, answer in enumerate(out.answers):
        prompt, cot, words = out.prompts[row // out.samples], out.cot(row), out.prefill(row)
        x = fed(out)[row, : len(cot)].to(embedding) if isinstance(tokens, SoftTokens) else embedding[cot]
        inputs = torch.cat([embedding[prompt], x, embedding[words], embedding[answer]])
        logits = lm.model(inputs_embeds=inputs[None]).logits[0]
        before_cot = logits[len(prompt) - 1 :][: len(cot)] / tokens.mode.temperature
        before_answer = logits[len(prompt) + len(cot) + len(words) - 1 :][: len(answer)] / settings.answer_temperature
        log_pi = torch.zeros((), dtype=lm.dtype)
        if "cot" in terms and not isinstance(tokens, SoftTokens):
            log_pi = log_pi + before_cot.log_softmax(-1)[range(len(cot)), cot].sum()
        elif "cot" in terms:
            h = before_cot.softmax(-1) @ (embedding if settings.embedding_gradient else embedding.detach())
            log_pi = log_pi - (x - h).square().sum() / (2 * tokens.noise_std**2)
        if "answer" in terms:
            log_pi = log_pi + before_answer.log_softmax(-1)[range(len(answer)), answer].sum()
        total = total - advantages[row] * log_pi / len(advantages)
    return total


def in_double(lm: LanguageModel) -> LanguageModel:
    """Returns a copy in fp64 without gradients: a difference is then the rounding of the code under test alone."""
    exact = LanguageModel(copy.deepcopy(lm.model).double(), lm.tokenizer, lm.name)
    exact.model.zero_grad()
    return exact


def take_gradients(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """Returns a copy of each parameter's gradient by name, zeros where there is none."""
    named = lm.model.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Asserts that gradients agree, parameter by parameter.

    The difference is relative to the parameter's gradient's norm, or to a thousandth of the whole gradient's norm
    where that is larger.
    """
    assert got.keys() == wanted.keys()
    whole = torch.stack([gradient.norm() for gradient in wanted.values()]).norm().item()
    assert whole > 0, "the comparison needs a gradient"
    for name, gradient in wanted.items():
        gap = (got[name] - gradient).norm().item() / max(gradient.norm().item(), 1e-3 * whole)
        assert gap <= tolerance, f"{name}: relative difference {gap:.1e}"


class LargestOfVocabulary(TorchDispatchMode):
    """Finds the most rows of any tensor with a vocabulary axis, backward passes included, parameters aside."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary, self.parameter, self.rows = vocabulary, {vocabulary, width}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor) or set(tensor.shape) == self.parameter:
                continue
            if self.vocabulary in tensor.shape:
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return result
