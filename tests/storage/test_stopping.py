"""A signal ends a job in the middle of its work: finished steps and problems are kept, the rest is made again."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from softtok.config.settings import RuntimeSettings
from softtok.evaluation.choices import choices
from softtok.evaluation.evaluate import evaluate
from softtok.models.base_model import base_run
from softtok.models.language_model import prefill
from softtok.storage.breaks import ended_by, may_end_here
from softtok.storage.costs import read_cost
from softtok.storage.files import read_json
from softtok.storage.locks import EXIT_INTERRUPTED, Stopped
from softtok.training.train import Trainer, train
from tests.support.damage import assert_same_evaluation, evaluation
from tests.support.slow_jobs import slow_job, stop
from tests.support.specs import SOFT, base_spec, choices_spec, evaluation_spec, toy_model, train_spec
from tests.support.tiny_models import tiny_model
from tests.support.training_runs import lines, weights

SOON_S = 10
# Every rollout of the training takes 16 steps at least.
TRAINING = train_spec(SOFT, steps=3, warmup_steps=1, validate_every=1, stop_on="never", estimator="pathwise")
EVALUATION = evaluation_spec("hard-sample", "soft-sample")
FEW, SMALL = RuntimeSettings(rollout_rows=4), RuntimeSettings(micro_batch_tokens=300)


def words(name: str, **options: object) -> list[str]:
    """Returns a command of softtok."""
    return [name, *(str(word) for key, value in options.items() for word in (f"--{key}", value))]


def as_json(runtime: RuntimeSettings) -> str:
    """Returns settings as a command takes them."""
    return runtime.model_dump_json(exclude_defaults=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Path:
    """A training and an evaluation that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(TRAINING, SMALL, tiny_toy, toy_sets["train"], folder / "trained")
    base_run(base_spec(toy_model()), tiny_toy, folder / "base")
    evaluate(EVALUATION, RuntimeSettings(), folder / "base", toy_sets["test"], folder / "base" / "out.parquet")
    return folder


@pytest.fixture
def training(tiny_toy: Path, toy_sets: dict[str, Path], tmp_path: Path) -> list[str]:
    options = {"spec": TRAINING.as_json(), "runtime": as_json(SMALL), "model": tiny_toy}
    return words("train", **options, data=toy_sets["train"], out=tmp_path / "run")


def assert_same_training(run: Path, whole: Path) -> None:
    assert lines(run) == lines(whole)
    expected = weights(whole / "checkpoint")
    assert all(torch.equal(value, expected[name]) for name, value in weights(run / "checkpoint").items())


# What is slow, the training step at whose end it begins, and the last finished step.
MOMENTS = [("validate", 0, None), ("roll_out", 1, 1), ("update", 1, 1), ("validate", 2, 2)]


@pytest.mark.parametrize(("inside", "step", "kept"), MOMENTS)
def test_a_training_ends_in_the_middle_of_a_step(
    inside: str, step: int, kept: int | None, training: list[str], tmp_path: Path, tiny_toy: Path,
    toy_sets: dict[str, Path], whole: Path,
) -> None:  # fmt: skip
    with slow_job(training, inside, step, before=2, seconds=1.5) as job:
        took, printed = stop(job, signal.SIGTERM)
    assert job.returncode == EXIT_INTERRUPTED and printed.endswith("stopped by SIGTERM; progress is saved\n"), printed
    assert took < SOON_S
    saved = tmp_path / "run" / ".state" / "progress.pt"
    assert (torch.load(saved)["step"] if saved.exists() else None) == kept
    train(TRAINING, SMALL, tiny_toy, toy_sets["train"], tmp_path / "run")
    events = [attempt["event"] for attempt in read_json(tmp_path / "run" / "manifest.json")["attempts"]]
    assert events == ["start", "interrupted", "start"]
    assert_same_training(tmp_path / "run", whole / "trained")


def test_an_evaluation_ends_while_rows_are_running(
    tmp_path: Path, toy_sets: dict[str, Path], tiny_toy: Path, whole: Path
) -> None:
    """The finished problems are kept, and no other one."""
    run, out = tmp_path / "run", tmp_path / "run" / "out.parquet"
    base_run(base_spec(toy_model()), tiny_toy, run)
    options = {
        "spec": EVALUATION.as_json(),
        "runtime": FEW.model_dump_json(exclude_defaults=True),
        "run": run,
        "data": toy_sets["test"],
    }
    with slow_job(words("evaluate", **options, out=out), "complete", 0, before=24, seconds=1.5) as job:
        took, _ = stop(job, signal.SIGINT)
    assert job.returncode == EXIT_INTERRUPTED and took < SOON_S
    (shard,) = (run / ".state" / "shards").iterdir()
    before = shard.read_text()
    assert 1 <= before.count("\n") - 1 < 6, "of 6 problems: the first four rows take up to 24 passes"
    evaluate(EVALUATION, FEW, run, toy_sets["test"], out)
    assert shard.read_text().startswith(before)
    assert_same_evaluation(evaluation(out), evaluation(whole / "base" / "out.parquet"), "")


