"""Stops a training run, and reads what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from softtok.storage.locks import EXIT_INTERRUPTED
from softtok.training.state import Metrics
from softtok.training.train import Trainer


def lines(run: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl without what only says where and how fast they were made."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not of_machine(key)} for line in found]


def of_machine(key: str) -> bool:
    """Whether a key of metrics.jsonl is of the machine: a device, a time, a rate or a size in memory."""
    return key == "made_on" or key.endswith(("_s", "_mb"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint by name."""
    return load_file(folder / "model.safetensors")


@contextmanager
def stopped_in_step(number: int) -> Iterator[None]:
    """Sends the training inside a SIGTERM at the beginning of a step, and asserts that it stops for that."""
    take_step = Trainer.take_step

    def stop_here(self: Trainer, step: int) -> Metrics:
        if step == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "take_step", stop_here)
        with pytest.raises(SystemExit) as stopped:
            yield
    assert stopped.value.code == EXIT_INTERRUPTED
