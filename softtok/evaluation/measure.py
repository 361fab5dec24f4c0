"""Measures what evaluations cost on this machine: the real job on few problems, and on more."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from softtok.config.settings import RuntimeSettings
from softtok.config.specs import ChoicesSpec, EvaluationSpec
from softtok.config.work import ProblemsCost
from softtok.evaluation.choices import choices
from softtok.evaluation.evaluate import evaluate
from softtok.storage.files import open_table, write_table

FEW, MORE = 2, 8  # problems of the two slices of a test set
FEW_CHOICES, MORE_CHOICES = 4, 24


def measure_evaluation(
    spec: EvaluationSpec, runtime: RuntimeSettings, run: Path, data: Path, folder: Path, shots: Path | None = None
) -> ProblemsCost:
    """Evaluates a finished run on the first problems of a test set, in all modes; `folder` is an empty one."""

    def job(place: Path, part: Path, out: Path) -> None:
        evaluate(spec, runtime, place, part, out, shots)

    return _measure(job, run, data, folder, (FEW, MORE))


def measure_choices(spec: ChoicesSpec, runtime: RuntimeSettings, run: Path, data: Path, folder: Path) -> ProblemsCost:
    """Scores the first questions of a choice set with a finished run; `folder` is an empty one."""

    def job(place: Path, part: Path, out: Path) -> None:
        choices(spec, runtime, place, part, out)

    return _measure(job, run, data, folder, (FEW_CHOICES, MORE_CHOICES))


def _measure(
    job: Callable[[Path, Path, Path], None], run: Path, data: Path, folder: Path, sizes: tuple[int, int]
) -> ProblemsCost:
    """Returns the line through the times of two slices: loading and the steps of a batch do not grow with problems."""
    times, counts = [], []
    with open_table(data) as file:
        table = file.read()
    for size in (1, *sizes):  # the first only for what happens once in a process
        place, part = folder / f"{size}", table.slice(0, min(size, table.num_rows))
        place.mkdir()
        (place / "checkpoint").symlink_to((run / "checkpoint").resolve())
        write_table(place / "problems.parquet", part)
        start = time.perf_counter()
        job(place, place / "problems.parquet", place / "out.parquet")
        times.append(time.perf_counter() - start)
        counts.append(part.num_rows)
    return line(counts[1], times[1], counts[2], times[2])


def line(few: int, few_s: float, more: int, more_s: float) -> ProblemsCost:
    """Returns the costs of a job that took so many seconds for few and for more problems.

    If they do not show that problems cost anything, all of the time is theirs.
    """
    problem_s = (more_s - few_s) / (more - few) if more > few else 0.0
    if problem_s <= 0:
        return ProblemsCost(ready_s=0.0, problem_s=more_s / more)
    return ProblemsCost(ready_s=max(0.0, few_s - few * problem_s), problem_s=problem_s)
