"""Commands for the time before a study: is its configuration right, is this machine fit, and what will it cost."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from softtok.commands.parser import JOBS, PEOPLE, CommandLine, config_files, config_options, importing, positive
from softtok.errors import UserError

if TYPE_CHECKING:
    from softtok.config.grid import Study
    from softtok.config.jobs import Model
    from softtok.problems.preview import Writer


def add_planning(line: CommandLine) -> None:
    """Adds the commands in the order in which one needs them."""
    check = line.command(
        PEOPLE,
        "check",
        _check,
        "check the configuration, and try a study's prompts and plug-ins on examples",
        ["softtok check demo", "softtok check mine --config config.yaml mine.yaml"],
    )
    check.add_argument("study", nargs="*", help="default: those that config.yaml names under `run:`")
    config_options(check, results=False)
    look = line.command(
        PEOPLE,
        "preview",
        _preview,
        "print a data set's first prompts and golds, and what its reward says of answers",
        ["softtok preview gsm8k", "softtok preview gsm8k --model smollm2"],
    )
    look.add_argument("set", help="the name of a train, test or choice set in config.yaml")
    look.add_argument(
        *("--model", "--prompt-of"),
        metavar="MODEL",
        dest="prompt_of",
        help="whose prompts to show, with their ids; default: the first model that uses the set, without ids",
    )
    config_options(look)
    doctor = line.command(
        PEOPLE,
        "doctor",
        _doctor,
        "look at this machine before anything is downloaded, and measure it for 30 seconds",
        ["softtok doctor", "softtok doctor paper --no-probes"],
    )
    doctor.add_argument("study", nargs="?", help="also compare disk, memory and access with the models of this study")
    doctor.add_argument("--no-probes", action="store_true", help="measure nothing")
    config_options(doctor)
    estimate = line.command(
        PEOPLE,
        "estimate",
        _estimate,
        "print what a study costs: jobs, hours, GPU-hours, disk, tokens",
        ["softtok estimate paper", "softtok estimate paper --device A100 --cot-tokens 200"],
    )
    estimate.add_argument("study")
    estimate.add_argument("--device", metavar="NAME", help="H100, H200, A100, 4090 or cpu, and not this machine")
    estimate.add_argument("--cot-tokens", type=positive, metavar="N", help="mean length of CoTs, if it is known")
    config_options(estimate)
    line.command(
        JOBS,
        "schema",
        _schema,
        "print the JSON schema of config.yaml",
        ["softtok schema > workflow/schemas/config.schema.json"],
    )


def _check(options: argparse.Namespace) -> None:
    from softtok.config.dry_check import check_data_sets
    from softtok.config.grid import Grid
    from softtok.config.load import read
    from softtok.config.messages import nearest
    from softtok.config.prompt_trials import try_prompts
    from softtok.config.trackers import check_trackers

    root = str(options.data_root) if options.data_root else None
    grid = Grid(read(config_files(options, options.study[0] if len(options.study) == 1 else None), options.study, root))
    wanted = options.study or grid.config.run
    if unknown := [study for study in wanted if study not in grid.studies]:
        raise UserError(f"there is no study {unknown[0]!r}{nearest(unknown[0], grid.studies)}")
    check_trackers(grid.config, wanted)
    for study in wanted:
        for name, unchecked in check_data_sets(grid.studies[study], options.data_root):
            print(f"{name}: {f'can be imported; {unchecked}' if unchecked else 'works'}")
        for line in try_prompts(grid, grid.studies[study], partial(_writer_of, Path("results"))):
            print(line)
        for name in dict.fromkeys(_dry_checks(grid.studies[study])):
            print(f"{name}: works")
        for line in dict.fromkeys(_remarks(grid.studies[study])):
            print(line)
    print(f"{', '.join(wanted)}: the configuration and all plug-ins are valid")


def _writer_of(results: Path, model: Model) -> Writer | None:
    with importing():
        from softtok.models.at_hand import writer_of
    return writer_of(model, results)


def _dry_checks(study: Study) -> Iterator[str]:
    """Yields the user's token modes, objectives and figures in a study, each checked on an example."""
    from softtok.config.settings import TokenMode
    from softtok.plugins import Reference

    if figures := study.spec.figures:
        from softtok.report import own_figures

        yield from own_figures.check_figures(figures)
    evaluations = [item.spec for items in study.evaluations.values() for item in items.values()]
    tested: list[TokenMode] = [mode for spec in evaluations for mode in spec.inference_modes.values()]
    trained = [(run.spec.mode, run.spec.training) for run in study.runs.values() if run.spec.mode and run.spec.training]
    own = [training for _, training in trained if isinstance(training.objective, Reference)]
    if own or any(mode.own for mode in (*tested, *(mode for mode, _ in trained))):
        with importing():
            from softtok.method.dry_check import check_method
        for mode, training in trained:
            yield from check_method([mode], training)
        yield from check_method(tested)


def _remarks(study: Study) -> Iterator[str]:
    """Yields what is allowed in a study's training modes and may surprise."""
    for run in study.runs.values():
        mode, training = run.spec.mode, run.spec.training
        if mode is None or training is None or training.estimator == "score":
            continue
        with importing():
            from softtok.method.path_check import remark
        if (remarked := remark(mode, training)) is not None:
            yield f"training mode {run.name!r}: {remarked}"


def _preview(options: argparse.Namespace) -> None:
    from softtok.config.preview import preview_lines

    root = str(options.data_root) if options.data_root else None
    writer = partial(_writer_of, options.results)
    for line in preview_lines(config_files(options), options.set, options.prompt_of, root, writer):
        print(line)


def _doctor(options: argparse.Namespace) -> None:
    from softtok.config.load import read
    from softtok.config.work import study_of

    root = str(options.data_root) if options.data_root else None
    named = options.study or read(config_files(options), (), root).run[0]
    grid, study = study_of(config_files(options, options.study), named, options.data_root)
    with importing():
        from softtok.models.doctor import examine
    for line in examine(grid, study, options.results, not options.no_probes, shutil.get_terminal_size().columns):
        print(line, flush=True)


def _estimate(options: argparse.Namespace) -> None:
    from softtok.config.work import study_of
    from softtok.report.forecast import Forecast

    grid, study = study_of(config_files(options, options.study), options.study, options.data_root)
    forecast = Forecast(grid, study, options.results, options.device, options.cot_tokens)
    print("\n".join(forecast.lines(shutil.get_terminal_size().columns)))


def _schema(options: argparse.Namespace) -> None:
    from softtok.config.load import schema_json

    print(schema_json(), end="")
