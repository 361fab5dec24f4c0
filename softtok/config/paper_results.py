"""Reads report/paper.csv, every number that the paper prints in its Tables 1 to 8.

The report compares a study with these numbers. The configuration needs them too: an entry's `paper:` name must be one
of theirs.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "report/paper.csv"


@functools.cache
def printed_lines() -> tuple[Mapping[str, str], ...]:
    """Returns the file's lines as column -> text, as they are printed."""
    with open(RESULTS, encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
