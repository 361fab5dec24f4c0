"""What outlives a job: atomic files, content hashes, append-only shards, attempts, provenance."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from softtok import __version__

if TYPE_CHECKING:
    import pyarrow

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: stopped by a signal with its progress saved; run it again
LOCK_POLL_S = 1.0


def canonical_json(value: Any) -> str:
    """One line of JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: Any, digits: int = 8) -> str:
    """First `digits` hex digits of the SHA-256 of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:digits]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, pattern: str) -> str:
    """One hash over names and contents of the files in `folder` that match `pattern`."""
    return content_hash({path.name: file_sha256(path) for path in sorted(folder.glob(pattern))}, digits=64)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place only when the block ends well. A folder replaces a
    folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)  # os.replace does not replace a folder that holds files
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_columns(path: Path, names: Sequence[str]) -> pyarrow.Table:
    """Columns of a parquet file. (`pyarrow.parquet.read_table` would import pandas, a twentieth of a job's start.)"""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read(columns=list(names))


class Shard:
    """An append-only file of finished items: a header line that names what they belong to, then one JSON line an item.

    A line cut short by a crash is forgotten; a file with another header is started afresh.
    """

    def __init__(self, path: Path, header: Any):
        self.path = path
        self.lines: list[Any] = []
        head = canonical_json(header) + "\n"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole.startswith(head):
            # Not splitlines: it also splits at U+2028 and the like, which JSON leaves as they are in texts.
            self.lines = [json.loads(line) for line in whole[len(head) :].split("\n")[:-1]]
            if whole != text:
                write_text(path, whole)
        else:
            write_text(path, head)

    def append(self, items: list[Any]) -> None:
        """Adds items; on disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(canonical_json(item) + "\n" for item in items))
            file.flush()
            os.fsync(file.fileno())
        self.lines += items


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


@contextlib.contextmanager
def attempt(path: Path) -> Iterator[None]:
    """Notes the start and the end of an attempt at a job in the JSON lines file `path` (a killed job leaves a start
    alone)."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def note(event: str, **facts: Any) -> None:
        with open(path, "a", encoding="utf-8") as file:
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            file.write(canonical_json({"event": event, "time": stamp, "host": socket.gethostname(), **facts}) + "\n")

    note("start", pid=os.getpid())
    try:
        yield
    except SystemExit as stop:
        note("interrupted", code=stop.code)
        raise
    except BaseException as error:
        note("failed", error=repr(error), last_lines=traceback.format_exc().splitlines()[-5:])
        raise
    note("done")


def attempts(path: Path) -> list[dict[str, Any]]:
    """The events noted in `path`, oldest first."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n") if line]


def provenance(device: str = "cpu") -> dict[str, str]:
    """What made a result: versions, commit, device and host. `device` is a torch device string."""
    packages = ("torch", "transformers", "math-verify", "numpy")
    return {
        "softtok": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "device": _device_name(device),
        "host": socket.gethostname(),
    }


def _commit() -> str:
    """Commit of the package's own checkout, with "-dirty" for uncommitted changes; "" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("git") else None
    return result.stdout.strip() if result and result.returncode == 0 else ""


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    return f"cpu ({names[0].partition(':')[2].strip() if names else platform.machine()})"
