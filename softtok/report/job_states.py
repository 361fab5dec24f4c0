"""What state each job of a study is in, from the files below `results/` alone.

A job runs if somebody holds its lock. How an attempt ended is in the run's `.state/*.jsonl`, how far it came in its
note, and what went wrong before it began in its log.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from softtok.config.work import Job, below
from softtok.storage.locks import is_locked
from softtok.storage.progress import TRAINING, Note, last_line, lock_of, note_of, read_note
from softtok.storage.provenance import attempts, error_of

Name = Literal["done", "diverged", "running", "stopped", "failed", "missing", "waiting"]
NAMES: tuple[Name, ...] = ("done", "running", "failed", "diverged", "stopped", "missing", "waiting")
ERROR = "softtok: error: "
CLOCK_S = 2.0  # that an event is noted before the job's last line is in its log


@dataclass(frozen=True)
class JobState:
    """A job's state. `why` is its last error or how it ended, in words; `note` is how far it is, or was."""

    job: Job
    name: Name
    why: str = ""
    note: Note | None = None


def state_of(job: Job, results: Path) -> JobState:
    """Returns the state of a job."""
    state = results / below(job.run.folder) / ".state"
    named = job.of.stem.replace("/", ".") if job.of is not None else TRAINING
    note = read_note(note_of(state, named))
    if job.finished(results):
        reason = _divergence(results / below(job.outputs[0])) if job.of is None else ""
        return JobState(job, "diverged" if reason else "done", reason, note)
    events = attempts(state / f"{'attempts' if job.of is None else job.kind}.jsonl")
    if job.of is not None:
        events = [event for event in events if event.get("of") == "/".join(Path(job.outputs[0]).parts[-2:])]
    if is_locked(lock_of(state, named)):
        return _running(job, events, note, log_of(job.benchmark, results))
    return _ended(job, events, note, results)


def _running(job: Job, events: Sequence[dict[str, Any]], note: Note | None, log: Path) -> JobState:
    """Returns the state of a job that holds its lock; it has no note before its first step."""
    if note is not None and events and (note.pid, note.host) == (events[-1].get("pid"), events[-1].get("host")):
        return JobState(job, "running", note=note)
    said = last_line(log)
    return JobState(job, "running", said.removeprefix("softtok: ") if "waiting" in said else "")


def _ended(job: Job, events: Sequence[dict[str, Any]], note: Note | None, results: Path) -> JobState:
    """Returns the state of a job that does not run and has not finished."""
    last = events[-1] if events else {}
    if told := _told(log_of(job.benchmark, results), last):
        return JobState(job, "failed", told, note)
    match last.get("event"):
        case "failed":
            return JobState(job, "failed", error_of(last), note)
        case "interrupted":
            return JobState(job, "stopped", "stopped, with its progress saved", note)
        case "start":
            begun = f"begun {str(last.get('time'))[:16].replace('T', ' ')} on {last.get('host')}"
            return JobState(job, "stopped", f"killed without a word (memory, time, power?), {begun}", note)
    gone = [Path(path).name for path in job.outputs if not (results / below(path)).exists()]
    if last or len(gone) < len(job.outputs):
        return JobState(job, "missing", f"has finished, but {' and '.join(gone)} is gone")
    return JobState(job, "waiting")


def _told(log: Path, last: dict[str, Any]) -> str:
    """Returns the error in the last line of a log, if it is not older than the last attempt at the job."""
    said = last_line(log)
    if not said.startswith(ERROR):
        return ""
    with contextlib.suppress(OSError, ValueError, KeyError):
        if log.stat().st_mtime < datetime.fromisoformat(last["time"]).timestamp() - CLOCK_S:
            return ""
    return said.removeprefix(ERROR)


def log_of(path: str, results: Path) -> Path:
    """Returns the log of the job that makes a path, or that has this benchmark."""
    inner = below(path).removeprefix("benchmarks/")
    stem = inner.removesuffix(Path(inner).suffix) if inner.endswith((".tsv", ".parquet")) else inner
    return results / "logs" / f"{stem}.log"


def unprepared(paths: Sequence[str], results: Path) -> tuple[int, dict[str, str]]:
    """Returns how many of the paths that all jobs start from are not there, and the errors of those that failed."""
    absent = [path for path in paths if not (results / below(path)).exists()]
    logs = {path: log_of(path.replace("/manifest.json", "/base"), results) for path in absent}
    said = {path: last_line(log) for path, log in logs.items()}
    return len(absent), {path: line.removeprefix(ERROR) for path, line in said.items() if line.startswith(ERROR)}


def _divergence(manifest: Path) -> str:
    """Returns where and why a finished training diverged; "" if it did not, or the file says nothing readable."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(manifest.read_text(encoding="utf-8"))["diverged"]
        return f"at step {found['step']}: {found['reason']}" if found else ""
    return ""
