"""What evaluations and choice sets show while they run: their note, and the lock that `softtok status` looks at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from softtok.config.settings import RuntimeSettings
from softtok.evaluation import evaluate as module
from softtok.evaluation.choices import choices
from softtok.evaluation.evaluate import evaluate
from softtok.method.stream import Finished, Room, stream
from softtok.method.trajectories import Batch, Policy
from softtok.models.base_model import base_run
from softtok.storage.locks import is_locked
from softtok.storage.progress import Note, job_name, lock_of, note_of, read_note
from softtok.storage.provenance import attempts
from tests.support.specs import base_spec, choices_spec, evaluation_spec, toy_model

SPEC = evaluation_spec("hard-greedy", "hard-sample")
SAMPLES = sum(mode.samples for mode in SPEC.inference_modes.values())


@pytest.fixture
def run(tmp_path: Path, tiny_toy: Path) -> Path:
    base_run(base_spec(toy_model()), tiny_toy, tmp_path / "run")
    return tmp_path / "run"


def note(run: Path, out: Path) -> Note:
    found = read_note(note_of(run / ".state", job_name(run, out)))
    assert found is not None
    return found


def test_an_evaluation_counts_the_answers_of_all_its_modes_and_holds_its_lock(
    run: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = run / "eval/test/two-1.parquet", run / "eval/other/two-1.parquet"
    seen = []

    def watched(policy: Policy, batch: Batch, room: Room) -> Iterator[Finished]:
        seen.append([is_locked(lock_of(run / ".state", job_name(run, path))) for path in (out, other)])
        yield from stream(policy, batch, room)

    monkeypatch.setattr(module, "stream", watched)
    evaluate(SPEC, RuntimeSettings(), run, toy_sets["test"], out)
    assert seen == [[True, False]] * 2
    assert not is_locked(lock_of(run / ".state", job_name(run, out)))
    found = note(run, out)
    assert (found.done, found.total, found.unit) == (6 * SAMPLES, 6 * SAMPLES, "answers")
    assert 0 <= found.facts["correct"] <= 100 and (found.tokens_s or 0) > 0
    assert {event["of"] for event in attempts(run / ".state" / "evaluate.jsonl")} == {"test/two-1.parquet"}


def test_answers_that_were_there_before_are_done_and_have_no_pace(run: Path, toy_sets: dict[str, Path]) -> None:
    out = run / "eval/test/two-1.parquet"
    for _ in range(2):
        evaluate(SPEC, RuntimeSettings(), run, toy_sets["test"], out)
    found = note(run, out)
    assert (found.done, found.total, found.left_s, found.tokens_s) == (6 * SAMPLES, 6 * SAMPLES, None, None)


def test_a_choice_set_tells_the_same(run: Path, toy_sets: dict[str, Path]) -> None:
    out = run / "choices/largest-1.parquet"
    choices(choices_spec("letters"), RuntimeSettings(), run, toy_sets["choice"], out)
    found = note(run, out)
    assert (found.done, found.total, found.unit) == (8, 8, "questions")
    assert {event["of"] for event in attempts(run / ".state" / "choices.jsonl")} == {"choices/largest-1.parquet"}
