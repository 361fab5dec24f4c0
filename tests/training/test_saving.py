"""A training goes on while a thread writes its save, and neither a kill nor the clock gives another result."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from softtok.config.settings import RuntimeSettings
from softtok.errors import UserError
from softtok.models.devices import say
from softtok.storage import machine
from softtok.training import saving
from softtok.training.state import Metrics, RunState
from softtok.training.train import Trainer, train
from tests.support.damage import times
from tests.support.specs import SOFT, train_spec
from tests.support.training_runs import lines, stopped_in_step

SPEC = train_spec(SOFT, steps=6, warmup_steps=1, validate_every=2, max_cot_tokens=8)
OFTEN = RuntimeSettings(save_every=1)
RARE = RuntimeSettings(save_every=None)
PATIENT_S = 60
SLOW_JOB = """
import io, sys, time
from pathlib import Path
import torch
from softtok.__main__ import main

save = torch.save

def slow(value, path):
    print("saving step", value["step"], flush=True)
    held = io.BytesIO()
    save(value, held)
    content = held.getvalue()
    with open(path, "wb") as file:
        for start in range(0, len(content), len(content) // 20):
            file.write(content[start : start + len(content) // 20])
            file.flush()
            time.sleep(0.02)

torch.save = slow
sys.exit(main(sys.argv[1:]))
"""

Training = Callable[..., Path]


@pytest.fixture
def training(tiny_toy: Path, toy_sets: dict[str, Path], tmp_path: Path) -> Training:
    def run(runtime: RuntimeSettings = OFTEN, name: str = "run") -> Path:
        train(SPEC, runtime, tiny_toy, toy_sets["train"], tmp_path / name)
        return tmp_path / name

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Path:
    """A training that is saved at its end alone."""
    folder = tmp_path_factory.mktemp("whole")
    train(SPEC, RARE, tiny_toy, toy_sets["train"], folder)
    return folder


def assert_same(run: Path, whole: Path, what: str = "") -> None:
    assert lines(run) == lines(whole), what
    for path in (whole / "checkpoint").iterdir():
        assert (run / "checkpoint" / path.name).read_bytes() == path.read_bytes(), f"{what}: {path.name}"


def test_a_kill_while_a_save_is_written_gives_the_same_when_it_goes_on(
    training: Training, whole: Path, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]
) -> None:
    """At a random moment of the writing, which takes longer than the steps beside it."""
    options = {"spec": SPEC.as_json(), "runtime": '{"save_every": 1}', "model": tiny_toy, "data": toy_sets["train"]}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    chance = random.Random("kills")
    for _ in range(times(2)):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        command = [sys.executable, "-c", SLOW_JOB, "train", *words, "--out", str(tmp_path / "run")]
        moment = (chance.randrange(2, 5), chance.uniform(0, 0.4))
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as job:
            assert job.stdout is not None
            assert any(line == f"saving step {moment[0]}\n" for line in job.stdout)
            time.sleep(moment[1])
            job.kill()
        saved = torch.load(tmp_path / "run" / ".state" / "progress.pt")["step"]
        assert saved >= moment[0] - 1, "the save before, or this one if it was written"
        assert_same(training(), whole, f"killed {moment[1]:.3f} s into the save of step {moment[0]}")


def test_a_save_is_of_the_step_at_which_it_began(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps and a better checkpoint come while it is written; what it names is there when it has been written."""
    save, validate, take_step = torch.save, Trainer.validate, Trainer.take_step
    passed, state = threading.Event(), tmp_path / "run" / ".state"
    masters: dict[int, list[torch.Tensor]] = {}

    def slow(value: dict[str, Any], path: Path) -> None:
        save(value, path)  # under a temporary name
        assert threading.current_thread() is not threading.main_thread() and passed.wait(PATIENT_S)

    def killed(self: Trainer, step: int) -> Metrics:
        masters[self.state.step] = [each.detach().clone() for each in self.optimizer.masters]
        if step == 5:
            assert {path.name for path in state.glob("best-*")} == {"best-2", "best-4"} and self.state.writing.busy
            passed.set()
            raise KeyboardInterrupt
        return take_step(self, step)

    def improving(self: Trainer) -> float:
        validate(self)
        return 10.0 * self.state.step

    monkeypatch.setattr(Trainer, "validate", improving)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", slow)
        patch.setattr(Trainer, "take_step", killed)
        patch.setattr(RunState, "save_is_due", lambda self, _: self.step == 2)
        with pytest.raises(KeyboardInterrupt):
            training()
    saved = torch.load(state / "progress.pt")
    assert saved["step"] == 2 and saved["best"]["step"] == 2 and len(saved["lines"]) == 3
    assert all(map(torch.equal, saved["optimizer"]["masters"], masters[2]))
    assert not all(map(torch.equal, masters[2], masters[4])), "training went on"
    assert_same(training(), training(RARE, "beside"))
    assert [path.name for path in state.glob("best-*")] == ["best-6"]


def test_saves_by_minutes_change_nothing(training: Training, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves: list[int] = []
    save = RunState.save

    def counted(self: RunState, done: bool = False) -> None:
        saves.append(self.step)
        save(self, done)

    monkeypatch.setattr(RunState, "save", counted)
    assert_same(training(RuntimeSettings(save_every=None, save_every_min=1e-9)), whole)
    assert saves[0] == 1 and saves[-1] == 6
    saves.clear()
    training(RuntimeSettings(save_every=4), "by steps")
    assert saves == [4, 6], "half an hour has not passed"
    saves.clear()
    now, clock = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + 60 * clock[0])
    take_step = Trainer.take_step

    def long(self: Trainer, step: int) -> Metrics:
        clock[0] += 11
        return take_step(self, step)

    monkeypatch.setattr(Trainer, "take_step", long)
    training(RuntimeSettings(save_every=None), "by minutes")
    assert saves == [3, 6], "every 30 minutes, of which a step takes 11"


def test_a_save_that_fails_ends_the_training_in_one_line(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda value, path: full() if value["step"] == 3 else save(value, path))
        with pytest.raises(
            UserError, match=r"\.state: cannot be written \(No space left.*resumes from the last save"
        ) as told:
            training()
    assert "\n" not in str(told.value)
    assert torch.load(tmp_path / "run" / ".state" / "progress.pt")["step"] == 2
    assert_same(training(), whole)


def test_a_stop_whose_save_fails_does_not_say_that_progress_is_saved(
    training: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take_step = Trainer.take_step

    def stopped(self: Trainer, step: int) -> Metrics:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, step)

    monkeypatch.setattr(Trainer, "take_step", stopped)
    monkeypatch.setattr(torch, "save", lambda value, path: full())
    with pytest.raises(UserError, match="No space left"):
        training(RARE)
    assert "progress is saved" not in capsys.readouterr().err


def test_a_training_that_fails_ends_after_its_save(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next attempt would begin while this one still writes."""
    save, take_step = torch.save, Trainer.take_step

    def slow(value: dict[str, Any], path: Path) -> None:
        time.sleep(0.5)
        save(value, path)

    def failing(self: Trainer, step: int) -> Metrics:
        if step == 4:
            raise ValueError("a mistake in a step")
        return take_step(self, step)

    monkeypatch.setattr(torch, "save", slow)
    monkeypatch.setattr(Trainer, "take_step", failing)
    with pytest.raises(ValueError, match="a mistake in a step"):
        training()
    assert not [thread for thread in threading.enumerate() if thread.name == "save"]
    assert torch.load(tmp_path / "run" / ".state" / "progress.pt")["step"] == 3


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stop_waits_for_the_save_that_is_being_written(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """Then it saves what came after it."""
    save, written = torch.save, []

    def slow(value: dict[str, Any], path: Path) -> None:
        time.sleep(0.5)
        save(value, path)
        written.append(value["step"])

    with monkeypatch.context() as patch, stopped_in_step(4):
        patch.setattr(torch, "save", slow)
        training()
    assert written[-2:] == [3, 3] and not [thread for thread in threading.enumerate() if thread.name == "save"]
    state = tmp_path / "run" / ".state"
    assert torch.load(state / "progress.pt")["step"] == 3 and not list(state.glob(".*.tmp"))
    assert_same(training(), whole)


@pytest.mark.parametrize("room", [0, 2**40])
def test_training_waits_where_a_copy_does_not_fit(
    room: int, training: Training, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, threads = torch.save, set()

    def noted(value: dict[str, Any], path: Path) -> None:
        threads.add(threading.current_thread().name)
        save(value, path)

    say.cache_clear()
    monkeypatch.setattr(torch, "save", noted)
    monkeypatch.setattr(saving, "room_bytes", lambda: room)
    assert_same(training(), whole)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "copy of weights" in line]
    if room:
        assert threads == {"save", "MainThread"} and "training goes on while it is saved, from a copy" in told
    else:
        assert threads == {"MainThread"} and told.endswith("does not fit into the host's memory")


def test_room_is_what_control_groups_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group's own limit or that of a group around it; what only caches files does not count."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "memory_bytes", lambda: (10_000, 9_000))
    own = tmp_path / "own"

    def group(name: str, limit: str, used: int, cached: int, kind: int = 0) -> None:
        folder, files = tmp_path / name, machine.GROUP_FILES[kind]
        folder.mkdir(parents=True)
        for file, text in zip(files[1:3], (limit, str(used)), strict=True):
            (folder / file).write_text(f"{text}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{files[3]} {cached}\n")

    group("slurm", "5000", 3000, 500)
    group("slurm/job_1", "max", 3000, 0)
    group("memory/pod", "1200", 1000, 50, kind=1)
    for text, expected in (
        ("0::/slurm/job_1\n", [2500]),
        ("4:memory:/pod\n", [250]),
        ("4:memory:/pod\n0::/slurm\n", [2500, 250]),
        ("3:cpu:/x\n", []),
    ):
        own.write_text(text)
        assert list(machine._left_in_groups(own)) == expected, text
    assert list(machine._left_in_groups(tmp_path / "none")) == []
    monkeypatch.setattr(machine, "_left_in_groups", lambda: iter([700, 9_500]))
    assert machine.room_bytes() == 700
    monkeypatch.setattr(machine, "_left_in_groups", lambda: iter([-5]))
    assert machine.room_bytes() == 0
