"""Shows how far a job is: a bar on a terminal, lines in a log, and a small file that `softtok status` reads."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from softtok.storage.locks import try_lock
from softtok.storage.records import Record

LINE_EVERY_S, LINE_EVERY_MOST_S = 15.0, 900.0  # between lines of a log: at first, and at the most
LINE_GROWTH = 0.1  # of the time since the start, between these two
NOTE_EVERY_S = 5.0
TRAINING = "train"  # the name of a training in the folder `.state` of its run
RECENT = 20  # advances that a mean is taken over; for the pace, as many as the last minutes had, if those are more
RECENT_S = 300.0
TAIL = 4096  # bytes at the end of a log in which its last line is
LOCK_TRIES, LOCK_PAUSE_S = 5, 0.1  # somebody who looks whether a job runs holds its lock for a moment


class Note(Record):
    """How far a job is, written while it runs. `left_s` and `tokens_s` are null before there is a pace."""

    pid: int
    host: str
    time: float  # seconds since 1970
    unit: str
    done: int
    total: int
    left_s: float | None
    tokens_s: float | None
    facts: dict[str, float]


class _Seen(NamedTuple):
    at: float
    done: int
    tokens: int


class Progress:
    """Counts what a job has done. `show` is called after each advance."""

    def __init__(self, what: str, total: int, done: int, unit: str, note: Path | None) -> None:
        self.what, self.total, self.done, self.unit, self.note = what, total, done, unit, note
        self.facts: dict[str, float] = {}
        self._words: dict[str, str] = {}
        self._recent: dict[str, deque[float]] = {}
        self._tokens = 0
        self.show: Callable[[], None] = lambda: None
        self._start = self._noted = time.monotonic()
        self._seen = deque([_Seen(self._start, done, 0)])

    def advance(
        self, count: int, tokens: int = 0, recent: Mapping[str, float] | None = None, **facts: float | str
    ) -> None:
        """Notes that `count` more are done, for which so many `tokens` were generated.

        Of `recent` numbers the mean over the last advances is shown, of other facts the last.
        """
        now = time.monotonic()
        self.done += count
        self._tokens += tokens
        self._seen.append(_Seen(now, self.done, self._tokens))
        while len(self._seen) > RECENT + 1 and now - self._seen[1].at >= RECENT_S:
            self._seen.popleft()
        for name, value in (recent or {}).items():
            values = self._recent.setdefault(name, deque(maxlen=RECENT))
            values.append(value)
            self.facts[name] = sum(values) / len(values)
        for name, fact in facts.items():
            if isinstance(fact, str):
                self._words[name] = fact
            else:
                self.facts[name] = float(fact)
        if now - self._noted >= NOTE_EVERY_S or self.done >= self.total:
            self.write_note()
        self.show()

    def skip(self, count: int) -> None:
        """Notes that `count` were done before, which says nothing of the pace."""
        self.done += count
        self._seen = deque(seen._replace(done=seen.done + count) for seen in self._seen)

    @property
    def each_s(self) -> float | None:
        """Seconds that one of them takes now; None before the first."""
        first, last = self._seen[0], self._seen[-1]
        return (last.at - first.at) / (last.done - first.done) if last.done > first.done else None

    @property
    def left_s(self) -> float | None:
        """Seconds until all are done, at the present pace."""
        return None if self.each_s is None else self.each_s * (self.total - self.done)

    @property
    def tokens_s(self) -> float | None:
        """Generated tokens a second, of all the time that the job takes."""
        first, last = self._seen[0], self._seen[-1]
        made, took = last.tokens - first.tokens, last.at - first.at
        return made / took if made and took > 0 else None

    def text(self) -> str:
        """Returns pace, time left and facts in words."""
        parts = []
        if self.each_s is not None and self.left_s is not None:
            parts.append(f"{pace(self.each_s, self.unit)}, {duration(self.left_s)} left")
        if self.tokens_s is not None:
            parts.append(f"{self.tokens_s:.4g} tokens/s")
        parts += [f"{name} {value:.4g}" for name, value in self.facts.items() if math.isfinite(value)]
        return ", ".join([*parts, *(f"{name} {word}" for name, word in self._words.items())])

    def line(self) -> str:
        """Returns a line of a log."""
        passed = duration(time.monotonic() - self._start)
        return f"{self.what}: {self.done}/{self.total} {self.unit}, {passed}, {self.text()}".rstrip(", ")

    def write_note(self) -> None:
        """Replaces the file that says how far the job is. What fails here stops no job."""
        self._noted = time.monotonic()
        if self.note is None:
            return
        note = Note(
            pid=os.getpid(),
            host=socket.gethostname(),
            time=time.time(),
            unit=self.unit,
            done=self.done,
            total=self.total,
            left_s=self.left_s,
            tokens_s=self.tokens_s,
            facts={name: value for name, value in self.facts.items() if math.isfinite(value)},
        )
        half = self.note.with_name(f".{self.note.name}.tmp")
        with contextlib.suppress(OSError):
            self.note.parent.mkdir(parents=True, exist_ok=True)
            half.write_text(note.as_json(), encoding="utf-8")
            os.replace(half, self.note)


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0, unit: str = "steps", note: Path | None = None) -> Iterator[Progress]:
    """Yields what counts and shows a job's progress. `done` of `total` were done before; `note` is the file."""
    counted = Progress(what, total, done, unit, note)
    with _bar(counted) if sys.stderr.isatty() else _log(counted):
        try:
            yield counted
        finally:
            counted.write_note()


