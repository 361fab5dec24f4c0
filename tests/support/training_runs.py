"""Reads what a training run leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def lines(run: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl without wall-clock times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_s")} for line in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a checkpoint by name."""
    return load_file(folder / "model.safetensors")
