"""Processes and threads that tests watch: any of them may end or print at any moment, also between two looks."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import psutil
import pytest

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60) -> T:
    """Waits for a condition to be true; returns its first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.02)
    return value


def noted_stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Returns what this process prints on stderr from now on; `capsys` loses what a thread prints while it is read."""
    noted = io.StringIO()
    monkeypatch.setattr(sys, "stderr", noted)
    return noted


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Returns the processes that still run; a zombie does not."""
    return [one for one in processes if _status(one) not in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE)]


def running(pid: int) -> bool:
    """Returns whether a process with this id still runs."""
    try:
        return bool(alive([psutil.Process(pid)]))
    except psutil.NoSuchProcess:
        return False


def children(pid: int | None = None, recursive: bool = False) -> list[psutil.Process]:
    """Returns the live processes that a process (by default this one) started, and those that these started."""
    try:
        return alive(psutil.Process(pid).children(recursive))
    except psutil.NoSuchProcess:
        return []


def workers(pid: int | None = None) -> list[psutil.Process]:
    """Returns the live workers of a process: the children of its fork server."""
    return [worker for child in children(pid) for worker in children(child.pid)]


def cpu_s(process: psutil.Process) -> float:
    """Returns the CPU time in seconds that a process took, 0 once it has ended."""
    try:
        return process.cpu_times().user
    except psutil.NoSuchProcess:
        return 0.0


def kill(processes: Iterable[psutil.Process]) -> int:
    """Kills processes; returns how many there still were."""
    killed = 0
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            one.kill()
            killed += 1
    return killed


def _status(process: psutil.Process) -> str:
    try:
        return process.status() if process.is_running() else psutil.STATUS_DEAD
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD
