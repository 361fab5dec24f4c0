"""The teacher-forced pass gives the gradient of the plain loss, whatever its tiles, micro-batches and shortcuts.

`naive_loss` is that loss written down without any of them: each row by itself, whole sequence, no cache,
autograd.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softtok.config.settings import TokenMode, TrainingSettings
from softtok.method import policy_gradient
from softtok.method.densities import gaussian_log_density
from softtok.method.objectives import leave_one_out
from softtok.method.teacher_forcing import micro_batches
from softtok.method.terms import TERMS, PassStatistics, Tiling
from softtok.method.trajectories import STOPS
from softtok.models.language_model import LanguageModel
from tests.support.gradients import (
    MODES,
    PROMPTS,
    SAMPLES,
    SETTINGS,
    TILING,
    Case,
    LargestOfVocabulary,
    assert_same,
    in_double,
    make_advantages,
    make_rollout,
    naive_loss,
    run_pass,
    take_gradients,
)
from tests.support.gradients import pass_gradients as gradients
from tests.support.records import change_record, fed, means
from tests.support.tiny_models import tiny_model, token_mode


def make_case(mode: str, family: str = "llama", tied: bool = True) -> Case:
    lm = tiny_model(family, tied=tied)
    tokens = token_mode(lm, MODES[mode])
    out = make_rollout(lm, tokens)
    return lm, tokens, out, make_advantages(len(out.answers))


def naive_gradients(
    case: Case, settings: TrainingSettings = SETTINGS, terms: tuple[str, ...] = TERMS
) -> dict[str, torch.Tensor]:
    """In fp64, so that a difference is the rounding of the code under test alone."""
    lm, tokens, out, advantages = case
    exact = in_double(lm)
    naive_loss(exact, tokens, out, advantages, settings, terms).backward()
    return {name: gradient.float() for name, gradient in take_gradients(exact).items()}


def tolerance_of(mode: str) -> float:
    """Returns the relative difference that rounding may make in a mode.

    fp32 logits are good to about 1e-6, which a mixture at temperature tau sees as 1e-6 / tau; at 1e-4 all of them are
    single rows. At 0.015 there are rows where x rounded differently, by 1e-7, makes this 1e-3 or 2e-2.
    """
    return {"hard": 1e-5, "soft": 1e-4, "fuzzy": 1e-4, "half-fuzzy": 5e-2}[mode]


@given(st.lists(st.lists(st.floats(-100, 100), min_size=4, max_size=4), min_size=1, max_size=3))
def test_leave_one_out_is_the_reward_less_the_mean_of_the_others(rewards: list[list[float]]) -> None:
    advantages = leave_one_out(torch.tensor(rewards, dtype=torch.float64))
    for b, group in enumerate(rewards):
        for g, reward in enumerate(group):
            others = group[:g] + group[g + 1 :]
            assert advantages[b, g].item() == pytest.approx(reward - sum(others) / 3, abs=1e-9)


def test_trajectories_end_in_every_way() -> None:
    """What the comparisons below rest on."""
    for mode in MODES:
        _, _, out, _ = make_case(mode)
        assert set(out.stops.tolist()) == set(range(len(STOPS))), f"{mode}: stops {out.stops}"
        assert len(set(map(len, out.answers))) > 1, f"{mode}: all answers have the same length"
        assert len(set(out.cot_lengths.tolist())) > 2, f"{mode}: CoT lengths {out.cot_lengths}"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False)])
def test_gradients_are_those_of_the_plain_loss(mode: str, family: str, tied: bool) -> None:
    """All rows are in the plain loss, those with advantage zero too; x and the prefilled words carry no loss in it."""
    case = make_case(mode, family, tied)
    for settings in (SETTINGS, SETTINGS.model_copy(update={"embedding_gradient": False})):
        assert_same(gradients(case, settings), naive_gradients(case, settings), tolerance_of(mode))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_do_not_depend_on_micro_batch_or_tile(mode: str) -> None:
    case = make_case(mode)
    whole = gradients(case)
    for micro_batch_tokens, tile_tokens in ((1, 512), (40, 7), (16384, 1)):
        parts = gradients(case, tiling=Tiling(micro_batch_tokens, tile_tokens))
        assert_same(parts, whole, tolerance_of(mode))


@pytest.mark.parametrize("mode", MODES)
def test_terms_add_up(mode: str) -> None:
    case = make_case(mode)
    cot, answer = gradients(case, terms=("cot",)), gradients(case, terms=("answer",))
    assert_same({name: cot[name] + answer[name] for name in cot}, gradients(case), tolerance_of(mode))
    assert_same(answer, naive_gradients(case, terms=("answer",)), tolerance_of(mode))


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_without_cot_term_the_answer_alone_teaches(mode: str) -> None:
    lm, tokens, out, advantages = make_case(mode)
    settings = SETTINGS.model_copy(update={"cot_term": False})
    answer_only = gradients((lm, tokens, out, advantages), settings)
    assert_same(answer_only, naive_gradients((lm, tokens, out, advantages), terms=("answer",)))
    lm.model.zero_grad()
    run_pass((lm, tokens, out, advantages), settings, ("cot",))
    assert all(parameter.grad is None for parameter in lm.model.parameters()), "a CoT term that is off has no gradient"


@pytest.mark.parametrize("mode", ["soft", "fuzzy"])
def test_embedding_gradient_switch_takes_away_that_of_the_mixture_alone(mode: str) -> None:
    """Untied, E is the prompt's and the words' input and the mixture's rows.

    The switch leaves the first, and all other parameters.
    """
    case = make_case(mode, tied=False)
    with_it = gradients(case)
    without = gradients(case, SETTINGS.model_copy(update={"embedding_gradient": False}))
    name = "model.embed_tokens.weight"
    assert (with_it[name] - without[name]).norm() > 0.1 * with_it[name].norm(), "the switch should matter"
    fed_only = naive_gradients(case, SETTINGS.model_copy(update={"embedding_gradient": False}))
    assert_same(without, fed_only, tolerance_of(mode))
    assert_same({**with_it, name: without[name]}, without, 1e-6)


def test_rows_without_advantage_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt whose rewards are all equal costs nothing, and the others' gradients are still divided by all rows."""
    lm, tokens, out, advantages = make_case("soft")
    advantages[SAMPLES : 2 * SAMPLES] = 0
    run: list[int] = []
    hidden = LanguageModel.hidden

    def counted(self: LanguageModel, embeds_NTD: torch.Tensor, *args: Any) -> torch.Tensor:
        run.append(len(embeds_NTD))
        return hidden(self, embeds_NTD, *args)

    monkeypatch.setattr(LanguageModel, "hidden", counted)
    got = gradients((lm, tokens, out, advantages))
    assert run == [2, np.count_nonzero(advantages)], "two prompts and the rows with an advantage"
    monkeypatch.undo()
    assert_same(got, naive_gradients((lm, tokens, out, advantages)), tolerance_of("soft"))


