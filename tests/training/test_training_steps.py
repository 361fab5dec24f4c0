"""A training step by its numbers: who is rolled out how, which reward goes to which answer, what is logged.

And what a run that starts again may go on from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from softtok.config.settings import RuntimeSettings, TokenMode
from softtok.errors import UserError
from softtok.method.batches import to_judge
from softtok.method.objectives import leave_one_out
from softtok.method.rollout import rollout
from softtok.method.trajectories import Batch
from softtok.problems.reward import Answer
from softtok.storage.files import read_json
from softtok.training import optimizer
from softtok.training.train import Trainer, prompts_of_step, train
from tests.support.damage import changed_copy
from tests.support.specs import FUZZY, HARD, SOFT
from tests.support.specs import train_spec as spec

SEED = 5
Calls = list[tuple[tuple[Any, ...], Any]]
Steps = tuple[Trainer, list[SimpleNamespace]]
Diverged = tuple[Path, Callable[[], None]]


def watched(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> Calls:
    """(arguments, result) of each call of a method from now on."""
    calls: Calls = []
    method = getattr(owner, name)

    def noted(*arguments: Any) -> Any:
        result = method(*arguments)
        calls.append((arguments, result))
        return result

    monkeypatch.setattr(owner, name, noted)
    return calls


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Steps:
    """Three steps of two prompts with eight samples each, both terms logged apart.

    Returns the trainer, and for each step its line of the log, what was judged with its verdicts, and the passes and
    the updates that were made.
    """
    settings = spec(SOFT, reward_boxed=3.0, learning_rate=1e-3, warmup_steps=4, validate_every=1)
    made = []
    with pytest.MonkeyPatch.context() as patch:
        trainer = Trainer(settings, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path_factory.mktemp("run"))
        judged = watched(patch, trainer.judge, "grade")
        passes = watched(patch, trainer, "accumulate")
        updates = watched(patch, trainer.optimizer, "step")
        with trainer.judge:
            for number in (1, 2, 3):
                for calls in (judged, passes, updates):
                    calls.clear()
                line = trainer.take_step(number)
                (((items,), verdicts),) = judged
                made.append(
                    SimpleNamespace(
                        number=number, line=line, items=items, verdicts=verdicts,
                        passes=[arguments for arguments, _ in passes], updates=[given for (given, _), _ in updates],
                    )
                )  # fmt: skip
    return trainer, made


def test_an_answer_is_judged_by_the_gold_of_its_own_prompt(steps: Steps) -> None:
    trainer, made = steps
    for step in made:
        out = step.passes[0][0].rollout
        problems = prompts_of_step(step.number, trainer.problems, trainer.settings, trainer.seed)
        assert problems[0].golds != problems[1].golds
        texts = [trainer.policy.rules.answer_text(out.prefill(row), out.answers[row]) for row in range(16)]
        assert [(answer.text, answer.golds) for answer in step.items] == [
            (text, problems[row // 8].golds) for row, text in enumerate(texts)
        ]


def test_an_answer_is_credited_with_its_own_reward_against_its_own_group(steps: Steps) -> None:
    _, made = steps
    for step in made:
        rewards = torch.tensor([verdict.reward for verdict in step.verdicts])
        assert set(rewards.tolist()) <= {0.0, 3.0, 100.0}, "a box is worth what the settings say"
        wanted = leave_one_out(rewards.view(2, 8)).flatten()
        for experience, _ in step.passes:
            np.testing.assert_allclose(experience.advantages_N, wanted, rtol=1e-6)
        assert step.line["reward"] == pytest.approx(rewards.mean().item())
    assert {3.0, 100.0} <= {verdict.reward for step in made for verdict in step.verdicts}


def test_shares_of_right_and_of_boxed_answers_are_told_apart(steps: Steps) -> None:
    _, made = steps
    for step in made:
        verdicts = step.verdicts
        assert step.line["correct"] == 100 * np.mean([verdict.status == "correct" for verdict in verdicts])
        assert step.line["boxed"] == 100 * np.mean([verdict.boxed is not None for verdict in verdicts])
    assert any(0 < step.line["correct"] < step.line["boxed"] for step in made)


def test_each_term_has_a_gradient_norm_of_its_own_and_both_make_one_update(steps: Steps) -> None:
    _, made = steps
    for step in made:
        assert [terms for _, terms in step.passes] == [("cot",), ("answer",), ("cot", "answer")]
        assert step.updates == [step.number], "the learning rate is that of the step"


@pytest.mark.parametrize("mode", [HARD, SOFT], ids=["hard", "soft"])
def test_training_samples_and_validation_is_greedy(
    mode: TokenMode, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], rollouts: list[SimpleNamespace]
) -> None:
    trainer = Trainer(spec(mode, answer_temperature=1.3), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)
    with trainer.judge:
        line = trainer.take_step(1)
        trainer.validate()
    training, *validation = rollouts
    assert (training.tokens.mode.temperature, training.tokens.mode.noise_scale, training.limits.answer_temperature) == (
        mode.temperature, mode.noise_scale, 1.3,
    )  # fmt: skip
    assert training.record
    assert line["entropy"] == 2.0, "the mean over thinking steps alone"
    for asked in validation:
        assert (asked.tokens.draw_kind, asked.limits.answer_temperature) == ("none", 0.0)
        assert asked.tokens.mode.tokens == mode.tokens, "in the run's own mode"
        assert asked.tokens.mode.temperature == (0.0 if mode is HARD else mode.temperature)


def test_validation_is_the_percentage_of_held_out_problems_that_are_solved(
    tmp_path: Path,
    tiny_toy: Path,
    toy_sets: dict[str, Path],
    rollouts: list[SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = Trainer(spec(), RuntimeSettings(rollout_rows=3), tiny_toy, toy_sets["train"], tmp_path)
    judged: list[Answer] = []

    def six_are_right(items: list[Answer]) -> list[SimpleNamespace]:
        judged.extend(items)
        return [SimpleNamespace(correct=place < 6) for place in range(len(judged) - len(items), len(judged))]

    monkeypatch.setattr(trainer.judge, "grade", six_are_right)
    assert trainer.validate() == 75.0
    (validation,) = rollouts
    assert validation.keys == [problem.id for problem in trainer.validation] and len(validation.keys) == 8
    out = rollout(trainer.greedy, Batch(validation.prompts, 1, validation.keys))
    wanted = to_judge(trainer.greedy.rules, out, trainer.validation)
    assert sorted(judged, key=str) == sorted(wanted, key=str), "each by its own gold"


def test_no_two_samples_of_training_draw_the_same_noise(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], rollouts: list[SimpleNamespace]
) -> None:
    """Over samples, steps, epochs and seeds."""
    for seed in (0, 1):
        settings = spec(HARD, prompts_per_step=1, samples_per_prompt=2, max_cot_tokens=2, max_answer_tokens=1)
        trainer = Trainer(
            settings.model_copy(update={"seed": seed}), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path
        )
        trainer.problems = trainer.problems[:2]
        with trainer.judge:
            for step in (1, 2, 3, 4):
                trainer.take_step(step)
    keys = [key for asked in rollouts if asked.record for key in asked.keys]
    assert len(set(keys)) == len(keys) == 16


@pytest.mark.parametrize("changed", ["data", "model"])
def test_state_of_other_data_or_another_model_is_not_resumed(
    changed: str, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Though their paths are the same."""
    data, model, run = tmp_path / "train.parquet", tmp_path / "model", tmp_path / "run"
    settings = spec(steps=1, validation_problems=2)
    shutil.copy(toy_sets["train"], data)
    shutil.copytree(tiny_toy, model)
    train(settings, RuntimeSettings(), model, data, run)
    if changed == "data":
        shutil.copy(toy_sets["test"], data)
    else:
        shutil.rmtree(model)
        changed_copy(tiny_toy, model)
    train(settings, RuntimeSettings(), model, data, run)
    assert "starting from step 0" in capsys.readouterr().out


