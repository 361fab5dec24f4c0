"""The command line. Every job of the workflow is one of these commands and can be run by hand.

Heavy imports are inside the commands, so that `softtok --help` and light jobs start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softtok.errors import UserError
from softtok.storage.trouble import storage_trouble

if TYPE_CHECKING:
    from softtok.config.grid import Study
    from softtok.config.jobs import Model
    from softtok.config.settings import RuntimeSettings
    from softtok.config.work import Job, ProblemsCost, TrainingCost
    from softtok.problems.preview import Writer

EXIT_CTRL_C = 130  # as a shell reports a command that Ctrl-C ended
ALLOCATORS = {
    "THP_MEM_ALLOC_ENABLE": "1",  # CPU: huge pages, which make a step 7 % faster
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # GPU: no fragmentation by tensors of many sizes
}
"""Settings that PyTorch reads once, when it is imported or first allocates memory."""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status, 1 for an error that the user can fix, which is printed in one line."""
    options = _parser().parse_args(arguments)
    for name, value in ALLOCATORS.items():
        os.environ.setdefault(name, value)
    try:
        for name in ("model", "run_folder", "data", "shots"):
            if (path := getattr(options, name, None)) is not None and not path.exists():
                raise UserError(f"{path} does not exist; snakemake makes it")
        options.run(options)
        sys.stdout.flush()  # on a full disk it fails here, and not after the end
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `softtok show demo | head`
    except KeyboardInterrupt:
        _tell("interrupted")
        return EXIT_CTRL_C
    except Exception as error:
        told = _explained(error, getattr(options, "out", None))
        if told is None:
            raise
        _tell(f"error: {told}")
        return 1
    return 0


def _explained(error: Exception, out: Path | None) -> str | None:
    """Returns what a user reads of an error that has a cause outside of the code; None for any other.

    `out` is where a command writes.
    """
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which light commands do not import
        why = " ".join(str(error).split(". ")[0].split())
        less = "lower rollout_tokens or rollout_rows (in training: micro_batch_tokens) under runtime"
        return f"{why}; {less}, or move the optimizer (optimizer_device: cpu)"
    return storage_trouble(error, out)


