"""A lock for one job a folder, and signals that end a job after it has saved."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: stopped by a signal with its progress saved; run it again
LOCK_POLL_S = 1.0


@contextlib.contextmanager
def alone(path: Path, interruption: Interruption) -> Iterator[None]:
    """Holds the lock file `path`, waiting while another process does. File systems without locks go without."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    print(f"softtok: waiting for another job, which holds {path}", file=sys.stderr)
                waiting = True
                interruption.exit_if_asked()
                time.sleep(LOCK_POLL_S)
            except OSError:
                break
        yield  # closing the file gives the lock back


class Interruption:
    """A context in which SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 become a flag, so that a job can finish its step, save
    and exit with 75. Outside of the main thread, where Python takes no signals, it changes nothing."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def exit_if_asked(self) -> None:
        """To be called where progress is saved."""
        if self.signal is not None:
            print(f"softtok: stopped by {signal.Signals(self.signal).name}; progress is saved", file=sys.stderr)
            raise SystemExit(EXIT_INTERRUPTED)
