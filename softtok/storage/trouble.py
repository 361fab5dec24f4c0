"""Tells in one line what is wrong with a disk: it is full, read-only, closed to this user, or broken.

Libraries hide the system's error in errors of their own, as cause or as text, so both are searched.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from softtok.storage.hub import chain
from softtok.storage.locks import SAVED
from softtok.storage.progress import last_line

ADVICE = {
    errno.ENOSPC: "make room and run it again",
    errno.EDQUOT: "make room and run it again",
    errno.EFBIG: "raise the limit on the size of a file and run it again",
    errno.EROFS: "make it writable, or work in another folder",
    errno.EACCES: "change its permissions, or work in another folder",
    errno.EPERM: "change its permissions, or work in another folder",
    errno.EIO: "the disk or the network file system fails; run it again when it is well",
    errno.ESTALE: "the disk or the network file system fails; run it again when it is well",
    errno.ENAMETOOLONG: "give shorter names",
    errno.EISDIR: "a folder is in the place of a file; remove it and run it again",
    errno.ENOTDIR: "a file is in the place of a folder; remove it and run it again",
}
WHOLE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""What counts also as the cause of another error. A single file's trouble may have been dealt with there."""
SMALL_FILE = 2**16  # bytes, for logs and notes about a few jobs
IN_TEXT = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")
"""How libraries in Rust and C++ write the system's error in their messages."""


def storage_trouble(error: BaseException, out: Path | None = None) -> str | None:
    """Returns the line for an error that a disk caused; None for any other.

    Many errors do not say where they happened. Then the line names `out`, if it is given.
    """
    for cause in chain(error):
        number = _number(cause)
        if number in (ADVICE if cause is error else WHOLE_DISK):
            text = str(cause) if isinstance(cause, OSError) and cause.errno else os.strerror(number)
            where = f"{out}: " if out and getattr(cause, "filename", None) is None else ""
            return f"{where}{' '.join(text.split())}; {ADVICE[number]}"
    return None


def _number(error: BaseException) -> int:
    """Returns the system's number of an error, or 0."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = IN_TEXT.search(str(error))
    return int(found[1] or found[2]) if found else 0


def tell_failures(results: Path, since: float) -> None:
    """Prints what jobs wrote last into their logs in `results` after a time, each line with its log.

    First are those that a signal stopped with their progress saved, then errors. If no log says why, a disk that takes
    no file may be the reason; then Snakemake could not go on either.
    """
    logs = [log for log in sorted((results / "logs").rglob("*.log")) if log.stat().st_mtime >= since]
    ends = [(log, last_line(log)) for log in logs]
    told = [(log, end) for log, end in ends if end.endswith(SAVED)]
    told += [(log, end) for log, end in ends if end.startswith("softtok: error: ")]
    for log, end in told:
        print(f"{end} ({log})", file=sys.stderr)
    if not told and (trouble := disk_trouble(Path())):
        print(f"softtok: error: {trouble}", file=sys.stderr)


def stopped(logs: Iterable[str]) -> str | None:
    """Returns in one line that a job was stopped with its progress saved, if one of its logs ends so."""
    for log in map(Path, logs):
        if (end := last_line(log)).endswith(SAVED):
            return f"{end} ({log})"
    return None


def disk_trouble(folder: Path) -> str | None:
    """Returns why no small file can be written into a folder, if that is so. The file has no name there."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(SMALL_FILE))
    except OSError as error:
        return storage_trouble(OSError(error.errno, error.strerror, str(folder.resolve())))
    return None
