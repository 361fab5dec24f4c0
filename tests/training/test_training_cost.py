"""What a training is expected to take counts what a training does, and each part is measured for itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softtok.config.settings import RuntimeSettings
from softtok.config.work import training_counts
from softtok.training.measure import measure_training
from softtok.training.state import RunState
from softtok.training.train import Trainer, train
from tests.support.specs import SOFT, train_spec

PARTS = ("take_step", "norms_by_term", "validate", "save", "save_weights")


def wrapped(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[], object]) -> None:
    owner = Trainer if hasattr(Trainer, name) else RunState
    method = getattr(owner, name)

    def both(self: Any, *arguments: Any, **named: Any) -> Any:
        before()
        return method(self, *arguments, **named)

    monkeypatch.setattr(owner, name, both)


def test_a_training_does_what_is_counted(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: Counter[str] = Counter()
    for name in PARTS:
        wrapped(monkeypatch, name, lambda name=name: done.update([name]))  # type: ignore[misc]
    spec, runtime = train_spec(SOFT, steps=5, samples_per_prompt=2), RuntimeSettings(save_every=2)
    train(spec, runtime, tiny_toy, toy_sets["train"], tmp_path / "run")
    assert spec.training is not None
    counts = training_counts(spec.training, runtime.save_every)
    assert (done["take_step"], done["norms_by_term"]) == (counts.steps + counts.measured_steps, counts.measured_steps)
    assert done["validate"] == counts.validations
    assert done["save"] == counts.saves + 1, "the last one has no optimizer's state"
    assert 1 <= done["save_weights"] <= counts.weights


def test_each_part_of_a_training_is_measured_for_itself(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delays of whole seconds, in which the parts' own times vanish."""
    for name, seconds in zip(PARTS, (1, 2, 3, 4, 5), strict=True):
        wrapped(monkeypatch, name, lambda seconds=seconds: clock.append(seconds))  # type: ignore[misc]
    clock: list[float] = []
    monkeypatch.setattr(time, "perf_counter", lambda: float(sum(clock)))
    spec = train_spec(SOFT, steps=6, samples_per_prompt=2)
    cost = measure_training(spec, RuntimeSettings(save_every=2), tiny_toy, toy_sets["train"], tmp_path)
    told = (cost.step_s, cost.measured_step_s, cost.validation_s, cost.save_s, cost.weights_s)
    assert told == (1, 3, 3, 4, 5) and cost.ready_s == 0
    short = train_spec(SOFT, steps=1, samples_per_prompt=2)
    cost = measure_training(short, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "short")
    assert (cost.measured_step_s, cost.save_s) == (1, 0), "what it will not do is not measured"


def test_a_long_validation_is_measured_in_part(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: list[float] = []
    validate, shown = Trainer.validate, []

    def seen(self: Trainer) -> float:
        shown.append(len(self.validation))
        clock.append(len(self.validation))
        return validate(self)

    monkeypatch.setattr(Trainer, "validate", seen)
    monkeypatch.setattr(time, "perf_counter", lambda: float(sum(clock)))
    spec = train_spec(SOFT, steps=1, samples_per_prompt=2, validation_problems=36)
    cost = measure_training(spec, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)
    assert shown == [32] and cost.validation_s == pytest.approx(36)
