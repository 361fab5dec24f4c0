"""Compares two runs: settings that differ, metrics with paired intervals, and problems that only one of them solves.

The intervals are over problems (`metrics.bootstrap_interval` of differences within a problem): they tell how much the
choice of problems matters for these two runs, and nothing about other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from softtok.problems.terminal import Page, safe
from softtok.report.metrics import bootstrap_interval
from softtok.report.run_files import read_columns, read_manifest
from softtok.report.samples import sample_files, tested_on

LISTED = 8  # problems that only one run solves
COLUMNS = ("inference_mode", "problem_id", "sample", "correct", "cot_tokens")


class Cell(NamedTuple):
    """A run in one inference mode on one test set: problems with samples, correct ones and mean CoT length."""

    file: str  # its name, which ends with the hash of the evaluation's settings
    problems: pd.DataFrame


def compare_lines(one: Path, other: Path, page: Page) -> Iterator[str]:
    """Yields what is printed of two finished runs. Raises UserError if one of them has not finished."""
    specs = [read_manifest(run / "manifest.json").spec.model_dump(mode="json") for run in (one, other)]
    yield f"A: {one}"
    yield f"B: {other}"
    yield ""
    yield page.strong("settings that differ")
    yield from _settings(flat(specs[0]), flat(specs[1]), page)
    yield ""
    yield page.strong("metrics: A, B, and B - A with its 95 % interval over problems")
    pairs = list(_pairs(one, other))
    yield from _metrics(pairs, page)
    yield from _choices(one, other)
    for test_set, mode, mine, theirs in pairs:
        yield from _only_one(test_set, mode, mine.problems, theirs.problems, page)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Returns the settings in a spec by their dotted names."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{name}.{key}" if name else key)
    return found


def _settings(mine: dict[str, Any], theirs: dict[str, Any], page: Page) -> Iterator[str]:
    missing = "(not set)"
    differing = [name for name in (mine | theirs) if mine.get(name, missing) != theirs.get(name, missing)]
    for name in differing:
        yield from page.text(f"{name}: {mine.get(name, missing)} | {theirs.get(name, missing)}", "  ")
    if not differing:
        yield "  none"


def cells(run: Path, test_set: str) -> dict[str, Cell]:
    """Returns what a run has on a test set, by inference mode; of several files with a mode the newest counts."""
    found: dict[str, Cell] = {}
    for path in sample_files(run, test_set):
        frame = read_columns(path, COLUMNS).to_pandas()
        for mode, samples in frame.groupby("inference_mode", sort=False):
            grouped = samples.groupby("problem_id")
            problems = pd.DataFrame(
                {"samples": grouped.size(), "correct": grouped["correct"].sum(), "tokens": grouped["cot_tokens"].mean()}
            )
            found.setdefault(str(mode), Cell(path.name, problems))
    return found


def _pairs(one: Path, other: Path) -> Iterator[tuple[str, str, Cell, Cell]]:
    """Yields the cells that both runs have, with the problems that both have."""
    for test_set in (name for name in tested_on(one) if name in tested_on(other)):
        mine, theirs = cells(one, test_set), cells(other, test_set)
        for mode in (mode for mode in mine if mode in theirs):
            shared = mine[mode].problems.index.intersection(theirs[mode].problems.index)
            if len(shared):
                a, b = (Cell(cell.file, cell.problems.loc[shared]) for cell in (mine[mode], theirs[mode]))
                yield test_set, mode, a, b


def difference(mine: pd.Series, theirs: pd.Series) -> tuple[float, float, float, float, float]:
    """Returns the two means, the mean of B - A over problems, and its interval."""
    gaps = (theirs - mine).astype(float)
    return float(mine.mean()), float(theirs.mean()), float(gaps.mean()), *bootstrap_interval(gaps)


def _metrics(pairs: list[tuple[str, str, Cell, Cell]], page: Page) -> Iterator[str]:
    if not pairs:
        yield "  no test set and mode that both have"
        return
    width = max(len(f"{test_set} {mode}") for test_set, mode, *_ in pairs)
    for test_set, mode, mine, theirs in pairs:
        a, b = mine.problems, theirs.problems
        name = f"{test_set} {mode}"
        rates = [100 * cell["correct"] / cell["samples"] for cell in (a, b)]
        yield f"  {safe(name):<{width}}  {_numbers('pass@1', *difference(*rates))}  n={len(a)}"
        yield f"  {'':<{width}}  {_numbers('tokens', *difference(a['tokens'], b['tokens']))}"
        if mine.file != theirs.file:
            yield f"  {'':<{width}}  evaluated with other settings: {mine.file} | {theirs.file}"
        if (a["samples"] != b["samples"]).any():
            yield f"  {'':<{width}}  with other numbers of samples"


def _numbers(metric: str, mine: float, theirs: float, gap: float, low: float, high: float) -> str:
    return f"{metric} {mine:5.1f} {theirs:5.1f}  {gap:+5.1f} [{low:+.1f}, {high:+.1f}]"


def _choices(one: Path, other: Path) -> Iterator[str]:
    """Yields the accuracy on choice sets that both runs have with the same settings."""
    for path in sorted((one / "choices").glob("*.parquet")):
        if not (other / "choices" / path.name).exists():
            continue
        mine, theirs = (
            read_columns(run / "choices" / path.name, ("id", "correct")).to_pandas().set_index("id")["correct"]
            for run in (one, other)
        )
        numbers = difference(100 * mine.astype(float), 100 * theirs.astype(float))
        yield f"  {path.stem.rpartition('-')[0]}  {_numbers('accuracy', *numbers)}  n={len(mine)}"


def _only_one(test_set: str, mode: str, mine: pd.DataFrame, theirs: pd.DataFrame, page: Page) -> Iterator[str]:
    """Yields the problems of which one run solves some samples and the other none, the clearest first."""
    yield ""
    yield page.strong(f"{test_set}, {mode}: problems that only one solves, with its right samples")
    for name, those, rest in (("A", mine, theirs), ("B", theirs, mine)):
        only = those[(those["correct"] > 0) & (rest["correct"] == 0)]
        only = only.assign(share=only["correct"] / only["samples"]).sort_values(
            ["share", "problem_id"], ascending=[False, True]
        )
        listed = [f"{problem} ({row.correct:.0f}/{row.samples:.0f})" for problem, row in only.head(LISTED).iterrows()]
        more = f", and {len(only) - LISTED} more" if len(only) > LISTED else ""
        yield from page.text(f"only {name}: {len(only)}{': ' if listed else ''}{', '.join(listed)}{more}", "  ")
