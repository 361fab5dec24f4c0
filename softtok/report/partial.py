"""Partial tables: a study's tables at any time, outside of the workflow, from the runs that have finished.

Nothing is written to the study's report. Missing, failed and diverged runs are named. A table of runs that differ in
commit, device or library versions says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softtok.config.grid import Grid
from softtok.config.jobs import REPORT
from softtok.config.load import read
from softtok.config.messages import nearest
from softtok.config.specs import ReportSpec
from softtok.errors import UserError
from softtok.report.collect import Absent, Run, collect, row_text
from softtok.report.page import mixture, notes
from softtok.report.run_files import MissingError
from softtok.report.study import Study, row_of
from softtok.report.tables import FORMATS, Table, make_tables
from softtok.storage.files import write_text
from softtok.storage.provenance import attempts

LONGEST_ERROR = 200  # characters of a job's last error


@dataclass(frozen=True)
class PartialTables:
    """Tables by name; `text` has all of them as markdown, after notes on what is missing."""

    tables: dict[str, Table]
    text: str


def report_spec(config: Sequence[Path], study: str, results: Path, data_root: Path | None) -> ReportSpec:
    """Returns the report spec of a study, with paths below the folder `results`. Raises UserError."""
    checked = read(config, [study], str(data_root) if data_root else None)
    if study not in checked.studies:
        files = ", ".join(map(str, config))
        raise UserError(f"there is no study {study!r} in {files}{nearest(study, checked.studies)}")
    spec = Grid(checked).studies[study].spec

    def moved(path: str) -> str:
        return str(results / Path(path).relative_to(Path(REPORT).parts[0]))

    data = {kind: {name: moved(path) for name, path in paths.items()} for kind, paths in spec.data.items()}
    runs = [run.model_copy(update={"path": moved(run.path)}) for run in spec.runs]
    return spec.model_copy(update={"runs": runs, "data": data})


def study_tables(spec: ReportSpec, partial: bool) -> PartialTables:
    """Makes tables of what has finished. Without `partial`, anything that is missing is a UserError."""
    study = Study(spec)
    absent: list[Absent] = []
    results = collect(study, Path(), absent)
    missing = _missing_lines(absent)
    if absent and not partial:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"study '{spec.study}' is not complete: {missing[0]}{more}"
        raise UserError(f"{what}; `--partial` makes tables of what has finished")
    diverged = [run.row for run in results.runs if run.manifest.diverged]
    tables = make_tables(study, results.metrics, diverged)
    if absent:
        plan = _plan_phrase(study)
        tables = {name: replace(table, caption=f"{table.caption} {plan}") for name, table in tables.items()}
    for name, table in tables.items():
        if mixed := mixture(_runs_of(table, results.runs, results.metrics)):
            tables[name] = replace(table, caption=f"{table.caption} {mixed}")
    lines = [f"# {spec.study}: {'what has finished' if absent else 'all runs have finished'}", ""]
    for kind, text in notes(results):
        lines += [f"> **{kind.capitalize()}.** {text}", ""]
    if absent:
        lines += [f"**Missing** ({len(results.runs)} of {len(spec.runs)} runs have finished):", ""]
        lines += [*(f"- {line}" for line in missing), ""]
    return PartialTables(tables, "\n".join(lines + [FORMATS["md"](table) for table in tables.values()]))


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


def _plan_phrase(study: Study) -> str:
    planned = Counter(map(row_of, study.runs))
    trained = sorted({count for row, count in planned.items() if row.training_mode != "base"}) or [1]
    words = "–".join(map(str, sorted({trained[0], trained[-1]})))
    return f"Partial: n is what has finished of {words} planned runs per row (base 1)."


def _missing_lines(absent: Iterable[Absent]) -> list[str]:
    """Returns one line per row, set and reason, with the seeds that share it."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for item in absent:
        where = row_text(item.row)
        seeds.setdefault((where, f"{item.what}: {_reason(item)}" if item.what else _reason(item)), []).append(item.seed)
    return [
        f"{where}, {'seed' if len(found) == 1 else 'seeds'} {', '.join(map(str, sorted(found)))}: {reason}"
        for (where, reason), found in seeds.items()
    ]


def _reason(item: Absent) -> str:
    """Returns why results are missing, as far as the run's folder shows."""
    if not isinstance(item.error, MissingError):
        return str(item.error)
    log = "attempts" if not item.what else "evaluate" if "(" in item.what else "choices"
    events = attempts(item.folder / ".state" / f"{log}.jsonl")
    if item.what:  # one log for all sets of the run
        failed = bool(events) and events[-1]["event"] == "failed"
        return f"not measured{f'; the last attempt at such a job failed: {_error(events[-1])}' if failed else ''}"
    if not events:
        return "not trained" if item.row.training_mode != "base" else "not made"
    last = events[-1]
    return {
        "start": f"not finished: started {last['time']}, and running or killed since",
        "interrupted": "not finished: stopped, and goes on when it is run again",
        "failed": f"failed: {_error(last)}",
    }.get(last["event"], "finished, but its outputs are gone")


def _error(event: Mapping[str, Any]) -> str:
    text = " ".join(str(event.get("error", "unknown")).split())
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}..."
