"""Partial tables: a study's tables at any time, outside of the workflow, from the runs that have finished.

Nothing is written to the study's report. Missing, failed and diverged runs are named. A table of runs that differ in
commit, device or library versions says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softtok.config.jobs import REPORT
from softtok.config.specs import ReportSpec
from softtok.config.work import study_of
from softtok.errors import UserError
from softtok.report.collect import Absent, Run, collect
from softtok.report.differences import with_differences
from softtok.report.latex import FORMATS
from softtok.report.missing import from_attempts, marked_partial, missing_lines
from softtok.report.page import make_report, mixture, notes
from softtok.report.study import Study
from softtok.report.tables import Table, make_tables
from softtok.storage.files import write_text


@dataclass(frozen=True)
class PartialTables:
    """Tables by name; `text` has all of them as markdown, after notes on what is missing."""

    tables: dict[str, Table]
    text: str


def report_spec(config: Sequence[Path], study: str, results: Path, data_root: Path | None) -> ReportSpec:
    """Returns the report spec of a study, with paths below the folder `results`. Raises UserError."""
    return moved(study_of(config, study, data_root)[1].spec, results)


def moved(spec: ReportSpec, results: Path) -> ReportSpec:
    """Returns the spec with the paths of the workflow's results below another folder."""

    def place(path: str) -> str:
        return str(results / Path(path).relative_to(Path(REPORT).parts[0]))

    data = {kind: {name: place(path) for name, path in paths.items()} for kind, paths in spec.data.items()}
    runs = [run.model_copy(update={"path": place(run.path)}) for run in spec.runs]
    return spec.model_copy(update={"runs": runs, "data": data})


def study_tables(spec: ReportSpec, partial: bool) -> PartialTables:
    """Makes tables of what has finished. Without `partial`, anything that is missing is a UserError."""
    study = Study(spec)
    absent: list[Absent] = []
    results = collect(study, Path(), absent)
    missing = missing_lines(absent, from_attempts)
    if absent and not partial:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"study '{spec.study}' is not complete: {missing[0]}{more}"
        raise UserError(f"{what}; `--partial` makes tables of what has finished")
    diverged = [run.row for run in results.runs if run.manifest.diverged]
    tables = with_differences(make_tables(study, results.metrics, diverged), study, results.metrics)
    if absent:
        tables = marked_partial(tables, study)
    for name, table in tables.items():
        if mixed := mixture(_runs_of(table, results.runs, results.metrics)):
            tables[name] = replace(table, caption=f"{table.caption} {mixed}")
    lines = [f"# {spec.study}: {'what has finished' if absent else 'all runs have finished'}", ""]
    for kind, text in notes(results):
        lines += [f"> **{kind.capitalize()}.** {text}", ""]
    if absent:
        lines += [f"**Missing** ({_complete(results.runs, absent, len(spec.runs))}):", ""]
        lines += [*(f"- {line}" for line in missing), ""]
    return PartialTables(tables, "\n".join(lines + [FORMATS["md"](table) for table in tables.values()]))


def _complete(made: Sequence[Run], absent: Sequence[Absent], planned: int) -> str:
    """Returns how many runs are complete: trained, and with all their results."""
    lacking = {(item.row, item.seed) for item in absent}
    part = sum((run.row, run.seed) in lacking for run in made)
    more = f"; {part} more {'lacks' if part == 1 else 'lack'} results of tests" if part else ""
    return f"{len(made) - part} of {planned} runs {'is' if planned == 1 else 'are'} complete{more}"


def partial_report(spec: ReportSpec, out: Path, root: Path) -> list[str]:
    """Writes the report of what has finished, with a banner of what has not; returns what is missing, in lines.

    Raises UserError if no run has finished.
    """
    if not any((root / run.path / "manifest.json").exists() for run in spec.runs):
        raise UserError(f"no run of study '{spec.study}' has finished yet, so there is nothing to report")
    return make_report(spec, out, root, from_attempts, damaged=True)


def write(made: PartialTables, out: Path, results: Path) -> None:
    """Writes `out`/tables.md with everything, and each table in each format.

    Raises UserError if `out` is in the folder of the workflow's reports.
    """
    reports = (results / Path(REPORT).parts[1]).resolve()
    if out.resolve().is_relative_to(reports):
        raise UserError(f"--out {out} lies in {reports}, which holds finished reports; choose another folder")
    for table in made.tables.values():
        for suffix, render in FORMATS.items():
            write_text(out / f"{table.name}.{suffix}", render(table))
    write_text(out / "tables.md", made.text)


def _runs_of(table: Table, runs: Sequence[Run], metrics: Any) -> list[Run]:
    """Returns the runs that a table's numbers come from."""
    sets = {column.test_set for column in table.columns}
    measured = metrics[metrics["test_set"].isin(sets)]
    known = set(zip(measured["model"], measured["train_set"], measured["training_mode"], measured["seed"], strict=True))
    return [run for run in runs if (*run.row, run.seed) in known]
