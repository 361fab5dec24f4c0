"""Chooses and names the device that a job computes on.

Snakemake counts GPUs but gives out no ids. So a job takes a GPU that no other softtok job holds, or waits for one: each
card has a lock file, and the lock is held until the process ends, however it ends.
"""

from __future__ import annotations

import functools
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from softtok.config.settings import DeviceSettings, SchedulerSettings
from softtok.errors import UserError
from softtok.models.gpu_build import why_none
from softtok.storage import machine
from softtok.storage.breaks import may_end_here
from softtok.storage.locks import LOCK_POLL_S, try_lock

BF16_FROM = (8, 0)  # the compute capability of the first NVIDIA cards with bf16; older ones emulate it, slowly
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}  # as `runtime.precision` names them


def choose_device(settings: DeviceSettings) -> torch.device:
    """Returns the device that the settings name.

    `auto` means `cuda` for a job that asks for a GPU, else the CPU. `cuda` means any free GPU, and `cuda:1` that one.
    Waits while other jobs hold them. Raises UserError for a device that is not there.
    """
    name = ("cuda" if settings.gpus else "cpu") if settings.device == "auto" else settings.device
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"runtime: a job asks for a GPU (device: {name}), and PyTorch sees none here: {why_none()}")
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(f"runtime: device: {name} is not there; PyTorch sees {count} GPUs, the first one is cuda:0")
    places = range(count) if device.index is None else [device.index]
    return torch.device("cuda", places[take_free([card_name(place) for place in places])])


def device_name(device: str) -> str:
    """Returns the maker's name of a torch device such as "cuda:0", or of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    return f"cpu ({names[0].partition(':')[2].strip() if names else platform.machine()})"


def auto_precision(device: torch.device) -> str:
    """Returns what `precision: auto` means: bf16 on a GPU that computes in it, else fp32."""
    if device.type == "cpu":
        return "fp32"
    older = torch.cuda.is_available() and torch.cuda.get_device_capability(device) < BF16_FROM
    return "fp32" if older else "bf16"


def peak_memory_mb(device: torch.device) -> float:
    """Returns the most memory that this process has held so far, in MiB; on a GPU, that of its tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes in what getrusage counts
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def use_threads(scheduler: SchedulerSettings) -> None:
    """Sets PyTorch's thread count to the configured one, however many cores there are."""
    torch.set_num_threads(scheduler.threads)


def announce(device: torch.device, dtype: torch.dtype) -> str:
    """Prints once and returns the device and precision, which decide a job's speed and how its results round."""
    found = f"{device_name(str(device))}, {PRECISIONS[dtype]}"
    say(f"on {found}")
    return found


@functools.cache
def say(line: str) -> None:
    """Prints a line to stderr, once per process: a job may load two models."""
    _print(line)


def card_name(place: int) -> str:
    """Returns the PCI address of the card behind a visible GPU, as `machine.pci_address` writes it.

    An index, a UUID and a MIG slice in CUDA_VISIBLE_DEVICES may mean one card, and a scheduler may show each job
    another card as 0. The address is the same for all.
    """
    found: Any = torch.cuda.get_device_properties(place)
    if not hasattr(found, "pci_bus_id"):  # a build that does not tell it
        return str(found.uuid)
    return machine.pci_address(found.pci_domain_id, found.pci_bus_id, found.pci_device_id)


HELD: dict[Path, int] = {}
"""The lock files that this process holds, with their open descriptors: all models of a job are on one card."""


def take_free(cards: Sequence[str], folder: Path | None = None) -> int:
    """Locks one of these cards and returns its place among them; waits, and says so once, while other jobs hold all.

    A card on which nothing computes comes first. The lock files are in `folder` (default: the system's temporary
    folder). A signal ends the waiting, as it ends work.
    """
    held = [place for place, card in enumerate(cards) if machine.gpu_lock(card, folder) in HELD]
    if held:
        return held[0]
    in_use = _in_use()
    turns = sorted(range(len(cards)), key=lambda place: cards[place] in in_use)
    place, told = _lock_one(cards, turns, folder), False
    while place is None:
        if not told:
            _print(f"waiting for a GPU: other softtok jobs hold {', '.join(cards)}")
            told = True
        may_end_here()
        time.sleep(LOCK_POLL_S)
        place = _lock_one(cards, turns, folder)
    if cards[place] in in_use and (others := _in_use().get(cards[place])):  # what used it then may have ended
        _print(f"shares GPU {cards[place]} with {others}")
    return place


def _in_use() -> dict[str, str]:
    """Returns the cards on which programs compute, and which ones; only nvidia-smi knows those that take no lock."""
    return {card.bus: ", ".join(each.told for each in card.processes) for card in machine.cards() if card.processes}


def _lock_one(cards: Sequence[str], turns: Sequence[int], folder: Path | None) -> int | None:
    """Locks the first free card in this order and returns its place; None if other jobs hold all."""
    reasons = {}
    for place in turns:
        path = machine.gpu_lock(cards[place], folder)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            reasons[place] = f"{path}: {error.strerror}"
            continue
        if try_lock(lock):
            HELD[path] = lock  # it stays open, so the lock is held until the process ends
            return place
        os.close(lock)
    if len(reasons) < len(turns):
        return None
    _print(f"takes GPU {cards[turns[0]]} without a lock, so another job may share it ({reasons[turns[0]]})")
    return turns[0]


def _print(line: str) -> None:
    print(f"softtok: {line}", file=sys.stderr, flush=True)
