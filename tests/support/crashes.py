"""Ends a job before any one of its file-system calls, as a kill, a power cut, or a disk that takes no more would."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CALLS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree", "shutil.copyfile"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class CrashError(BaseException):
    """Ends a job where it stands."""


class FileSystem:
    """Counts the calls that change something below a folder, and lets none happen from the n-th on.

    A killed process cleans nothing up. So later calls fail as well, those of `finally` blocks among them. Libraries in
    Rust and C++ write without these calls.
    """

    def __init__(self) -> None:
        self.folder = ""
        self.seen = 0
        self.ends_at = sys.maxsize
        self.error: Callable[[], BaseException] = CrashError
        sys.addaudithook(self._heard)  # for good: Python has no way to remove it

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or (event not in CALLS and event != "open"):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        place = arguments[0]
        if not isinstance(place, str | os.PathLike) or not str(os.fspath(place)).startswith(self.folder):
            return
        self.seen += 1
        if self.seen >= self.ends_at:
            raise self.error()

    @contextmanager
    def watched(
        self, folder: Path, ends_at: int = sys.maxsize, error: Callable[[], BaseException] = CrashError
    ) -> Iterator[FileSystem]:
        """Counts in a block, and raises `error` at call `ends_at` (1, 2, ...) and at every later one."""
        self.folder, self.seen, self.ends_at, self.error = str(folder), 0, ends_at, error
        try:
            yield self
        finally:
            self.folder = ""


FILE_SYSTEM = FileSystem()
