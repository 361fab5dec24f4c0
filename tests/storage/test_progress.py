"""What a job says while it runs: lines in its log, and the note and the lock that `softtok status` reads."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from softtok.storage.locks import is_locked
from softtok.storage.progress import (
    RECENT,
    Note,
    Progress,
    job_name,
    last_line,
    lock_of,
    note_of,
    pace,
    progress,
    read_note,
    shown_as_running,
)


class Clock:
    """A clock that stands still until somebody turns it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def step(self, shown: Progress, seconds: float, count: int = 1, **facts: float) -> None:
        """Lets time pass, and then something be done."""
        self.now += seconds
        shown.advance(count, round(100 * seconds), {"reward": seconds}, **facts)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_lines_get_fewer_and_each_has_rate_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten hours of steps of ten seconds."""
    times = []
    with progress("train", 3600) as shown:
        for _ in range(3600):
            clock.step(shown, 10)
            if lines := capsys.readouterr().err.splitlines():
                times += [(clock.now - 1000, line) for line in lines]
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(times)]
    assert 40 < len(times) < 100
    assert gaps[0] <= 20 and max(gaps) <= 910, "soon at first, and never silent for long"
    assert sum(gaps[:10]) < 0.2 * sum(gaps[-11:-1])
    assert times[-1][1] == "train: 3600/3600 steps, 10 h 00 min, 10 s a step, 0 s left, 100 tokens/s, reward 10"
    for _, line in times:
        assert " s a step, " in line and " left, 100 tokens/s" in line, line


def test_no_line_says_inf_or_nan(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 2) as shown:
        clock.step(shown, 20, best=-math.inf, worst=math.nan)
        clock.step(shown, 20, best=3.0)
    first, second = capsys.readouterr().err.splitlines()
    assert "inf" not in first and "nan" not in first and "best" not in first
    assert second.endswith("best 3")


def test_the_pace_is_the_present_one_and_the_reward_that_of_the_last_steps(clock: Clock) -> None:
    with progress("train", 1000) as shown:
        for _ in range(100):
            clock.step(shown, 30)
        for _ in range(RECENT):
            clock.step(shown, 20)
        assert shown.each_s == pytest.approx(20)
        assert shown.left_s == pytest.approx(20 * (1000 - 100 - RECENT))
        assert shown.facts["reward"] == 20


def test_what_was_done_before_says_nothing_of_the_pace(clock: Clock) -> None:
    with progress("evaluate", 100, done=20) as shown:
        clock.step(shown, 5)
        shown.skip(50)
        clock.step(shown, 5)
        assert (shown.done, shown.each_s, shown.left_s) == (72, 5, 140)


def test_a_note_says_how_far_a_job_is_also_when_it_ended_early(clock: Clock, tmp_path: Path) -> None:
    path = note_of(tmp_path, "train")
    with contextlib.suppress(ZeroDivisionError), progress("train", 10, note=path) as shown:
        clock.step(shown, 6, best=-math.inf)
        found = read_note(path)
        assert found is not None and (found.done, found.total, found.left_s) == (1, 10, 54)
        clock.step(shown, 1)
        assert read_note(path) == found, "not after every step"
        _ = 1 / 0
    found = read_note(path)
    assert found is not None
    assert (found.done, found.pid, found.tokens_s, found.facts) == (2, os.getpid(), 100, {"reward": 3.5})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"done": 1}', "\udcff"])
def test_a_damaged_note_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "note").write_bytes(text.encode(errors="surrogateescape"))
    assert read_note(tmp_path / "note") is None
    assert read_note(tmp_path / "nothing") is None


def test_a_note_that_cannot_be_written_stops_no_job(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("a file in the place of the folder")
    with progress("train", 2, note=note_of(tmp_path, "train")) as shown:
        clock.step(shown, 60)
        clock.step(shown, 60)
    assert shown.done == 2


def test_a_job_is_seen_as_running_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, "eval.sums")
    assert not is_locked(lock)
    with shown_as_running(tmp_path, "eval.sums") as note:
        assert is_locked(lock) and note == note_of(tmp_path, "eval.sums")
        with shown_as_running(tmp_path, "eval.sums"):
            assert is_locked(lock), "a second one goes on"
        assert is_locked(lock)
    assert not is_locked(lock)
    killed = "import os, sys; from pathlib import Path; from softtok.storage.progress import shown_as_running\n"
    killed += "with shown_as_running(Path(sys.argv[1]), 'eval.sums'): print('in', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", killed, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        assert is_locked(lock)
        process.kill()
        process.wait()
        assert not is_locked(lock)


def test_jobs_of_a_run_have_names_of_their_own() -> None:
    run = Path("results/runs/toy")
    names = {
        job_name(run, run / out) for out in ("eval/a/six-1.parquet", "eval/b/six-1.parquet", "choices/a-1.parquet")
    }
    assert names == {"eval.a.six-1", "eval.b.six-1", "choices.a-1"}
    assert job_name(run, Path("elsewhere/out.parquet")) == "out"


def test_the_last_line_of_a_log_is_the_last_that_says_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_bytes(b"first\n" + b"x" * 9000 + b"\nRuntimeError: \xff no\n\n  \n")
    assert last_line(log) == "RuntimeError: � no"


def test_paces_read_well() -> None:
    assert (pace(2.5, "steps"), pace(0.25, "answers")) == ("2.5 s a step", "4 answers/s")


def test_notes_are_json_that_others_can_read(tmp_path: Path) -> None:
    with progress("train", 1, note=tmp_path / "note"):
        pass
    assert set(json.loads((tmp_path / "note").read_text())) == set(Note.model_fields)
