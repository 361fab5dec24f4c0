"""Reads what an evaluation recorded of soft thoughts, one row per step (`evaluation/thoughts.py`)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from softtok.report.run_files import read_columns

SUFFIX = ".thoughts.parquet"
COLUMNS = (
    *("inference_mode", "problem_id", "sample", "step"),
    *("token", "entropy", "moved", "tokens", "weights", "ids"),
)


def read_thoughts(samples: Path) -> pd.DataFrame | None:
    """Returns the thoughts beside a file of samples; None where none were recorded. Raises UserError for a bad file."""
    path = samples.with_suffix(SUFFIX)
    if not path.exists():
        return None
    frame = read_columns(path, COLUMNS, empty=True).to_pandas()
    return frame if len(frame) else None
