"""Judges another attempt at a job by the notes of the earlier ones: how much memory it gets, and whether it is refused.

Snakemake counts attempts and knows no reason why one ended. Nearly all end at a time limit with their progress saved,
so a profile may allow many. Two things then follow from the notes. Memory grows after attempts that were short of it.
And a job that saves nothing new, attempt after attempt, is refused. Imports are few, because rules call this.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from softtok.errors import UserError
from softtok.storage.provenance import attempts

ATTEMPTS = 3
"""So many attempts in a row without anything newly saved are enough."""
MOST_SHORTAGES = 2
"""More memory than after these is not asked for: many a node has no more."""
MEMORY = re.compile(r"MemoryError|not enough memory|(can't|[Cc]annot) allocate memory", re.IGNORECASE)
"""What errors of Python, PyTorch and the system say of a lack of the host's memory."""
NAMES_OF_RUN = 4  # parts of the path of a run that tell it from others: model, train set, mode, seed with hash
LONGEST_ERROR = 300  # characters of an attempt's error


class Notes(NamedTuple):
    """Where attempts at a job are noted, and by which name if several jobs share the file."""

    log: Path
    of: str | None = None

    def saved(self) -> int | None:
        """Returns what changes with every save: a training's step (None before the first), or the bytes of results."""
        if self.of is None:
            return saved_step(self.log.parent)
        return sum(shard.stat().st_size for shard in (self.log.parent / "shards").glob("*.jsonl"))


class Attempt(NamedTuple):
    """An attempt's first note, and its last one unless it was killed or is running."""

    start: dict[str, Any]
    end: dict[str, Any] | None


def state_of(run: Path, folder: str | None) -> Path:
    """Returns where progress of a run is saved: in its own folder, or below the one that the settings name."""
    return run / ".state" if folder is None else Path(folder, *run.parts[-NAMES_OF_RUN:])


def linked_state(run: Path, folder: str | None) -> Path:
    """Returns where a job saves progress of a run; if that is elsewhere, the run's folder gets a link to it.

    Commands look for locks and notes through this link.
    """
    state = state_of(run, folder)
    if folder is not None:
        for place in (run, state):
            place.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (run / ".state").symlink_to(state.resolve(), target_is_directory=True)
    return state


def training_notes(state: Path) -> Notes:
    """Returns the notes of a training, which are beside its saved progress."""
    return Notes(state / "attempts.jsonl")


def measuring_notes(state: Path, kind: str, out: Path) -> Notes:
    """Returns the notes of an evaluation (`evaluate`) or a choice set (`choices`), with the name of its output."""
    return Notes(state / f"{kind}.jsonl", "/".join(out.parts[-2:]))


def note_step(state: Path, step: int) -> None:
    """Notes beside a training's saved state which step it is, for those who must not load it."""
    (state / "step").write_text(f"{step}\n", encoding="utf-8")


def saved_step(state: Path) -> int | None:
    """Returns the step that a training has saved, if any."""
    try:
        return int((state / "step").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def shortages(notes: Notes | None, attempt: int) -> int:
    """Returns how often a job seems to have been short of memory, up to `MOST_SHORTAGES`; `attempt` is Snakemake's.

    That is an attempt with such an error, or one that was killed. One that began before this Snakemake, and has no end,
    may still be running. Jobs without notes that this machine can read count by their attempts.
    """
    if notes is None or not notes.log.exists():
        return min(MOST_SHORTAGES, attempt - 1)
    past = _past(notes)
    if attempt == 1 and past and past[-1].end is None:
        past.pop()
    return min(MOST_SHORTAGES, sum(map(_short, past)))


def hopeless(notes: Notes | None, attempt: int) -> str | None:
    """Returns why a job is refused: the last attempts, all made by this Snakemake, have saved nothing new.

    `attempt` is that of Snakemake, which counts from 1 when it is started again.
    """
    past = _past(notes)[-ATTEMPTS:] if notes and attempt > ATTEMPTS else []
    if notes is None or len(past) < ATTEMPTS:
        return None
    saved = notes.saved()
    if any(one.start.get("saved", -1) != saved for one in past):
        return None
    return (
        f"{notes.log}: refused, as {ATTEMPTS} attempts in a row saved nothing new, of which the last"
        f" {_ended(past[-1])}; run snakemake again to try again"
    )


def refuse_hopeless(notes: Notes, attempt: int) -> None:
    """Raises UserError if a job is refused."""
    if (why := hopeless(notes, attempt)) is not None:
        raise UserError(why)


def _past(notes: Notes) -> list[Attempt]:
    """Returns the attempts at a job, oldest first."""
    found: list[Attempt] = []
    for event in attempts(notes.log):
        if event.get("of") != notes.of:
            continue
        if event["event"] == "start":
            found.append(Attempt(event, None))
            continue
        for place in reversed(range(len(found))):
            start, end = found[place]
            if end is None and all(event.get(key, start.get(key)) == start.get(key) for key in ("host", "pid")):
                found[place] = Attempt(start, event)
                break
    return found


def _short(one: Attempt) -> bool:
    if one.end is None:
        return True
    return one.end["event"] == "failed" and MEMORY.search(str(one.end.get("error"))) is not None


def _ended(one: Attempt) -> str:
    """Returns how an attempt ended, in words."""
    if one.end is None:
        return "was killed (out of memory?)"
    if one.end["event"] == "interrupted":
        return "was stopped within its first step (raise runtime_min, which is the time limit, if a step takes longer)"
    text = " ".join(str(one.end.get("error", "unknown")).split())
    return f"failed: {text if len(text) <= LONGEST_ERROR else f'{text[:LONGEST_ERROR]}...'}"
