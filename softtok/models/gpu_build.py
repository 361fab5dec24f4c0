"""Which GPUs this build of PyTorch can use, and why it sees none."""

from __future__ import annotations

import os

import torch

from softtok.storage import machine

OTHER_BUILD = "`make clean && make install TORCH_INDEX=URL`, with the URL that pytorch.org/get-started/locally gives"


def build() -> str:
    """Returns PyTorch's version and what it was built for."""
    return f"PyTorch {torch.__version__}, built for {_platform()}"


def _platform() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "CPUs alone"


def needed_driver() -> str | None:
    """Returns the oldest NVIDIA driver for this build; None if it needs none."""
    least = machine.least_driver(torch.version.cuda) if torch.version.cuda else None
    return None if least is None else ".".join(map(str, least))


def why_none() -> str:
    """Returns why PyTorch sees no GPU here, and the remedy: build and driver stand in it."""
    driver, cuda = machine.driver(), torch.version.cuda
    here = f"driver {driver}" if driver else "no NVIDIA driver"
    told = f"{build()}; {here} here"
    if cuda is None and torch.version.hip is None:
        return f"{told}; install a build for CUDA: {OTHER_BUILD}"
    if driver is None:
        return f"{told}, and it needs {needed_driver() or 'one'} or newer; run it where a GPU and its driver are"
    if cuda is not None and machine.too_old(driver, cuda):
        older = f"or install a build for an older CUDA: {OTHER_BUILD}"
        return f"{told}, and it needs {needed_driver()} or newer; update the driver, {older}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"{told}; CUDA_VISIBLE_DEVICES={hidden!r} hides the cards; unset it, or ask the scheduler for one"
    return f"{told}; see what `nvidia-smi` says, and that the container or the job was given a GPU"
