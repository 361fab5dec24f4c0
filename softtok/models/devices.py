"""Which device a job computes on.

Snakemake counts GPUs but hands out no ids, so a job on a machine with several takes the first that no other job of
softtok holds: a lock file each, kept until the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import functools
import os
import sys
import tempfile
from pathlib import Path

import torch

from softtok.config.settings import DeviceSettings
from softtok.errors import UserError
from softtok.storage.provenance import device_name

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}  # as `runtime.precision` names them


def choose_device(settings: DeviceSettings) -> torch.device:
    """Returns the device that the settings name. Raises UserError for a device that is not there.

    `auto` is `cuda` for a job that asks for a GPU, else the CPU; `cuda` is a free GPU (the first, where none is free).
    """
    name = ("cuda" if settings.gpus else "cpu") if settings.device == "auto" else settings.device
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"runtime: a job asks for a GPU (device: {name}), and PyTorch sees none here; use device: cpu")
    return device if name != "cuda" else torch.device("cuda", take_free(gpu_names(torch.cuda.device_count())))


def announce(device: torch.device, dtype: torch.dtype) -> str:
    """Says at the start of a job what decides its speed and, by rounding, its results; and returns it."""
    found = f"{device_name(str(device))}, {PRECISIONS[dtype]}"
    say(f"on {found}")
    return found


@functools.cache  # once in a job that loads two models
def say(line: str) -> None:
    print(f"softtok: {line}", file=sys.stderr, flush=True)


def gpu_names(count: int) -> tuple[str, ...]:
    """What tells the visible GPUs apart on this machine: a scheduler may show each job others of them as 0, 1, ..."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(visible[:count]) if len(visible) >= count else tuple(map(str, range(count)))


@functools.cache  # a job that loads two models has them on one device
def take_free(names: tuple[str, ...], folder: Path | None = None) -> int:
    """The place of the first name whose lock in `folder` (the system's temporary one) is free, and now held by this
    process; 0 where all are held: who starts more jobs than there are GPUs wants them to share."""
    for place, name in enumerate(names):
        # A user's own: what another user's jobs take cannot be told from a file that must not be opened.
        path = Path(folder or tempfile.gettempdir()) / f"softtok-gpu-{os.getuid()}-{name.replace('/', '-')}.lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
        else:
            return place  # the descriptor stays open, and the lock held, until the process ends
    return 0
