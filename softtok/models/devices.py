"""Chooses and names the device that a job computes on.

Snakemake counts GPUs but gives out no ids. So on a machine with several GPUs a job takes the first one that no other
softtok job holds: each GPU has a lock file, and the lock is held until the process ends, however it ends.
"""

from __future__ import annotations

import functools
import os
import platform
import resource
import sys
import tempfile
from pathlib import Path

import torch

from softtok.config.settings import DeviceSettings, SchedulerSettings
from softtok.errors import UserError
from softtok.models.gpu_build import why_none
from softtok.storage.locks import try_lock

BF16_FROM = (8, 0)  # the compute capability of the first NVIDIA cards with bf16; older ones emulate it, slowly
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}  # as `runtime.precision` names them


def choose_device(settings: DeviceSettings) -> torch.device:
    """Returns the device that the settings name.

    `auto` means `cuda` for a job that asks for a GPU, else the CPU. `cuda` means a free GPU, or the first if none is
    free. Raises UserError for a device that is not there.
    """
    name = ("cuda" if settings.gpus else "cpu") if settings.device == "auto" else settings.device
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"runtime: a job asks for a GPU (device: {name}), and PyTorch sees none here: {why_none()}")
    return device if name != "cuda" else torch.device("cuda", take_free(gpu_names(torch.cuda.device_count())))


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
    print(f"softtok: {line}", file=sys.stderr, flush=True)


def gpu_names(count: int) -> tuple[str, ...]:
    """Returns names that are unique among the machine's GPUs, one for each of the `count` visible ones.

    A scheduler may show each job different GPUs as 0, 1, ..., so these numbers are not unique.
    """
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(visible[:count]) if len(visible) >= count else tuple(map(str, range(count)))


@functools.cache
def take_free(names: tuple[str, ...], folder: Path | None = None) -> int:
    """Locks the first GPU that is free and returns its place in `names`, or 0 if all are taken.

    The lock files are in `folder` (default: the system's temporary folder). The result is cached, so that all models
    of a job are on one device. Someone who starts more jobs than there are GPUs wants them to share.
    """
    for place, name in enumerate(names):
        # The name holds the user's id: a lock file of another user cannot be opened.
        path = Path(folder or tempfile.gettempdir()) / f"softtok-gpu-{os.getuid()}-{name.replace('/', '-')}.lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            continue
        if try_lock(lock):
            return place  # the descriptor stays open, so the lock is held until the process ends
        os.close(lock)
    return 0
