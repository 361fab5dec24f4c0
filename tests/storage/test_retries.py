"""What another attempt gets, told from how the earlier ones ended."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from softtok.__main__ import main
from softtok.errors import UserError
from softtok.storage.provenance import attempt
from softtok.storage.retries import (
    Notes,
    hopeless,
    linked_state,
    measuring_notes,
    note_step,
    refuse_hopeless,
    shortages,
    training_notes,
)
from tests.support.specs import SOFT, train_spec

PIDS = itertools.count(100)
KILLED, SAVED, FINISHED, FAILED = None, "interrupted", "done", "failed"


def ended(notes: Notes, how: str | None, saved: int | None = None, error: str = "ValueError('x')") -> None:
    """Notes an attempt that found a step saved, and ended in some way."""
    notes.log.parent.mkdir(parents=True, exist_ok=True)
    who = {"host": "node", "pid": next(PIDS)} | ({"of": notes.of} if notes.of else {})
    events = [{"event": "start", "saved": saved, **who}] + ([{"event": how, "error": error, **who}] if how else [])
    with open(notes.log, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(event) + "\n" for event in events))


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return training_notes(tmp_path / "run" / ".state")


def test_memory_grows_only_after_it_was_short(notes: Notes) -> None:
    for _ in range(5):
        ended(notes, SAVED)
    assert shortages(notes, 6) == 0, "out of time"
    ended(notes, FAILED, error="UserError('no such file')")
    assert shortages(notes, 7) == 0, "a mistake"
    ended(notes, KILLED)
    assert shortages(notes, 8) == 1
    ended(notes, SAVED)
    assert shortages(notes, 9) == 1, "what was too little stays too little"
    ended(notes, FAILED, error='RuntimeError("DefaultCPUAllocator: can\'t allocate memory: 8 bytes")')
    assert shortages(notes, 10) == 2
    ended(notes, KILLED)
    assert shortages(notes, 11) == 2, "no node has any amount of it"


def test_an_attempt_that_may_be_running_is_no_shortage(notes: Notes) -> None:
    """Its Snakemake was killed, and a new one asks."""
    ended(notes, KILLED)
    assert (shortages(notes, 1), shortages(notes, 2)) == (0, 1)


def test_jobs_without_notes_count_by_their_attempts(notes: Notes) -> None:
    assert [shortages(notes, attempt) for attempt in (1, 2, 3, 4)] == [0, 1, 2, 2]
    assert shortages(None, 2) == 1


def test_a_job_that_saves_nothing_new_is_refused(notes: Notes) -> None:
    ended(notes, SAVED)
    note_step(notes.log.parent, 4)
    for number in (1, 2):
        ended(notes, FAILED, 4)
        assert hopeless(notes, 1 + number) is None
    ended(notes, FAILED, 4, "RuntimeError('CUDA error: an illegal memory access')")
    assert hopeless(notes, 4) == (
        f"{notes.log}: refused, as 3 attempts in a row saved nothing new, of which the last failed:"
        " RuntimeError('CUDA error: an illegal memory access'); run snakemake again to try again"
    )
    with pytest.raises(UserError, match="run snakemake again"):
        refuse_hopeless(notes, 20)
    assert hopeless(notes, 1) is None, "a new Snakemake tries"
    assert hopeless(notes, 3) is None
    note_step(notes.log.parent, 5)
    assert hopeless(notes, 4) is None, "the last one saved a step before it failed"


def test_three_attempts_in_a_row_are_needed(notes: Notes) -> None:
    """The first of these found an older step, so it saved the one that the others found."""
    notes.log.parent.mkdir(parents=True)
    note_step(notes.log.parent, 4)
    for found in (3, 4, 4):
        ended(notes, FAILED, found)
    assert hopeless(notes, 4) is None
    ended(notes, FAILED, 4)
    assert hopeless(notes, 5) is not None


@pytest.mark.parametrize(("how", "why"), [(KILLED, "was killed"), (SAVED, "raise runtime_min")])
def test_a_refusal_says_how_the_last_attempt_ended(how: str | None, why: str, notes: Notes) -> None:
    """None of them came to a first save."""
    for _ in range(3):
        ended(notes, how)
    assert why in str(hopeless(notes, 4))


@pytest.mark.parametrize("how", [KILLED, SAVED, FAILED])
def test_a_job_that_saves_goes_on(how: str | None, notes: Notes) -> None:
    for step in range(19):
        ended(notes, how, step or None)
        note_step(notes.log.parent, step + 1)
        assert hopeless(notes, step + 2) is None


def test_evaluations_share_a_file_of_notes_and_no_fate(tmp_path: Path) -> None:
    run = tmp_path / "run"
    one, other = (measuring_notes(run / ".state", "evaluate", run / "eval" / name / "set-1.parquet") for name in "ab")
    for _ in range(3):
        ended(one, KILLED, 0)
        ended(other, SAVED, 0)
    assert (shortages(one, 4), shortages(other, 4)) == (2, 0)
    assert hopeless(one, 4) is not None
    (one.log.parent / "shards").mkdir()
    (one.log.parent / "shards" / "x.jsonl").write_text("a finished problem\n")
    assert hopeless(one, 4) is None


def test_a_choice_set_that_saves_questions_is_not_refused(tmp_path: Path) -> None:
    choices = measuring_notes(tmp_path / ".state", "choices", tmp_path / "choices" / "words-1.parquet")
    shard = tmp_path / ".state" / "shards" / "x.jsonl"
    shard.parent.mkdir(parents=True)
    shard.write_text("a question\n")
    for _ in range(3):
        ended(choices, FAILED, choices.saved())
    assert hopeless(choices, 4) is not None
    shard.write_text("a question\nanother one\n")
    assert hopeless(choices, 4) is None


def fails() -> None:
    raise ValueError("no")


def stops() -> None:
    raise SystemExit(75)


@pytest.mark.parametrize(("job", "short"), [(fails, 0), (stops, 0)])
def test_what_jobs_note_is_what_is_read(job: Callable[[], None], short: int, notes: Notes) -> None:
    for _ in range(3):
        with pytest.raises((ValueError, SystemExit)), attempt(*notes, notes.saved()):
            job()
    assert shortages(notes, 4) == short
    assert hopeless(notes, 4) is not None


def test_a_refused_training_is_one_line_and_no_attempt(
    notes: Notes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded: there is neither a model nor data here."""
    for _ in range(3):
        ended(notes, FAILED)
    before = notes.log.read_bytes()
    options = {"spec": train_spec(SOFT).as_json(), "runtime": "{}", "model": tmp_path, "data": tmp_path}
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    assert main(["train", *words, "--out", str(tmp_path / "run"), "--attempt", "4"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("softtok: error: ") and line.endswith("run snakemake again to try again")
    assert notes.log.read_bytes() == before


def test_the_runs_folder_has_a_link_to_progress_that_is_saved_elsewhere(tmp_path: Path) -> None:
    """Status, partial reports and `unused` look for locks and notes in the run's folder."""
    run, volume = tmp_path / "results/runs/toy/sums/soft/seed0-0123abcd", tmp_path / "volume"
    assert linked_state(run, None) == run / ".state" and not run.exists()
    for _ in range(2):  # and in the next attempt
        state = linked_state(run, str(volume))
        assert state == volume / "toy/sums/soft/seed0-0123abcd" and state.is_dir()
    (state / "step").write_text("3\n")
    assert (run / ".state/step").read_text() == "3\n"


def test_progress_that_lies_in_the_runs_folder_stays_there(tmp_path: Path) -> None:
    (tmp_path / "run/.state").mkdir(parents=True)
    linked_state(tmp_path / "run", str(tmp_path / "volume"))
    assert not (tmp_path / "run/.state").is_symlink()