def test_a_choice_set_ends_between_its_questions(
    tmp_path: Path, toy_sets: dict[str, Path], tiny_toy: Path, whole: Path
) -> None:
    """The batches that were scored are kept, and not scored again."""
    run, spec = tmp_path / "run", choices_spec("cloze")
    base_run(base_spec(toy_model()), tiny_toy, run)
    options = {"spec": spec.as_json(), "runtime": FEW.model_dump_json(exclude_defaults=True), "run": run}
    command = words("choices", **options, data=toy_sets["choice"], out=run / "out.parquet")
    with slow_job(command, "log_likelihoods", 0, before=2, seconds=1.5) as job:
        took, printed = stop(job, signal.SIGTERM)
    assert job.returncode == EXIT_INTERRUPTED and printed.endswith("stopped by SIGTERM; progress is saved\n"), printed
    assert took < SOON_S
    (shard,) = (run / ".state" / "shards").iterdir()
    before = shard.read_text()
    choices(spec, FEW, run, toy_sets["choice"], run / "out.parquet")
    choices(spec, FEW, whole / "base", toy_sets["choice"], whole / "base" / "choices.parquet")
    assert before.count("\n") == 1 + 2, "two batches of one question"
    assert shard.read_text().startswith(before) and shard.read_text().count("\n") == 1 + 8
    resumed, at_once = (pd.read_parquet(path) for path in (run / "out.parquet", whole / "base" / "choices.parquet"))
    pd.testing.assert_frame_equal(resumed, at_once)
    cost = read_cost(run / "out.parquet")
    assert cost is not None and [(part.tokens, part.tokens_per_s) for part in cost.parts] == [(0, None)]


def test_a_second_signal_ends_a_job_at_once(
    training: list[str], tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], whole: Path
) -> None:
    """Also one that is stuck, and without harm."""
    with slow_job(training, "roll_out", 1, before=2, seconds=300) as job:
        took, _ = stop(job, signal.SIGTERM, signal.SIGINT, apart_s=2)
    assert job.returncode == -signal.SIGINT and took < SOON_S
    run = tmp_path / "run"
    train(TRAINING, SMALL, tiny_toy, toy_sets["train"], run)
    assert_same_training(run, whole / "trained")


def test_what_sends_a_signal_twice_asks_once(training: list[str], tmp_path: Path) -> None:
    """As `timeout` does: to its child, and to the group that it leads."""
    with slow_job(training, "roll_out", 1, before=2, seconds=1.5) as job:
        stop(job, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, apart_s=0.1)
    assert job.returncode == EXIT_INTERRUPTED
    assert torch.load(tmp_path / "run" / ".state" / "progress.pt")["step"] == 1


def test_a_step_that_has_changed_the_weights_comes_to_its_end(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights between its updates are those of no step."""
    twice = train_spec(objective="grpo", steps=3, warmup_steps=1, updates_per_step=2)
    accumulate, calls = Trainer.accumulate, itertools.count(1)

    def asked(self: Trainer, *arguments: Any) -> Any:
        if self.state.step == 0 and next(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return accumulate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "accumulate", asked)
        with pytest.raises(Stopped):
            train(twice, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    assert torch.load(tmp_path / "run" / ".state" / "progress.pt")["step"] == 1
    for folder in ("run", "whole"):
        train(twice, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / folder)
    assert_same_training(tmp_path / "run", tmp_path / "whole")


def test_a_pass_ends_in_any_layer_forward_or_backward() -> None:
    """One pass of a large model takes longer than a job may take to stop."""
    lm, passed = tiny_model(), itertools.count(1)

    def after(layers: int) -> Any:
        def end_if_asked() -> None:
            if next(passed) > layers:
                raise Stopped

        return ended_by(end_if_asked)

    layers = lm.model.config.num_hidden_layers
    assert layers > 1
    for seen in range(2 * layers):
        passed = itertools.count(1)
        with after(seen), pytest.raises(Stopped):
            prefill(lm, [[1, 2, 3]])[0].sum().backward()
    passed = itertools.count(1)
    with after(2 * layers):
        prefill(lm, [[1, 2, 3]])[0].sum().backward()
    may_end_here()