@contextlib.contextmanager
def _bar(counted: Progress) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(counted.what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(counted.what, total=counted.total, completed=counted.done, text="")
        counted.show = lambda: bar.update(task, completed=counted.done, text=counted.text())
        yield


@contextlib.contextmanager
def _log(counted: Progress) -> Iterator[None]:
    start = last = time.monotonic()

    def show() -> None:
        nonlocal last
        now = time.monotonic()
        pause = min(max(LINE_EVERY_S, LINE_GROWTH * (now - start)), LINE_EVERY_MOST_S)
        if now - last >= pause or counted.done >= counted.total:
            last = now
            print(counted.line(), file=sys.stderr, flush=True)

    counted.show = show
    yield


@contextlib.contextmanager
def shown_as_running(state: Path, job: str) -> Iterator[Path]:
    """Holds the lock in a run's folder `state` by which others see that a job runs; yields the path of its note.

    It never waits for long: a second process at the same job goes on without it.
    """
    path = lock_of(state, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        for _ in range(LOCK_TRIES):
            if try_lock(file.fileno()):
                break
            time.sleep(LOCK_PAUSE_S)
        yield note_of(state, job)


def job_name(run: Path, out: Path) -> str:
    """Returns the name that a job which writes `out` has in the folder `.state` of its run."""
    inside = out.relative_to(run) if out.is_relative_to(run) else Path(out.name)
    return inside.with_suffix("").as_posix().replace("/", ".")


def lock_of(state: Path, job: str) -> Path:
    """Returns the lock that a job holds while it runs."""
    return state / "locks" / job


def note_of(state: Path, job: str) -> Path:
    """Returns the file that says how far a job is."""
    return state / "notes" / f"{job}.json"


def read_note(path: Path) -> Note | None:
    """Returns how far a job is, or was when it ended; None if no note can be read."""
    try:
        return Note.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def last_line(log: Path) -> str:
    """Returns the last line of a log that says something; "" if there is none."""
    with contextlib.suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def pace(each_s: float, unit: str) -> str:
    """Returns a pace in words: "1.2 s a step", "3.1 answers/s"."""
    return f"{each_s:.3g} s a {unit.removesuffix('s')}" if each_s >= 1 else f"{1 / max(each_s, 1e-9):.3g} {unit}/s"


def duration(seconds: float) -> str:
    """Returns a duration in its two leading units: "48 s", "12 min 30 s", "5 h 12 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