def test_without_any_advantage_there_is_no_gradient() -> None:
    lm, tokens, out, advantages = make_case("soft")
    lm.model.zero_grad()
    seen = run_pass((lm, tokens, out, 0 * advantages))
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert seen == PassStatistics()
    assert seen.as_metrics() == {}


def test_gradients_add_to_what_is_there() -> None:
    case = make_case("hard")
    once = gradients(case)
    run_pass(case)
    assert_same(take_gradients(case[0]), {name: 2 * gradient for name, gradient in once.items()}, 1e-6)


def test_x_is_an_action_and_gets_no_gradient() -> None:
    out = make_case("soft")[2]
    assert not fed(out).requires_grad
    x = torch.zeros(2, 3, requires_grad=True)
    h = torch.ones(2, 3, requires_grad=True)
    gaussian_log_density(x, h, 0.5).sum().backward()
    assert x.grad is None and h.grad is not None
    assert torch.equal(h.grad, torch.full((2, 3), -1 / 0.25))


def test_statistics_see_what_goes_wrong() -> None:
    """A rollout that is not the model's own shows in the metrics: another h, another noise, other argmaxes."""
    lm, tokens, out, advantages = make_case("soft")
    lm.head_VD.data += 0.2 * torch.randn(lm.head_VD.shape, generator=torch.Generator().manual_seed(0))
    metrics = run_pass((lm, tokens, out, advantages)).as_metrics()
    assert metrics["recomputation_gap"] > 0.1
    assert metrics["noise_check"] > 1.1
    assert metrics["shadow_flips"] > 0.1


def test_the_recomputation_gap_is_in_units_of_sigma() -> None:
    lm, tokens, out, advantages = make_case("soft")
    change_record(out, mean_NTD=means(out).clone())
    means(out)[np.flatnonzero(advantages)[0], 0, 3] += 5 * tokens.noise_std
    seen = run_pass((lm, tokens, out, advantages))
    assert seen.gap == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_vocabulary_exists_for_one_tile_at_a_time(mode: str) -> None:
    """The largest tensor with a vocabulary axis, E and head and their gradients aside, has the rows of one tile."""
    lm = tiny_model(vocabulary=67, tied=False)
    tokens = token_mode(lm, MODES[mode])
    out = make_rollout(lm, tokens)
    advantages = make_advantages(len(out.answers))
    with LargestOfVocabulary(67, lm.embedding_VD.shape[1]) as largest:
        gradients((lm, tokens, out, advantages), tiling=Tiling(TILING.micro_batch_tokens, 5))
    assert largest.rows == 5
    assert out.cot_lengths.sum() > 50