@pytest.fixture
def diverged(tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Diverged:
    """A run that diverged in its first step, and what makes it again."""
    run = tmp_path / "run"
    monkeypatch.setattr(optimizer.MasterAdamW, "gradient_norm", lambda self: float("nan"))

    def again() -> None:
        train(spec(seed=SEED), RuntimeSettings(), tiny_toy, toy_sets["train"], run)

    again()
    return run, again


def test_a_checkpoint_says_the_seed_that_its_evaluation_draws_by(diverged: Diverged) -> None:
    run, _ = diverged
    assert read_json(run / "checkpoint" / "checkpoint.json")["seed"] == SEED


def test_a_diverged_run_takes_no_step_when_its_outputs_are_made_again(
    diverged: Diverged, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, again = diverged
    manifest = read_json(run / "manifest.json")
    assert manifest["diverged"]["step"] == 1
    for name in ("manifest.json", "metrics.jsonl"):
        (run / name).unlink()
    monkeypatch.setattr(Trainer, "take_step", lambda *_: pytest.fail("a step was taken"))
    again()
    assert read_json(run / "manifest.json")["diverged"] == manifest["diverged"]


@pytest.mark.parametrize(
    ("mode", "estimator", "times"), [(FUZZY, "pathwise", 1), (FUZZY, "score", 0), (SOFT, "pathwise", 0)]
)
def test_a_jobs_log_begins_with_the_remark_on_fuzzy_tokens(
    mode: TokenMode, estimator: str, times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the model is loaded: here there is none."""
    folders = (tmp_path / name for name in ("model", "data", "out"))
    with pytest.raises((UserError, OSError)):
        train(spec(mode, estimator=estimator), RuntimeSettings(), *folders)
    assert capsys.readouterr().out.count("only the answer term and E's rows contribute") == times
