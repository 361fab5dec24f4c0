"""Commands that read results: tables and reports, records of finished runs, and what no study needs any more."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from softtok.commands.parser import (
    PEOPLE,
    CommandLine,
    config_files,
    config_options,
    importing,
    results_option,
    runtime_of,
)
from softtok.errors import UserError


def add_results(line: CommandLine) -> None:
    """Adds the commands in the order in which one needs them."""
    show = line.command(
        PEOPLE, "show", _show, "print a study's hard-inference table and the path of its report", ["softtok show demo"]
    )
    show.add_argument("study", nargs="*", help="default: those that config.yaml names under `run:`")
    results_option(show)
    status = line.command(
        PEOPLE,
        "status",
        _status,
        "show on one screen what a study's jobs do, from results/ alone",
        ["softtok status", "softtok status demo --all"],
    )
    status.add_argument(
        "study", nargs="*", help="default: those begun in these results, or else those of `run:` in config.yaml"
    )
    status.add_argument("--all", action="store_true", help="name every job, also where that takes more than a screen")
    status.add_argument("--width", type=int, metavar="COLUMNS", help="default: the terminal's, 80 in a pipe")
    config_options(status)
    tables = line.command(
        PEOPLE,
        "tables",
        _tables,
        "print a study's tables from its runs, also before all have finished",
        ["softtok tables demo --partial", "softtok tables demo --out tables"],
    )
    tables.add_argument("study")
    tables.add_argument("--partial", action="store_true", help="from what has finished; what is missing is named")
    tables.add_argument("--out", type=Path, metavar="PATH", help="write them to this folder instead (md, csv, tex)")
    config_options(tables)
    _add_report_and_records(line)
    rest = line.command(
        PEOPLE,
        "unused",
        _unused,
        "list what no study of config.yaml needs any more in results/, with its size",
        ["softtok unused", "softtok unused --remove"],
    )
    rest.add_argument("--remove", action="store_true", help="remove it, after a question")
    rest.add_argument("--yes", action="store_true", help="with --remove: without a question")
    config_options(rest)
    _estimator_options(
        line.command(
            PEOPLE,
            "estimators",
            _estimators,
            "measure bias and variance of the gradients of soft tokens",
            ["softtok estimators results/runs/toy/sums/soft/seed0-1234abcd --figure estimators.png"],
        )
    )


def _add_report_and_records(line: CommandLine) -> None:
    report = line.command(
        PEOPLE,
        "report",
        _report,
        "tables, figures and report of a study, from results or from records",
        ["softtok report demo --partial", "softtok report --records docs/results/smollm2/records --out report"],
    )
    report.add_argument("study", nargs="?", help="for --partial; with --records: as the configuration has it now")
    report.add_argument(
        "--partial", action="store_true", help="from what has finished, at any time; names what has not"
    )
    report.add_argument(
        "--out", type=Path, metavar="PATH", help="default with --partial: results/reports/STUDY/partial"
    )
    source = report.add_mutually_exclusive_group()
    source.add_argument("--spec", metavar="FILE|JSON", help="a file of JSON, or the JSON itself")
    source.add_argument("--records", type=Path, metavar="FOLDER", help="what `softtok records` wrote; needs no results")
    report.add_argument("--root", type=Path, metavar="PATH", help="folder that the spec's paths start from")
    config_options(report)
    records = line.command(
        PEOPLE,
        "records",
        _records,
        "record the finished runs of a study: what a report reads, without weights",
        ["softtok records smollm2"],
    )
    records.add_argument("study")
    records.add_argument("--to", type=Path, metavar="FOLDER", help="default: docs/results/STUDY/records")
    records.add_argument("--replace", action="store_true", help="also replace what was recorded before and differs now")
    config_options(records)


def _estimator_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "run_folder", type=Path, metavar="RUN", help="folder of a finished training run in a soft mode"
    )
    command.add_argument("--base", action="store_true", help="at its base model, instead of its checkpoint")
    command.add_argument("--data", type=Path, metavar="FILE", help="its prepared train set, if not in the same results")
    command.add_argument("--rollouts", type=int, default=64, metavar="M", help="half of them for the reference")
    command.add_argument("--cot-tokens", type=int, default=24, metavar="T", help="of every CoT, without a stop rule")
    command.add_argument("--seed", type=int, default=0, help="of the rollouts")
    command.add_argument("--runtime", default="{}", metavar="FILE|JSON", help="as in config.yaml; default: on the CPU")
    command.add_argument("--out", type=Path, metavar="FILE", help="write the numbers to this JSON file")
    command.add_argument("--figure", type=Path, metavar="FILE", help="draw them: .png or .svg")


def _show(options: argparse.Namespace) -> None:
    from softtok.config.load import read
    from softtok.report.terminal import show

    for study in options.study or read(Path("config.yaml")).run:
        print(show(options.results, study))


def _status(options: argparse.Namespace) -> None:
    from softtok.config.work import study_of
    from softtok.report.status import ROWS, status_of

    width = options.width or shutil.get_terminal_size().columns
    for number, study in enumerate(options.study or _begun(options)):
        screen = status_of(study_of(config_files(options, study), study, options.data_root)[1], options.results)
        print("\n".join(["" for _ in range(number > 0)] + screen.lines(width, None if options.all else ROWS)))


def _begun(options: argparse.Namespace) -> list[str]:
    """Returns the studies that were begun in these results, or else those of `run:`."""
    from softtok.config.calls import begun
    from softtok.config.load import read

    root = str(options.data_root) if options.data_root else None
    studies = begun(options.results) if options.config is None else []
    known = [study for study in studies if study in read(config_files(options, study), (), root).studies]
    return known or read(config_files(options), (), root).run


def _tables(options: argparse.Namespace) -> None:
    from softtok.report.partial import report_spec, study_tables, write

    spec = report_spec(config_files(options, options.study), options.study, options.results, options.data_root)
    made = study_tables(spec, options.partial)
    if options.out is None:
        print(made.text, end="")
    else:
        write(made, options.out, options.results)


def _report(options: argparse.Namespace) -> None:
    from softtok.config.specs import ReportSpec, parse
    from softtok.report.page import make_report
    from softtok.storage.files import text_hash

    if options.partial:
        return _partial_report(options)
    if options.out is None or not (options.records or options.spec):
        raise UserError("give --out, and --spec or --records; or STUDY --partial, for a report of what has finished")
    if options.records is not None:
        return _report_from_records(options)
    if options.study is not None:
        raise UserError("STUDY goes with --records or --partial; --spec names the study itself")
    spec = parse(ReportSpec, options.spec)
    named = re.fullmatch(r".+-([0-9a-f]{8})\.json", Path(options.spec).name)  # as `REPORT_SPEC` in config/jobs.py
    if named and named[1] != text_hash(spec.as_json()):
        raise UserError(f"{options.spec} is damaged: its name is of another spec; remove it and run snakemake again")
    make_report(spec, options.out, options.root or Path())


def _partial_report(options: argparse.Namespace) -> None:
    from softtok.config.specs import ReportSpec, parse
    from softtok.report.page import PARTIAL
    from softtok.report.partial import partial_report, report_spec

    if options.records is not None or (options.study is None) == (options.spec is None):
        raise UserError(
            "--partial needs STUDY or --spec, and is not for --records, which say themselves what is missing"
        )
    spec = (
        parse(ReportSpec, options.spec)
        if options.study is None
        else report_spec(config_files(options, options.study), options.study, options.results, options.data_root)
    )
    out = options.out or options.results / "reports" / spec.study / PARTIAL
    missing = partial_report(spec, out, options.root or Path())
    for line in missing:
        print(f"missing: {line}")
    print(f"{'partial report' if missing else 'report'}: {out / 'report.html'}")


def _report_from_records(options: argparse.Namespace) -> None:
    from softtok.report.partial import report_spec
    from softtok.report.recorded import report_from_records

    if options.root is not None:
        raise UserError("--root goes with --spec; the paths of records start from their folder")
    wanted = options.study and report_spec(
        config_files(options, options.study), options.study, Path(), options.data_root
    )
    for line in report_from_records(options.records, options.out, wanted):
        print(f"missing: {line}")


def _records(options: argparse.Namespace) -> None:
    from softtok.report.partial import report_spec
    from softtok.report.records import write_records

    spec = report_spec(config_files(options, options.study), options.study, Path(), options.data_root)
    folder = options.to or Path("docs", "results", options.study, "records")
    for line in write_records(spec, options.results, folder, options.replace):
        print(line)


def _unused(options: argparse.Namespace) -> None:
    from softtok.config.grid import Grid
    from softtok.config.load import read
    from softtok.config.unused import other_studies, remove, size, unused

    if options.yes and not options.remove:
        raise UserError("--yes answers the question of --remove; give both, or neither")
    root = str(options.data_root) if options.data_root else None
    configurations = _configurations(options)
    grids = [Grid(read(files, (), root)) for files in configurations]
    if others := other_studies(grids, options.results):
        warning = (
            f"{options.results} has reports of {', '.join(others)}, of which the configuration says nothing; if a file"
            " of your own does, name it too: --config config.yaml FILE"
        )
        if options.yes:
            raise UserError(f"{warning}; else use --remove without --yes")
        print(f"softtok: warning: {warning}", file=sys.stderr)
    found = {path: size(path) for path in unused(grids, options.results)}
    for path, held in found.items():
        print(f"{held / 1e6:10.1f} MB\t{_one_line(path)}")
    files = ", ".join(dict.fromkeys(str(file) for files in configurations for file in files))
    places = f"{len(found)} places, {sum(found.values()) / 1e9:.1f} GB" if found else "nothing"
    summary = f"{places} in {_one_line(options.results)} that no study of {files} needs"
    if not (options.remove and found and (options.yes or _agreed(summary))):
        print(f"{summary}; none was removed", file=sys.stderr)
        return
    for path in found:
        remove(path)
    print(f"{summary}; all was removed", file=sys.stderr)


def _configurations(options: argparse.Namespace) -> list[tuple[Path, ...]]:
    """Returns the files of each configuration that may need a result: config.yaml, and what studies began with."""
    from softtok.config.calls import begun

    studies = [] if options.config is not None else begun(options.results)
    found = [tuple(map(Path.absolute, config_files(options, study))) for study in (None, *studies)]
    return list(dict.fromkeys(found))  # one that several studies began with is read once


def _one_line(path: Path) -> str:
    """Returns a path as a text of one line, whatever its folders are called."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _agreed(summary: str) -> bool:
    """Asks whether to remove what was listed; no answer is no."""
    print(f"{summary}; remove? [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()
    return answer in ("y", "yes")


def _estimators(options: argparse.Namespace) -> None:
    from softtok.report.estimator_table import read_numbers, table

    if options.figure is not None and options.figure.suffix not in (".png", ".svg"):
        raise UserError(f"--figure {options.figure}: name a file that ends in .png or .svg")
    run = options.run_folder
    told = read_numbers(run) if run.is_file() else _measured(options)
    print(table(told), end="")
    if options.out is not None:
        from softtok.storage.files import write_json

        write_json(options.out, told)
    if options.figure is not None:
        from softtok.report.estimator_figure import draw, save

        save(draw(told), options.figure)


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what `softtok estimators` measures."""
    runtime = runtime_of(options)
    with importing():
        from softtok.training.estimators import Request, measure
    run, tokens = options.run_folder, options.cot_tokens
    return measure(Request(run, options.base, options.data, options.rollouts, tokens, options.seed), runtime)
