"""Small disks, on which a job runs out of room, or which take no file at all."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Makes a folder a disk of its own for a block; skips the test if this user may not, as only the superuser may."""
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or not _done(mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        assert _done("umount", str(folder))


def make_read_only(disk: Path) -> None:
    """Lets a disk of `small_disk` take no file any more."""
    assert _done("mount", "-o", "remount,ro", str(disk))


def _done(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
