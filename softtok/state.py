"""What outlives a job: atomic files, content hashes, append-only shards, attempts, provenance."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
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
from softtok.errors import UserError

if TYPE_CHECKING:
    import pyarrow

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: stopped by a signal with its progress saved; run it again
LOCK_POLL_S = 1.0
WEIGHTS = "*.safetensors"  # the files of a model's folder whose hash is the model's identity


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
    folder. What is new is on disk before it has the name: a power cut leaves the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _to_disk(temporary)
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)  # os.replace does not replace a folder that holds files
        os.replace(temporary, path)
        _to_disk(path.parent, below=False)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path, below: bool = True) -> None:
    """Waits until a file, or a folder and what is `below` it, is on disk; where the file system has no such call, or
    not for folders, it is left at that."""
    for item in [*(path.rglob("*") if below else []), path]:
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                raise
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_manifest(path: Path) -> dict[str, Any]:
    """The JSON object that a job wrote into its output folder. Raises UserError where it is gone or damaged."""
    try:
        manifest = read_json(path)
        if not isinstance(manifest, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path} cannot be read ({why}); remove the folder {path.parent} and run snakemake again"
        ) from error
    return manifest


def read_columns(path: Path, names: Sequence[str]) -> pyarrow.Table:
    """Columns of a parquet file. (`pyarrow.parquet.read_table` would import pandas, a twentieth of a job's start.)
    Raises UserError where the file is damaged."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read(columns=list(names))
    except (pyarrow.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path} is not a readable parquet file ({why}); remove it and run snakemake again") from error
    if missing := [name for name in names if name not in table.column_names]:
        raise UserError(f"{path} has no column {missing[0]!r}; remove it and run snakemake again")
    return table


def _records(lines: bytes) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects that stand in lines of their own, and how many lines are none: what a full disk or a power cut
    leaves of them."""
    records, damaged = [], 0
    # Not splitlines: it also splits at U+2028 and the like, which JSON leaves as they are in texts.
    for line in filter(None, lines.split(b"\n")):
        try:
            record = json.loads(line.decode("utf-8"))
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged += 1
    return records, damaged


class Shard:
    """An append-only file of finished items: a header line that names what they belong to, then one JSON line an item.

    A damaged line, or one cut short by a crash, is forgotten; a file with another header is started afresh.
    """

    def __init__(self, path: Path, header: Any):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        head = canonical_json(header) + "\n"
        found = path.read_bytes() if path.exists() else b""
        whole = found[: found.rfind(b"\n") + 1]
        damaged = 0
        if whole.startswith(head.encode()):
            self.lines, damaged = _records(whole[len(head.encode()) :])
        if damaged:
            print(f"softtok: {path}: damaged lines ({damaged}); what stood there is made again", file=sys.stderr)
        if damaged or whole != found or not whole.startswith(head.encode()):
            write_text(path, head + "".join(canonical_json(line) + "\n" for line in self.lines))

    def append(self, items: list[dict[str, Any]]) -> None:
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
    alone). A disk that is too full for that is no reason to fail, nor to hide why the job failed."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def note(event: str, **facts: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = canonical_json({"event": event, "time": stamp, "host": socket.gethostname(), **facts}) + "\n"
        with contextlib.suppress(OSError), open(path, "ab+") as file:
            file.seek(max(0, file.tell() - 1))
            half = file.read() not in (b"", b"\n")  # the line before was cut short
            file.write(("\n" * half + line).encode())

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
    """The events noted in `path`, oldest first; damaged lines are left out."""
    return _records(path.read_bytes())[0] if path.exists() else []


def provenance(device: str | None = None, precision: str | None = None) -> dict[str, str]:
    """What made a result: versions, commit and host; where a model was run, also the device (a torch device string)
    and the precision of the working copy of its weights."""
    packages = ("torch", "transformers", "math-verify", "numpy")
    return {
        "softtok": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        **({"device": device_name(device)} if device else {}),
        **({"precision": precision} if precision else {}),
        "host": socket.gethostname(),
    }


def _commit() -> str:
    """The last commit of the package's own checkout that changed the package, with "-dirty" where there are changes
    since; "" outside of a checkout. What else the repository holds, config.yaml above all, makes no result."""

    def git(*command: str) -> str:
        where = ["git", "-C", str(Path(__file__).parent), *command, "--", "."]
        result = subprocess.run(where, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    commit = git("log", "-1", "--format=%h", "--abbrev=12") if shutil.which("git") else ""
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def device_name(device: str) -> str:
    """What a torch device is called by its maker."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    return f"cpu ({names[0].partition(':')[2].strip() if names else platform.machine()})"