def _tell(text: str) -> None:
    """Prints a line to stderr. Where that is a file on a full disk, the line is lost, and the exit status remains."""
    with contextlib.suppress(OSError):
        print(f"softtok: {text}", file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at the end, and exit with a status of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="softtok", description="Reinforcement learning with soft, fuzzy and hard CoT tokens."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, text: str, *names: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        for option in names:
            record = option in ("spec", "runtime")
            place = "run_folder" if option == "run" else option  # `run` is the command itself
            shape, text = ("FILE|JSON", "a file of JSON, or the JSON itself") if record else ("PATH", "")
            kind: Any = str if record else Path
            command.add_argument(f"--{option}", required=True, type=kind, dest=place, metavar=shape, help=text or None)
        return command

    make = add("model", _model, "make or refer to a base model", "spec", "runtime", "out")
    make.add_argument("--text", type=Path, metavar="PATH", help="prepared train set whose text a toy model learns")
    data = add("data", _data, "prepare a data set", "spec", "out")
    data.add_argument(
        "--exclude", action="append", default=[], metavar="NAME=PATH", help="prepared test set to keep out"
    )
    data.add_argument("--data-root", type=_folder, metavar="PATH", help="folder of local data files")
    add("base", _base, "the run of the untouched model", "spec", "model", "out")
    for command in (
        add("train", _train, "train one run", "spec", "runtime", "model", "data", "out"),
        add("evaluate", _evaluate, "all inference modes on one test set", "spec", "runtime", "run", "data", "out"),
    ):
        command.add_argument("--shots", type=Path, metavar="PATH", help="prepared train set of examples in prompts")
    add("choices", _choices, "score a multiple-choice set", "spec", "runtime", "run", "data", "out")
    _estimator_options(add("estimators", _estimators, "measure bias and variance of the gradients of soft tokens"))
    report, records, measure, estimate, doctor = _study_options(add)
    show = add("show", _show, "print a study's hard-inference table and the path of its report")
    show.add_argument("study", nargs="*", help="default: those that config.yaml names under `run:`")
    show.add_argument("--results", type=Path, default=Path("results"), metavar="PATH")
    tables = add("tables", _tables, "print a study's tables from its runs, also before all have finished")
    tables.add_argument("study")
    tables.add_argument("--partial", action="store_true", help="from what has finished; what is missing is named")
    tables.add_argument("--out", type=Path, metavar="PATH", help="write them to this folder instead (md, csv, tex)")
    rest = add("unused", _unused, "list what no study of config.yaml needs any more in results/, with its size")
    rest.add_argument("--remove", action="store_true", help="remove it, after a question")
    rest.add_argument("--yes", action="store_true", help="with --remove: without a question")
    check = add("check", _check, "check the configuration, and try a study's prompts and plug-ins on examples")
    check.add_argument("study", nargs="*", help="default: those that config.yaml names under `run:`")
    look = add("preview", _preview, "print a data set's first prompts and golds, and what its reward says of answers")
    look.add_argument("set", help="the name of a train, test or choice set in config.yaml")
    look.add_argument(
        *("--model", "--prompt-of"),
        metavar="MODEL",
        dest="prompt_of",
        help="whose prompts to show, with their ids; default: the first model that uses the set, without ids",
    )
    look.add_argument("--results", type=Path, default=Path("results"), metavar="PATH")
    for command in (report, records, measure, estimate, doctor, tables, rest, check, look):
        command.add_argument(
            "--config",
            type=Path,
            nargs="+",
            default=[Path("config.yaml")],
            metavar="PATH",
            help="of several, a later one overrides an earlier one, as in `snakemake --configfile`",
        )
        command.add_argument(
            "--data-root", type=_folder, metavar="PATH", help="as in `snakemake --config data_root=PATH`"
        )
    for command in (records, measure, estimate, doctor, tables, rest):
        command.add_argument("--results", type=Path, default=Path("results"), metavar="PATH")
    add("schema", _schema, "print the JSON schema of config.yaml")
    return parser


def _study_options(add: Callable[..., argparse.ArgumentParser]) -> tuple[argparse.ArgumentParser, ...]:
    """Adds the commands for a study's report and records, and for what the study costs."""
    report = add("report", _report, "tables, figures and report of a study, from results or from records", "out")
    report.add_argument("study", nargs="?", help="with --records: as the configuration has it now, not as recorded")
    source = report.add_mutually_exclusive_group(required=True)
    source.add_argument("--spec", metavar="FILE|JSON", help="a file of JSON, or the JSON itself")
    source.add_argument("--records", type=Path, metavar="FOLDER", help="what `softtok records` wrote; needs no results")
    report.add_argument("--root", type=Path, metavar="PATH", help="folder that the spec's paths start from")
    records = add("records", _records, "record the finished runs of a study: what a report reads, without weights")
    records.add_argument("study")
    records.add_argument("--to", type=Path, metavar="FOLDER", help="default: docs/results/STUDY/records")
    records.add_argument("--replace", action="store_true", help="also replace what was recorded before and differs now")
    measure = add("measure", _measure, "measure what the unfinished jobs of a study cost on this machine", "out")
    measure.add_argument("study")
    estimate = add("estimate", _estimate, "print what a study costs: jobs, hours, GPU-hours, disk, tokens")
    estimate.add_argument("study")
    estimate.add_argument("--device", metavar="NAME", help="H100, H200, A100, 4090 or cpu, and not this machine")
    estimate.add_argument("--cot-tokens", type=_positive, metavar="N", help="mean length of CoTs, if it is known")
    doctor = add("doctor", _doctor, "look at this machine before anything is downloaded, and measure it for 30 seconds")
    doctor.add_argument("study", nargs="?", help="also compare disk, memory and access with the models of this study")
    doctor.add_argument("--no-probes", action="store_true", help="measure nothing")
    return report, records, measure, estimate, doctor


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


def _folder(text: str) -> Path:
    """Returns the folder that an option names; an empty name would mean the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder, or leave the option out")
    return Path(text)


def _positive(text: str) -> float:
    """Returns the positive number that an option gives."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("is not a positive number")
    return number


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Switches garbage collection off during imports; a spec is read first, so that a wrong one fails at once.

    PyTorch and transformers make a million permanent objects. Garbage collection would look through them again and
    again, which takes a fifth of a job's start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _runtime(options: argparse.Namespace) -> RuntimeSettings:
    """Returns the machine settings of this job; PyTorch gets the configured threads, not all cores."""
    from softtok.config.settings import RuntimeSettings
    from softtok.config.specs import parse
    from softtok.models.devices import use_threads

    runtime = parse(RuntimeSettings, options.runtime, "runtime")
    use_threads(runtime)
    return runtime


def _model(options: argparse.Namespace) -> None:
    with _importing():
        from softtok.config.specs import ModelSpec, parse

        spec = parse(ModelSpec, options.spec)
        from softtok.models.base_model import make_model
    make_model(spec, _runtime(options), options.out, options.text)


def _data(options: argparse.Namespace) -> None:
    from softtok.config.specs import parse
    from softtok.problems.prepare import prepare
    from softtok.problems.spec import DataSpec

    exclude = {name: Path(path) for name, _, path in (item.partition("=") for item in options.exclude)}
    prepare(parse(DataSpec, options.spec), options.out, exclude, options.data_root)


def _base(options: argparse.Namespace) -> None:
    from softtok.config.specs import RunSpec, parse
    from softtok.models.base_model import base_run

    base_run(parse(RunSpec, options.spec), options.model, options.out)


def _train(options: argparse.Namespace) -> None:
    with _importing():
        from softtok.config.specs import RunSpec, parse

        spec = parse(RunSpec, options.spec)
        from softtok.training.train import train
    train(spec, _runtime(options), options.model, options.data, options.out, options.shots)


def _evaluate(options: argparse.Namespace) -> None:
    with _importing():
        from softtok.config.specs import EvaluationSpec, parse

        spec = parse(EvaluationSpec, options.spec)
        from softtok.evaluation.evaluate import evaluate
    evaluate(spec, _runtime(options), options.run_folder, options.data, options.out, options.shots)


def _choices(options: argparse.Namespace) -> None:
    with _importing():
        from softtok.config.specs import ChoicesSpec, parse

        spec = parse(ChoicesSpec, options.spec)
        from softtok.evaluation.choices import choices
    choices(spec, _runtime(options), options.run_folder, options.data, options.out)


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
    runtime = _runtime(options)
    with _importing():
        from softtok.training.estimators import Request, measure
    run, tokens = options.run_folder, options.cot_tokens
    return measure(Request(run, options.base, options.data, options.rollouts, tokens, options.seed), runtime)


def _report(options: argparse.Namespace) -> None:
    from softtok.config.specs import ReportSpec, parse
    from softtok.report.page import make_report
    from softtok.storage.files import text_hash

    if options.records is not None:
        return _report_from_records(options)
    if options.study is not None:
        raise UserError("STUDY goes with --records; --spec names the study itself")
    spec = parse(ReportSpec, options.spec)
    named = re.fullmatch(r".+-([0-9a-f]{8})\.json", Path(options.spec).name)  # as `REPORT_SPEC` in config/jobs.py
    if named and named[1] != text_hash(spec.as_json()):
        raise UserError(f"{options.spec} is damaged: its name is of another spec; remove it and run snakemake again")
    make_report(spec, options.out, options.root or Path())


def _report_from_records(options: argparse.Namespace) -> None:
    from softtok.report.partial import report_spec
    from softtok.report.recorded import report_from_records

    if options.root is not None:
        raise UserError("--root goes with --spec; the paths of records start from their folder")
    wanted = options.study and report_spec(options.config, options.study, Path(), options.data_root)
    for line in report_from_records(options.records, options.out, wanted):
        print(f"missing: {line}")


def _records(options: argparse.Namespace) -> None:
    from softtok.report.partial import report_spec
    from softtok.report.records import write_records

    spec = report_spec(options.config, options.study, Path(), options.data_root)
    folder = options.to or Path("docs", "results", options.study, "records")
    for line in write_records(spec, options.results, folder, options.replace):
        print(line)


def _measure(options: argparse.Namespace) -> None:
    from softtok.config.work import Costs, TrainingCost, study_of, unlike
    from softtok.storage.files import write_text

    grid, study = study_of(options.config, options.study, options.data_root)
    jobs = unlike(study, options.results)
    start = time.perf_counter()
    with _importing():
        import softtok.evaluation.measure
        import softtok.training.measure  # noqa: F401 (what a job imports)
    costs = Costs(start_s=time.perf_counter() - start, trainings={}, measures={})
    with tempfile.TemporaryDirectory(dir=options.results, prefix=".measuring-") as folder:
        for number, job in enumerate(jobs):
            place = Path(folder, str(number))
            place.mkdir()
            found = _measure_job(job, grid.runtimes[job.run.model.name], options.results, place)
            if isinstance(found, TrainingCost):
                costs.trainings[job.cost] = found
            else:
                costs.measures[job.cost] = found
            print(f"{job.label}: measured", flush=True)
            shutil.rmtree(place)
    write_text(options.out, costs.as_json())


def _measure_job(job: Job, runtime: RuntimeSettings, results: Path, place: Path) -> TrainingCost | ProblemsCost:
    """Measures a job in an empty folder, an evaluation with the untouched model."""
    from softtok.config.jobs import Choices, Evaluation
    from softtok.config.work import below
    from softtok.evaluation.measure import measure_choices, measure_evaluation
    from softtok.models.devices import use_threads
    from softtok.training.measure import measure_training

    use_threads(runtime)
    model, data, base = (results / below(path) for path in (job.run.model.folder, job.data.path, job.base.folder))
    shots = next((results / below(path) for path in job.shots), None)
    if isinstance(job.of, Evaluation):
        return measure_evaluation(job.of.spec, runtime, base, data, place, shots)
    if isinstance(job.of, Choices):
        return measure_choices(job.of.spec, runtime, base, data, place)
    return measure_training(job.run.spec, runtime, model, data, place, shots)


def _estimate(options: argparse.Namespace) -> None:
    from softtok.config.work import study_of
    from softtok.report.forecast import Forecast

    grid, study = study_of(options.config, options.study, options.data_root)
    forecast = Forecast(grid, study, options.results, options.device, options.cot_tokens)
    print("\n".join(forecast.lines(shutil.get_terminal_size().columns)))


def _doctor(options: argparse.Namespace) -> None:
    from softtok.config.load import read
    from softtok.config.work import study_of

    root = str(options.data_root) if options.data_root else None
    named = options.study or read(options.config, (), root).run[0]
    grid, study = study_of(options.config, named, options.data_root)
    with _importing():
        from softtok.models.doctor import examine
    for line in examine(grid, study, options.results, not options.no_probes, shutil.get_terminal_size().columns):
        print(line, flush=True)


def _show(options: argparse.Namespace) -> None:
    from softtok.config.load import read
    from softtok.report.terminal import show

    for study in options.study or read(Path("config.yaml")).run:
        print(show(options.results, study))


def _tables(options: argparse.Namespace) -> None:
    from softtok.report.partial import report_spec, study_tables, write

    spec = report_spec(options.config, options.study, options.results, options.data_root)
    made = study_tables(spec, options.partial)
    if options.out is None:
        print(made.text, end="")
    else:
        write(made, options.out, options.results)


def _unused(options: argparse.Namespace) -> None:
    from softtok.config.grid import Grid
    from softtok.config.load import read
    from softtok.config.unused import other_studies, remove, size, unused

    if options.yes and not options.remove:
        raise UserError("--yes answers the question of --remove; give both, or neither")
    root = str(options.data_root) if options.data_root else None
    grid = Grid(read(options.config, (), root))
    if others := other_studies(grid, options.results):
        warning = (
            f"{options.results} has reports of {', '.join(others)}, of which the configuration says nothing; if a file"
            " of your own does, name it too: --config config.yaml FILE"
        )
        if options.yes:
            raise UserError(f"{warning}; else use --remove without --yes")
        print(f"softtok: warning: {warning}", file=sys.stderr)
    found = {path: size(path) for path in unused(grid, options.results)}
    for path, held in found.items():
        print(f"{held / 1e6:10.1f} MB\t{_one_line(path)}")
    files = ", ".join(map(str, options.config))
    places = f"{len(found)} places, {sum(found.values()) / 1e9:.1f} GB" if found else "nothing"
    summary = f"{places} in {_one_line(options.results)} that no study of {files} needs"
    if not (options.remove and found and (options.yes or _agreed(summary))):
        print(f"{summary}; none was removed", file=sys.stderr)
        return
    for path in found:
        remove(path)
    print(f"{summary}; all was removed", file=sys.stderr)


def _one_line(path: Path) -> str:
    """Returns a path as a text of one line, whatever its folders are called."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _agreed(summary: str) -> bool:
    """Asks whether to remove what was listed; no answer is no."""
    print(f"{summary}; remove? [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()
    return answer in ("y", "yes")


def _check(options: argparse.Namespace) -> None:
    from softtok.config.dry_check import check_data_sets
    from softtok.config.grid import Grid
    from softtok.config.load import read
    from softtok.config.messages import nearest
    from softtok.config.prompt_trials import try_prompts
    from softtok.config.trackers import check_trackers

    root = str(options.data_root) if options.data_root else None
    grid = Grid(read(options.config, options.study, root))
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
    with _importing():
        from softtok.models.at_hand import writer_of
    return writer_of(model, results)


def _preview(options: argparse.Namespace) -> None:
    from softtok.config.preview import preview_lines

    root = str(options.data_root) if options.data_root else None
    writer = partial(_writer_of, options.results)
    for line in preview_lines(options.config, options.set, options.prompt_of, root, writer):
        print(line)


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
        with _importing():
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
        with _importing():
            from softtok.method.path_check import remark
        if (remarked := remark(mode, training)) is not None:
            yield f"training mode {run.name!r}: {remarked}"


def _schema(options: argparse.Namespace) -> None:
    from softtok.config.load import schema_json

    print(schema_json(), end="")


if __name__ == "__main__":
    sys.exit(main())