def test_micro_batches_hold_every_row_once_within_their_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 40)
    rows = np.flatnonzero(np.arange(40) % 4)
    for budget in (1, 100, 500, 10**6):
        batches = micro_batches(lengths, rows, 20, budget)
        assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
        for batch in batches:
            assert len(batch) == 1 or len(batch) * (20 + lengths[batch].max()) <= budget
        longest = [lengths[batch].max() for batch in batches]
        assert longest == sorted(longest, reverse=True), "rows of like length go together, so that little is padded"


@pytest.mark.parametrize(("tokens", "budget"), [(500, 485), (20, 10)])
def test_the_prompts_are_part_of_what_a_micro_batch_may_hold(
    monkeypatch: pytest.MonkeyPatch, tokens: int, budget: int
) -> None:
    """Their graph lives as long as the pass does; but they leave half to the rows."""
    budgets = []

    def noted(lengths: np.ndarray, rows: np.ndarray, width: int, budget: int) -> list[np.ndarray]:
        budgets.append((width, budget))
        return micro_batches(lengths, rows, width, budget)

    monkeypatch.setattr(policy_gradient, "micro_batches", noted)
    gradients(make_case("hard"), tiling=Tiling(tokens, TILING.tile_tokens))
    assert budgets == [(5, budget)], "three prompts, padded to five tokens"


# TRL as the oracle for hard tokens


def no_reward(completions: list[str], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)


def make_trl(lm: LanguageModel, temperature: float, folder: str) -> Any:
    """TRL's trainer around a copy of a model, on CPU, without anything on top of its loss."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    words = Tokenizer(models.WordLevel({str(i): i for i in range(lm.embedding_VD.shape[0])}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return RLOOTrainer(
        model=copy.deepcopy(lm.model),
        reward_funcs=no_reward,
        args=RLOOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=2,
            num_generations=2,
            gradient_accumulation_steps=1,
            beta=0.0,
            num_iterations=1,
            temperature=temperature,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"prompt": ["1 2", "3 4"]}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1"),
    )


def trl_loss(
    trainer: Any, prompts: list[list[int]], completions: list[list[int]], advantages: np.ndarray
) -> torch.Tensor:
    """TRL's loss at ratio 1."""
    width, length = max(map(len, prompts)), max(map(len, completions))

    def padded(rows: list[list[int]], left: bool, size: int) -> torch.Tensor:
        return torch.tensor([[0] * (size - len(row)) + row if left else row + [0] * (size - len(row)) for row in rows])

    inputs = {
        "prompt_ids": padded(prompts, True, width),
        "prompt_mask": padded([[1] * len(row) for row in prompts], True, width),
        "completion_ids": padded(completions, False, length),
        "completion_mask": padded([[1] * len(row) for row in completions], False, length),
        "advantages": torch.tensor(advantages, dtype=torch.float32),
    }
    with torch.no_grad():
        log_probs, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            length,
        )
    inputs["old_logps"] = (log_probs * inputs["completion_mask"]).sum(1)
    loss: torch.Tensor = trainer.compute_loss(trainer.model, inputs)
    return loss


def test_hard_gradients_equal_trl(tmp_path: Path) -> None:
    """TRL has no mask for words that were not sampled, so it sees each trajectory twice.

    The CoT is the completion of the prompt, and the answer the completion of all before it; the prefilled words are
    then part of a prompt.
    """
    lm = tiny_model(tied=False)
    tokens = token_mode(lm, TokenMode(tokens="hard", temperature=SETTINGS.answer_temperature))
    out = make_rollout(lm, tokens)
    rewards = torch.tensor([sum(answer) % 7 / 7 for answer in out.answers]).view(len(PROMPTS), SAMPLES)
    advantages = leave_one_out(rewards).flatten().numpy()

    trainer = make_trl(lm, SETTINGS.answer_temperature, str(tmp_path))
    rows = range(len(out.answers))
    prompts = [out.prompts[row // SAMPLES] for row in rows]
    thoughts = [out.cot(row) for row in rows]
    before_answer = [prompts[row] + thoughts[row] + out.prefill(row) for row in rows]
    loss = trl_loss(trainer, prompts, thoughts, advantages) + trl_loss(trainer, before_answer, out.answers, advantages)
    loss.backward()
    wanted = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    assert_same(gradients((lm, tokens, out, advantages)), wanted, 1e-5)
