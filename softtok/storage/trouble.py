"""Tells in one line what is wrong with a disk: it is full, read-only, closed to this user, or broken.

Libraries hide the system's error in errors of their own, as cause or as text, so both are searched.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

from softtok.storage.hub import chain

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
IN_TEXT = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")
"""How libraries in Rust and C++ write the system's error in their messages."""


def storage_trouble(error: BaseException) -> str | None:
    """Returns the line for an error that a disk caused; None for any other."""
    for cause in chain(error):
        number = _number(cause)
        if number in (ADVICE if cause is error else WHOLE_DISK):
            text = str(cause) if isinstance(cause, OSError) and cause.errno else os.strerror(number)
            return f"{' '.join(text.split())}; {ADVICE[number]}"
    return None


def _number(error: BaseException) -> int:
    """Returns the system's number of an error, or 0."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = IN_TEXT.search(str(error))
    return int(found[1] or found[2]) if found else 0


def failures(results: Path, since: float) -> list[str]:
    """Returns what failed jobs wrote last into their logs in `results` after a time, each with its log.

    If no log says why, a disk that takes no file may be the reason.
    """
    told = []
    for log in sorted((results / "logs").rglob("*.log")):
        if log.stat().st_mtime >= since:
            lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines() or [""]
            if lines[-1].startswith("softtok: error: "):
                told.append(f"{lines[-1]} ({log})")
    if not told and (trouble := _disk_trouble(results if results.is_dir() else Path())):
        told.append(f"softtok: error: {trouble}")
    return told


def _disk_trouble(folder: Path) -> str | None:
    """Returns why no file of a page can be written into a folder, if that is so."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        return storage_trouble(OSError(error.errno, error.strerror, str(folder)))
    return None
