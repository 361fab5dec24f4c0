"""A lock that keeps two jobs out of one folder, and signals that end a job once it has saved."""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import lock_descriptor

from softtok.storage.breaks import ended_by

SAVED = "progress is saved"  # end of the last line of a job that a signal stopped
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: stopped by a signal with its progress saved; run it again
LOCK_POLL_S = 1.0
ONE_REQUEST_S = 1.0  # `timeout` sends its signal twice, and a closed terminal may too


@contextlib.contextmanager
def exclusive_lock(path: Path, interruption: Interruption) -> Iterator[None]:
    """Holds the lock file `path`, and waits while another process holds it.

    Exits with 75 when a signal arrives while it waits. On a file system without locks it goes on without one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        locked = try_lock(file.fileno())
        if not locked:
            print(f"softtok: waiting for another job, which holds {path}", file=sys.stderr)
        while not locked:
            interruption.exit_if_asked()
            time.sleep(LOCK_POLL_S)
            locked = try_lock(file.fileno())
        yield  # closing the file releases the lock


def try_lock(descriptor: int) -> bool:
    """Locks an open file, without waiting; returns False if another process holds the lock.

    Returns True without a lock on a file system that has none. There, filelock's own fallback is a marker file; a
    killed job would leave it behind and block all later jobs.
    """
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:
        return True


def is_locked(path: Path) -> bool:
    """Whether another process holds a lock file; False on a file system without locks."""
    try:
        with open(path, "rb+") as file:
            return not try_lock(file.fileno())
    except OSError:
        return False


STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""Signals that ask a job to stop: from a person, a shell, Snakemake, Slurm, or a terminal that is closed."""


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Blocks the signals that stop a job, for processes that are started in the block and inherit this.

    A signal to all processes of a job would end its helpers before the job can save. The job itself gets what arrived
    when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Stopped(SystemExit):
    """Ends a job that a signal has asked to stop, with exit code 75."""

    def __init__(self) -> None:
        super().__init__(EXIT_INTERRUPTED)


class Interruption:
    """A context in which a signal of `STOPPING` ends the job where it says `may_end_here`, so that it can save.

    A second signal ends the process at once; what arrives within a second of the first is no second one. An ignored
    SIGHUP stays ignored, as `nohup` wants it. Python takes signals in the main thread only; in any other thread the
    context does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._arrived = 0.0
        self._before: dict[int, Any] = {}
        self._within = contextlib.ExitStack()

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
            self._before = {number: signal.signal(number, self._note) for number in STOPPING if number not in ignored}
            self._within.enter_context(ended_by(self.exit_if_asked))
        with (
            blocked_signals()
        ):  # else the first library that uses a lock starts Python's tracker, which would be stopped
            multiprocessing.resource_tracker.ensure_running()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._within.close()
        if kind is Stopped and self.signal is not None:
            print(f"softtok: stopped by {signal.Signals(self.signal).name}; {SAVED}", file=sys.stderr)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._arrived = number, now
        elif now > self._arrived + ONE_REQUEST_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def exit_if_asked(self) -> None:
        """Raises `Stopped` if a signal has arrived; jobs call it right after they have saved."""
        if self.signal is not None:
            raise Stopped
