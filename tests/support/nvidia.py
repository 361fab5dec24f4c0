"""Stand-ins for a machine with GPUs: an nvidia-smi that answers as recorded outputs do, and what PyTorch sees."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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


def show(monkeypatch: pytest.MonkeyPatch, *cards: int | str) -> None:
    """Lets PyTorch see GPUs: each is the number of a card's PCI bus, or a UUID if the build does not tell addresses."""

    def properties(place: int) -> SimpleNamespace:
        card = cards[place]
        if isinstance(card, str):
            return SimpleNamespace(uuid=card)
        return SimpleNamespace(uuid="", pci_domain_id=0, pci_bus_id=card, pci_device_id=0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
