"""The jobs of the workflow as commands: each can be run by hand with the spec that Snakemake made of it."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from softtok.commands.parser import (
    JOBS,
    CommandLine,
    config_files,
    config_options,
    folder,
    importing,
    path_option,
    runtime_of,
    spec_option,
)
from softtok.storage.retries import measuring_notes, refuse_hopeless, state_of, training_notes

if TYPE_CHECKING:
    from softtok.config.settings import RuntimeSettings
    from softtok.config.work import Job, ProblemsCost, TrainingCost


def add_jobs(line: CommandLine) -> None:
    """Adds the commands that make a model, a data set, a run and its tests."""
    make = line.command(
        JOBS,
        "model",
        _model,
        "make or refer to a base model",
        ["softtok model --spec MODEL.json --runtime '{}' --out results/models/toy"],
    )
    spec_option(make, "spec", "runtime")
    path_option(make, "out")
    make.add_argument("--text", type=Path, metavar="PATH", help="prepared train set whose text a toy model learns")
    data = line.command(
        JOBS,
        "data",
        _data,
        "prepare a data set",
        ["softtok data --spec DATA.json --out results/data/gsm8k.jsonl --data-root ../data"],
    )
    spec_option(data, "spec")
    path_option(data, "out")
    data.add_argument(
        "--exclude", action="append", default=[], metavar="NAME=PATH", help="prepared test set to keep out"
    )
    data.add_argument("--data-root", type=folder, metavar="PATH", help="folder of local data files")
    base = line.command(
        JOBS,
        "base",
        _base,
        "make the run of the untouched model",
        ["softtok base --spec RUN.json --model results/models/toy --out results/runs/toy/base"],
    )
    spec_option(base, "spec")
    path_option(base, "model", "out")
    _add_trainings_and_tests(line)
    measure = line.command(
        JOBS,
        "measure",
        _measure,
        "measure what the unfinished jobs of a study cost on this machine",
        ["softtok measure demo --out results/logs/costs-demo.json"],
    )
    measure.add_argument("study")
    path_option(measure, "out")
    config_options(measure)


def _add_trainings_and_tests(line: CommandLine) -> None:
    of_run = "--run results/runs/toy/base --data results/data/TEST.jsonl --out results/runs/toy/base/TEST.parquet"
    train = line.command(
        JOBS,
        "train",
        _train,
        "train one run",
        ["softtok train --spec RUN.json --runtime '{}' --model results/models/toy --data TRAIN.jsonl --out RUN"],
    )
    evaluate = line.command(
        JOBS,
        "evaluate",
        _evaluate,
        "test a run on one test set in all inference modes",
        [f"softtok evaluate --spec EVALUATION.json --runtime '{{}}' {of_run}"],
    )
    choices = line.command(
        JOBS,
        "choices",
        _choices,
        "score a multiple-choice set",
        [f"softtok choices --spec CHOICES.json --runtime '{{}}' {of_run}"],
    )
    for command, names in (
        (train, ("model", "data", "out")),
        (evaluate, ("run", "data", "out")),
        (choices, ("run", "data", "out")),
    ):
        spec_option(command, "spec", "runtime")
        path_option(command, *names)
    for command in (train, evaluate, choices):
        text = "as Snakemake counts them; from the fourth on it is refused if the last three saved nothing new"
        command.add_argument("--attempt", type=int, default=1, metavar="N", help=text)
    for command in (train, evaluate):
        command.add_argument("--shots", type=Path, metavar="PATH", help="prepared train set of examples in prompts")


def _model(options: argparse.Namespace) -> None:
    with importing():
        from softtok.config.specs import ModelSpec, parse

        spec = parse(ModelSpec, options.spec)
        from softtok.models.base_model import make_model
    make_model(spec, runtime_of(options), options.out, options.text)


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
    with importing():
        from softtok.config.specs import RunSpec, parse

        spec = parse(RunSpec, options.spec)
        from softtok.training.train import train
    runtime = runtime_of(options)
    refuse_hopeless(training_notes(state_of(options.out, runtime.state_folder)), options.attempt)
    train(spec, runtime, options.model, options.data, options.out, options.shots)


def _runtime_of_test(options: argparse.Namespace, kind: str) -> RuntimeSettings:
    """Returns the machine settings of a job that tests a run. Raises UserError if another attempt is hopeless."""
    runtime = runtime_of(options)
    state = state_of(options.run_folder, runtime.state_folder)
    refuse_hopeless(measuring_notes(state, kind, options.out), options.attempt)
    return runtime


def _evaluate(options: argparse.Namespace) -> None:
    with importing():
        from softtok.config.specs import EvaluationSpec, parse

        spec = parse(EvaluationSpec, options.spec)
        from softtok.evaluation.evaluate import evaluate
    runtime = _runtime_of_test(options, "evaluate")
    evaluate(spec, runtime, options.run_folder, options.data, options.out, options.shots)


def _choices(options: argparse.Namespace) -> None:
    with importing():
        from softtok.config.specs import ChoicesSpec, parse

        spec = parse(ChoicesSpec, options.spec)
        from softtok.evaluation.choices import choices
    runtime = _runtime_of_test(options, "choices")
    choices(spec, runtime, options.run_folder, options.data, options.out)


def _measure(options: argparse.Namespace) -> None:
    from softtok.config.work import Costs, TrainingCost, study_of, unlike
    from softtok.storage.files import write_text

    grid, study = study_of(config_files(options, options.study), options.study, options.data_root)
    jobs = unlike(study, options.results)
    start = time.perf_counter()
    with importing():
        import softtok.evaluation.measure
        import softtok.training.measure  # noqa: F401 (what a job imports)
    costs = Costs(start_s=time.perf_counter() - start, trainings={}, measures={})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # removes the folder below
    with tempfile.TemporaryDirectory(dir=options.results, prefix=".measuring-") as folder:
        for number, job in enumerate(jobs):
            place = Path(folder, str(number))
            place.mkdir()
            found = _measure_job(job, job.machine(grid.runtimes), options.results, place)
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
    runtime = runtime.model_copy(update={"state_folder": None})  # what is measured is not kept
    model, data, base = (results / below(path) for path in (job.run.model.folder, job.data.path, job.base.folder))
    shots = next((results / below(path) for path in job.shots), None)
    if isinstance(job.of, Evaluation):
        return measure_evaluation(job.of.spec, runtime, base, data, place, shots)
    if isinstance(job.of, Choices):
        return measure_choices(job.of.spec, runtime, base, data, place)
    return measure_training(job.run.spec, runtime, model, data, place, shots)
