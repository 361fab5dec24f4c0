"""What made a result, and what was tried."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import time
import traceback
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from softtok import __version__
from softtok.storage.files import canonical_json
from softtok.storage.shards import records_of


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
    return records_of(path.read_bytes())[0] if path.exists() else []


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
        where = ["git", "-C", str(Path(__file__).parents[1]), *command, "--", "."]
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
