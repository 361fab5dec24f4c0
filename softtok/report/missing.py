"""What a report before the end of its study says of what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from softtok.report.collect import Absent, row_text
from softtok.report.run_files import MissingError
from softtok.report.study import Study, row_of
from softtok.report.tables import Table
from softtok.storage.locks import is_locked
from softtok.storage.progress import TRAINING, note_of, read_note
from softtok.storage.provenance import attempts, error_of


def marked_partial(tables: Mapping[str, Table], study: Study) -> dict[str, Table]:
    """Returns the tables with captions that say how many runs were planned."""
    plan = _plan_phrase(study)
    return {name: replace(table, caption=f"{table.caption} {plan}") for name, table in tables.items()}


def _plan_phrase(study: Study) -> str:
    planned = Counter(map(row_of, study.runs))
    trained = sorted({count for row, count in planned.items() if row.training_mode != "base"}) or [1]
    words = "–".join(map(str, sorted({trained[0], trained[-1]})))
    return f"Partial: n is what has finished of {words} planned runs per row (base 1)."


def missing_lines(absent: Iterable[Absent], why: Callable[[Absent], str]) -> list[str]:
    """Returns one line per row, set and reason, with the seeds that share it.

    `why` says why something is missing that is not there; anything else is told by its own error.
    """
    seeds: dict[tuple[str, str], list[int]] = {}
    for item in absent:
        reason = why(item) if isinstance(item.error, MissingError) else str(item.error)
        named = f"{item.what}: {reason}" if item.what else reason
        seeds.setdefault((row_text(item.row), named), []).append(item.seed)
    return [
        f"{where}, {'seed' if len(found) == 1 else 'seeds'} {', '.join(map(str, sorted(found)))}: {reason}"
        for (where, reason), found in seeds.items()
    ]


def from_attempts(item: Absent) -> str:
    """Returns why results are missing, as far as the run's folder shows."""
    if (note := _running(item)) is not None:
        return f"running{note}"
    log = "attempts" if not item.what else "evaluate" if "(" in item.what else "choices"
    events = attempts(item.folder / ".state" / f"{log}.jsonl")
    if item.what:  # one log for all sets of the run
        failed = bool(events) and events[-1]["event"] == "failed"
        return f"not measured{f'; the last attempt at such a job failed: {error_of(events[-1])}' if failed else ''}"
    if not events:
        return "not trained" if item.row.training_mode != "base" else "not made"
    last = events[-1]
    return {
        "start": f"not finished: started {last['time']}, and killed since",
        "interrupted": "not finished: stopped, and goes on when it is run again",
        "failed": f"failed: {error_of(last)}",
    }.get(last["event"], "finished, but its outputs are gone")


def _running(item: Absent) -> str | None:
    """Returns how far the job is that makes what is missing, "" if that is not known; None if no job does."""
    state = item.folder / ".state"
    jobs = TRAINING
    if item.what:  # "test set (inference set)" or a choice set; locks are named after outputs, with their hash
        test_set, _, inference_set = item.what.removesuffix(")").partition(" (")
        jobs = f"{f'eval.{test_set}.{inference_set}' if inference_set else f'choices.{test_set}'}-????????"
    for lock in (state / "locks").glob(jobs):
        if is_locked(lock):
            note = read_note(note_of(state, lock.name))
            return f", at {note.done} of {note.total} {note.unit}" if note is not None else ""
    return None
