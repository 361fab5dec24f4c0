"""Reads what an evaluation recorded of soft thoughts, one row per step (`evaluation/thoughts.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from softtok.report.run_files import read_columns
from softtok.storage.files import THOUGHTS_SUFFIX

COLUMNS = (
    *("inference_mode", "problem_id", "sample", "step"),
    *("token", "entropy", "moved", "tokens", "weights", "ids"),
)


def read_thoughts(samples: Path, columns: Sequence[str] = COLUMNS) -> pd.DataFrame | None:
    """Returns the thoughts beside a file of samples; None where none were recorded. Raises UserError for a bad file."""
    path = samples.with_suffix(THOUGHTS_SUFFIX)
    if not path.exists():
        return None
    frame = read_columns(path, columns, empty=True).to_pandas()
    return frame if len(frame) else None
