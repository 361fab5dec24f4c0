"""Dry checks of a data set's plug-ins, at the start of each job and in `softtok check`.

A reward is called on the first problem of the data set, or on a built-in one if the set is of the hub and not prepared
yet. An adapter is called on the first row of local data. Any failure is a UserError with file and line.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from softtok.plugins import Reference
from softtok.problems.adapter import Adapter
from softtok.problems.prepare import HeldOut, make_problems
from softtok.problems.prompt import render
from softtok.problems.reward import Answer, Grading, Judge
from softtok.problems.sources import describe, read_rows
from softtok.problems.spec import DataSpec, FileRows, HubRows
from softtok.storage.files import read_columns


def check_reward(
    grading: Grading, data: Path | None, template: str, spec: DataSpec | None = None, data_root: Path | None = None
) -> str:
    """Calls a user's reward on a right and a wrong answer; returns what could not be checked, if anything.

    They answer the first problem: of `data`, the prepared set, if it exists, else of the local file in `spec`, else a
    built-in one. Raises UserError.
    """
    if not isinstance(grading.reward, Reference):
        return ""
    with Judge(grading=grading) as judge:
        return judge.dry_check(_first_row(spec, template, data_root) if data is None else _first(data, template))


def _first_row(spec: DataSpec | None, template: str, data_root: Path | None) -> Answer | None:
    """Returns the first problem of a local file, as `softtok preview` makes it; None for rows of the hub."""
    if spec is None or not isinstance(spec.source, FileRows):
        return None
    made, _ = make_problems(spec.model_copy(update={"limit": 1, "exclude": {}}), HeldOut(), data_root)
    if not made.problems:
        return None
    row = made.problems[0]
    return Answer("", row["gold"], render(template, row["question"]), row.get("columns", "{}"))


def _first(data: Path, template: str) -> Answer:
    table = read_columns(data, ["question", "gold", "columns"]).slice(0, 1).to_pylist()[0]
    return Answer("", table["gold"], render(template, table["question"]), table["columns"])


def check_adapter(spec: DataSpec, data_root: Path | None) -> str:
    """Imports an adapter and calls it on the first row; returns what could not be checked, if anything.

    It does not fetch rows from the hub. Raises UserError.
    """
    if spec.adapter is None:
        return ""
    adapter = Adapter(spec.adapter, spec.kind)
    if isinstance(spec.source, HubRows):
        return "its rows are known when the data set is fetched"
    rows, _ = read_rows(spec.source, data_root)
    for row in islice(rows, 1):
        adapter(row, f"{describe(spec.source)}, row 0")
    return ""
