"""What a machine has, without PyTorch: NVIDIA's driver and cards as nvidia-smi tells them, memory, disk, locks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softtok.storage.locks import is_locked

SMI_S = 20.0
CARD = ("index", "uuid", "name", "driver_version", "memory.total", "memory.free", "compute_cap", "pci.bus_id")
PROCESS = ("gpu_uuid", "pid", "process_name", "used_memory")
LEAST_DRIVER = {13: (580, 65), 12: (525, 60), 11: (450, 80)}
"""The oldest driver on Linux with which programs that were built for a major version of CUDA run."""
BF16_FROM = 8.0  # the compute capability of the first cards with bf16 (A100)


@dataclass(frozen=True)
class Process:
    """A program that computes on a card."""

    pid: int
    name: str
    held_mb: float | None

    @property
    def told(self) -> str:
        held = "" if self.held_mb is None else f", {self.held_mb / 1024:.1f} GiB"
        return f"{Path(self.name).name} (pid {self.pid}{held})"


@dataclass(frozen=True)
class Card:
    """A GPU, with the memory that is free on it and the programs that hold the rest."""

    index: int
    name: str
    driver: str
    total_mb: float | None
    free_mb: float | None
    capability: float | None
    processes: tuple[Process, ...] = ()
    bus: str = ""  # its address, as `pci_address` writes it

    @property
    def bf16(self) -> bool | None:
        """Whether it computes in bf16; None if that is not known."""
        return None if self.capability is None else self.capability >= BF16_FROM


def smi(*query: str) -> list[list[str]] | None:
    """Returns the cells that nvidia-smi answers to a query; None if it is not there, fails or hangs."""
    found = shutil.which("nvidia-smi")
    if found is None:
        return None
    command = [found, *query, "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines() if line.strip()]


def cards() -> list[Card]:
    """Returns the cards that nvidia-smi lists, none if there is no driver."""
    rows = smi(f"--query-gpu={','.join(CARD)}") or []
    running = smi(f"--query-compute-apps={','.join(PROCESS)}") or []
    on: dict[str, list[Process]] = {}
    for row in running:
        if len(row) >= len(PROCESS) and row[1].isdigit():
            # A name may hold commas, as the command line in a container does.
            on.setdefault(row[0], []).append(Process(int(row[1]), ",".join(row[2:-1]), _number(row[-1])))
    found = []
    for row in rows:
        if len(row) == len(CARD) and row[0].isdigit():
            index, uuid, name, driver, total, free, capability, bus = row
            numbers = (_number(total), _number(free), _number(capability))
            found.append(Card(int(index), name, driver, *numbers, tuple(on.get(uuid, ())), _address(bus)))
    return found


def pci_address(domain: int, bus: int, device: int) -> str:
    """Returns a card's PCI address, by which it is the same for all jobs, such as "0000:65:00"."""
    return f"{domain:04x}:{bus:02x}:{device:02x}"


def _address(told: str) -> str:
    """Returns the address that nvidia-smi writes as "00000000:65:00.0"; "" for "[N/A]"."""
    try:
        domain, bus, device = (int(part, 16) for part in told.partition(".")[0].split(":"))
    except ValueError:
        return ""
    return pci_address(domain, bus, device)


def _number(cell: str) -> float | None:
    """Returns a cell's number; None for "[N/A]", as nvidia-smi says of what a card or a container does not tell."""
    try:
        return float(cell)
    except ValueError:
        return None


def driver() -> str | None:
    """Returns the version of NVIDIA's driver, such as "580.65.06"; None if there is none."""
    rows = smi("--query-gpu=driver_version")
    if rows and rows[0] and rows[0][0][:1].isdigit():
        return rows[0][0]
    try:  # the kernel's module is there also where nvidia-smi is not
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    return next((word for word in text.split() if word[:1].isdigit() and "." in word), None)


def least_driver(cuda: str) -> tuple[int, int] | None:
    """Returns the oldest driver for programs built for this version of CUDA; None if it is not known."""
    major = cuda.partition(".")[0]
    return LEAST_DRIVER.get(int(major)) if major.isdigit() else None


def too_old(driver: str, cuda: str) -> bool:
    """Whether a driver is older than such programs need."""
    parts = [int(part) for part in driver.split(".")[:2] if part.isdigit()]
    return tuple(parts) < (least_driver(cuda) or (0, 0))


def memory_bytes() -> tuple[int, int]:
    """Returns the host's memory and what is available of it, in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if len(line.split()) > 1}
        return told["MemTotal"], told["MemAvailable"]
    except (OSError, KeyError, ValueError):  # not on Linux
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total


CGROUPS = Path("/sys/fs/cgroup")
GROUP_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Where control groups of version 2 and 1 tell their limit, what is used, and how much of that only caches files."""


def room_bytes() -> int:
    """Returns how much more memory this process may take: of the host's, and of what Slurm or a container grants it."""
    return max(0, min([memory_bytes()[1], *_left_in_groups()]))


def _left_in_groups(own: Path = Path("/proc/self/cgroup")) -> Iterator[int]:
    """Yields what the process's control groups have left, those around them included."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return
    groups = {kind: place for _, kind, place in (line.split(":", 2) for line in lines if line.count(":") >= 2)}
    for kind, limit, used, cached in GROUP_FILES:
        if kind not in groups:
            continue
        top = CGROUPS / kind
        folder = top / groups[kind].lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(top):
                break
            try:
                most, held = (int((group / name).read_text()) for name in (limit, used))
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # no such file, or no limit ("max")
                continue
            yield most - held + int(stat.get(cached, 0))


def free_bytes(folder: Path) -> int:
    """Returns the room on the disk of a folder, or of the nearest parent that exists."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def gpu_lock(card: str, folder: Path | None = None) -> Path:
    """Returns the lock file of a card, which the job that computes on it holds.

    Its name has the user's id: a file of another user cannot be opened.
    """
    name = card.replace("/", "-")
    return Path(folder or tempfile.gettempdir()) / f"softtok-gpu-{os.getuid()}-{name}.lock"


def locked_gpus(folder: Path | None = None) -> list[str]:
    """Returns the GPUs that jobs of this user hold now: nvidia-smi's indices where it lists them, else addresses."""
    every = gpu_lock("*", folder)
    start, end = every.name.split("*")
    held = [path.name[len(start) : -len(end)] for path in sorted(every.parent.glob(every.name)) if is_locked(path)]
    indices = {card.bus: str(card.index) for card in cards()} if held else {}
    return [indices.get(card, card) for card in held]
