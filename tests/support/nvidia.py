"""A stand-in for nvidia-smi: a program of that name which answers the two queries as recorded outputs do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SMI = """#!/bin/sh
case "$1" in
  --query-gpu=driver_version) printf '%s' '{drivers}' ;;
  --query-gpu=*) printf '%s' '{cards}' ;;
  --query-compute-apps=*) printf '%s' '{running}' ;;
esac
exit {status}
"""


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cards: list[str], running: list[str] | None = None, status: int = 0
) -> None:
    """Puts a `nvidia-smi` in front of the PATH that lists these cards and running programs (lines of CSV)."""
    drivers = "\n".join(line.split(", ")[3] for line in cards)
    told = {"cards": "\n".join(cards), "running": "\n".join(running or []), "drivers": drivers, "status": status}
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(SMI.format(**told))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
