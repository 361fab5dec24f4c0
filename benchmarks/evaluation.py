"""A whole evaluation cell of the toy, whose finished rows stay, are dropped, or give their places to rows that wait."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.toy import softtok
from softtok.evaluation import evaluate as module
from softtok.method.stopping import TextRules
from softtok.models.decoding import Decoder

GSM8K_LENGTHS = (
    33, 39, 43, 46, 49, 51, 54, 57, 60, 62, 64, 66, 69, 72, 74, 77, 78, 82, 84, 87,
    89, 93, 95, 98, 100, 103, 106, 110, 113, 116, 121, 125, 129, 134, 139, 147, 155, 166, 181, 215,
)  # fmt: skip
"""Tokens of the worked solutions of GSM8K's test set, in SmolLM2's tokenizer: 40 quantiles, mean 95."""
GSM8K_ROWS = 64  # side by side, with these lengths


class LikeGsm8k(TextRules):
    """Ends CoTs as long as GSM8K's worked solutions, whatever they say: which length, their first tokens decide."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.may_stop[:] = True

    def stop(self, ids: np.ndarray) -> str | None:
        seed = int.from_bytes(hashlib.blake2b(ids[:20].tobytes(), digest_size=4).digest(), "little")
        length = GSM8K_LENGTHS[seed % len(GSM8K_LENGTHS)]
        return "phrase" if len(ids) >= max(length, 20) else None


def evaluation(folder: Path, threads: int, rows: str, samples: int, lengths: str) -> Callable[[], dict[str, float]]:
    """Returns a function that evaluates the toy from a fresh start, and counts decode steps and their rows.

    Finished `rows` are kept, dropped or replaced; `lengths` are the toy's or those of gsm8k.
    """
    spec = json.loads((folder / "evaluate.json").read_text())
    for mode in spec["inference_modes"].values():
        mode["samples"] = samples
    sizes: dict[str, object] = {"threads": threads}
    patches: list[Any] = [mock.patch.object(Decoder, "replaces", rows == "replaced")]
    if rows == "kept":
        patches.append(mock.patch.object(Decoder, "drop_share", 2))
    if lengths == "gsm8k":
        spec["evaluation"]["max_cot_tokens"], sizes["rollout_rows"] = 2 * GSM8K_LENGTHS[-1], GSM8K_ROWS
        patches.append(mock.patch.object(module, "TextRules", LikeGsm8k))

    def evaluate() -> dict[str, float]:
        counts, step = {"decode_steps": 0.0, "decode_rows": 0.0}, Decoder.step

        def counted(self: Decoder, x_nD: torch.Tensor, positions_n: torch.Tensor) -> torch.Tensor:
            counts["decode_steps"] += 1
            counts["decode_rows"] += len(x_nD)
            return step(self, x_nD, positions_n)

        shutil.rmtree(folder / "run" / ".state", ignore_errors=True)
        with contextlib.ExitStack() as stack:
            for patch in (*patches, mock.patch.object(Decoder, "step", counted)):
                stack.enter_context(patch)
            softtok(
                "evaluate",
                spec=json.dumps(spec),
                runtime=json.dumps(sizes),
                run=folder / "run",
                data=folder / "test.parquet",
                out=Path(stack.enter_context(tempfile.TemporaryDirectory())) / "cell.parquet",
            )
        return counts

    return evaluate
