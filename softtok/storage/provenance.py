"""Records what made a result (versions, commit, host, device) and every attempt at a job."""

from __future__ import annotations

import ast
import contextlib
import os
import platform
import re
import shutil
import socket
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from softtok import __version__
from softtok.storage.files import canonical_json
from softtok.storage.shards import records_of

LONGEST_ERROR = 200  # characters of a job's last error


@contextlib.contextmanager
def attempt(path: Path, of: str | None = None, saved: int | None = None) -> Iterator[None]:
    """Notes the start and the end of an attempt at a job in the JSON lines file `path`.

    `of` names the job where several share the file, and `saved` is what it finds saved (`Notes.saved`).

    A killed job leaves a start without an end. If the disk is too full for a note, the job goes on without it, and the
    job's own error is the one that is shown.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {"of": of} if of else {}

    def note(event: str, **facts: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        known = {"time": stamp, "host": socket.gethostname(), "pid": os.getpid(), **named}
        line = canonical_json({"event": event, **known, **facts}) + "\n"
        with contextlib.suppress(OSError), open(path, "ab+") as file:
            file.seek(max(0, file.tell() - 1))
            half = file.read() not in (b"", b"\n")  # the last line was cut short
            file.write(("\n" * half + line).encode())

    note("start", saved=saved)
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
    """Returns the events noted in `path`, oldest first, without damaged lines."""
    return records_of(path.read_bytes())[0] if path.exists() else []


def error_of(event: Mapping[str, Any]) -> str:
    """Returns the error that ended an attempt, in one line; of a UserError its text."""
    text = str(event.get("error", "unknown"))
    if told := re.fullmatch(r"UserError\((.*)\)", text, re.DOTALL):
        with contextlib.suppress(ValueError, SyntaxError):
            text = str(ast.literal_eval(told[1]))
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}..."


def provenance(device: str | None = None, precision: str | None = None) -> dict[str, str]:
    """Returns what made a result: versions, commit and host.

    Where a model was run, the device (its maker's name for it) and the precision of the weights' working copy as well.
    """
    packages = ("torch", "transformers", "math-verify", "numpy")
    return {
        "softtok": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        **({"device": device} if device else {}),
        **({"precision": precision} if precision else {}),
        "host": socket.gethostname(),
    }


def _commit() -> str:
    """The last commit that changed the package, with "-dirty" if files of the package have changed since.

    Empty outside of a checkout. Other files of the repository, such as config.yaml, do not count: what they say is in
    the specs.
    """

    def git(*command: str) -> str:
        where = ["git", "-C", str(Path(__file__).parents[1]), *command, "--", "."]
        result = subprocess.run(where, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    commit = git("log", "-1", "--format=%h", "--abbrev=12") if shutil.which("git") else ""
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else commit
