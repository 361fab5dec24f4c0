"""What a training shows while it runs: its log, its note, and the lock by which `softtok status` knows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from softtok.config.settings import RuntimeSettings
from softtok.storage import progress
from softtok.storage.locks import is_locked
from softtok.storage.progress import TRAINING, lock_of, note_of, read_note
from softtok.training.state import Metrics
from softtok.training.train import Trainer, train
from tests.support.specs import SOFT, train_spec
from tests.support.training_runs import stopped_in_step

SETTINGS = train_spec(SOFT, steps=4, validate_every=2)


@pytest.fixture(autouse=True)
def each_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "LINE_GROWTH", 0.0)


def test_a_training_tells_rate_time_left_and_mean_reward_and_never_inf(
    tiny_toy: Path, toy_sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(SETTINGS, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: ")]
    assert [line.split(" steps")[0] for line in lines] == [f"train: {step}/4" for step in (1, 2, 3, 4)]
    assert all(" left, " in line and " tokens/s, reward " in line and "inf" not in line for line in lines)
    assert ["best validation" in line for line in lines] == [False, True, True, True], (
        "none before the first validation"
    )
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][1:]
    note = read_note(note_of(tmp_path / ".state", TRAINING))
    assert note is not None and (note.done, note.total, note.unit) == (4, 4, "steps")
    assert note.facts["reward"] == pytest.approx(np.mean([step["reward"] for step in steps]))


def test_its_lock_is_held_while_it_takes_steps_and_the_note_says_where_it_stopped(
    tiny_toy: Path, toy_sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, held = lock_of(tmp_path / ".state", TRAINING), []
    take_step = Trainer.take_step

    def watched(self: Trainer, step: int) -> Metrics:
        held.append(is_locked(lock))
        return take_step(self, step)

    monkeypatch.setattr(Trainer, "take_step", watched)
    with stopped_in_step(3):
        train(SETTINGS, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)
    note = read_note(note_of(tmp_path / ".state", TRAINING))
    assert held and all(held) and not is_locked(lock)
    assert note is not None and (note.done, note.total) == (2, 4)
    rows = SETTINGS.training.prompts_per_step * SETTINGS.training.samples_per_prompt if SETTINGS.training else 0
    made = [json.loads(line) for line in (tmp_path / ".state" / "attempts.jsonl").read_text().splitlines()]
    assert note.pid == made[0]["pid"] and rows * 2 < (note.tokens_s or 0) * 600, "some tokens in each answer"
