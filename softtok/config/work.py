"""The jobs of a study that take time, in the order in which they run, and what each of them is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from softtok.config.grid import Grid, Study
from softtok.config.jobs import REPORT, Choices, Data, Evaluation, Plan, Run
from softtok.config.load import read
from softtok.config.messages import nearest
from softtok.config.settings import RuntimeSettings, TrainingSettings
from softtok.errors import UserError
from softtok.storage.files import text_hash
from softtok.storage.records import Record

R = TypeVar("R", bound=Run)
RESULTS = "results"  # the first folder of all paths of jobs


@dataclass(frozen=True, eq=False)
class Job:
    """A training, an evaluation of a run on one test set, or a choice set of a run."""

    kind: Literal["train", "evaluate", "choices"]
    run: Run
    base: Run  # that of the untouched model
    of: Evaluation | Choices | None = None

    @cached_property
    def outputs(self) -> list[str]:
        """The files that exist when the job has finished."""
        if isinstance(self.of, Evaluation):
            return [f"{self.run.folder}/{self.of.stem}{suffix}" for suffix in (".parquet", ".entropy.csv")]
        if self.of is not None:
            return [f"{self.run.folder}/{self.of.stem}.parquet"]
        return [f"{self.run.folder}/{name}" for name in ("manifest.json", "metrics.jsonl")]

    @property
    def benchmark(self) -> str:
        """The file in which Snakemake notes how long the job took."""
        stem = f"{self.run.folder}/{self.of.stem if self.of else 'train'}"
        return f"{stem.replace(RESULTS, f'{RESULTS}/benchmarks', 1)}.tsv"

    @cached_property
    def cost(self) -> str:
        """What jobs have in common that take equally long: trainings all but the seed, others the model and the set."""
        if self.of is None:
            return f"train {text_hash(self.run.spec.model_copy(update={'seed': 0}).as_json())}"
        return f"{self.kind} {self.run.model.folder} {self.of.stem}"

    @property
    def data(self) -> Data:
        """The problems that the job works on."""
        found = self.of.data if self.of is not None else self.run.train_set
        assert found is not None, "an untouched model is not trained"
        return found

    @property
    def shots(self) -> list[str]:
        """The prepared examples of its prompts, if any."""
        if isinstance(self.of, Evaluation):
            return self.of.shots_path(self.run.model)
        return [] if self.of is not None else self.run.shots_path

    @property
    def label(self) -> str:
        """The job in words, without the seed."""
        names = [self.run.model.name, *([self.run.train_set_name] if self.run.train_set else []), self.run.name]
        if self.of is None:
            return f"training {', '.join(names)}"
        on = f"{self.of.data.name} ({self.of.name})" if isinstance(self.of, Evaluation) else self.of.name
        return f"{on} of {', '.join(names)}"

    def machine(self, runtimes: Mapping[str, RuntimeSettings]) -> RuntimeSettings:
        """Returns the job's own machine settings, of those of the models by name."""
        of_training = runtimes[self.run.model.name]
        return of_training if self.of is None else of_training.for_evaluation

    def finished(self, results: Path) -> bool:
        """Whether the job's outputs are in the folder `results`."""
        return all((results / below(path)).exists() for path in self.outputs)


def below(path: str) -> str:
    """Returns a job's path as it is below the folder of results."""
    return path.removeprefix(f"{RESULTS}/")


def in_turn(runs: Iterable[R]) -> list[R]:
    """Returns runs in the order in which they are made with few cores: the first seed of all modes, then the next."""
    return sorted(runs, key=lambda run: run.seed)


def study_of(files: Sequence[Path], name: str, data_root: Path | None) -> tuple[Grid, Study]:
    """Returns a study of configuration files, with the grid that it is in. Raises UserError."""
    grid = Grid(read(files, [name], str(data_root) if data_root else None))
    if name not in grid.studies:
        raise UserError(f"there is no study {name!r} in {', '.join(map(str, files))}{nearest(name, grid.studies)}")
    return grid, grid.studies[name]


def jobs_of(study: Plan) -> list[Job]:
    """Returns the jobs of a study in their order: a run is trained and evaluated before the next begins."""
    found = []
    bases = {run.model.folder: run for run in study.runs.values() if not run.train_set}
    for run in in_turn(study.runs.values()):
        base = bases[run.model.folder]
        found += [Job("train", run, base)] if run.train_set else []
        found += [Job("evaluate", run, base, item) for item in study.evaluations[run.folder].values()]
        found += [Job("choices", run, base, item) for item in study.choices[run.folder].values()]
    return found


def asks_for(targets: Iterable[str], study: Study) -> bool:
    """Whether targets of Snakemake name a study, its report, or an output of one of its jobs."""
    asked = set(targets)
    if study.name in asked or REPORT.format(study=study.name) in {str(Path(target).parent) for target in asked}:
        return True
    paths = {target for target in asked if target.startswith(f"{RESULTS}/runs/")}
    return bool(paths) and any(not paths.isdisjoint(job.outputs) for job in jobs_of(study))


def unlike(study: Plan, results: Path) -> list[Job]:
    """Returns an unfinished job of each cost, trainings first."""
    found: dict[str, Job] = {}
    for job in jobs_of(study):
        if not job.finished(results):
            found.setdefault(job.cost, job)
    return sorted(found.values(), key=lambda job: job.kind != "train")


def prepared(study: Plan) -> list[str]:
    """Returns the files that all jobs of a study start from: data sets, models and untouched runs."""
    found = [f"{run.folder}/manifest.json" for run in study.runs.values() if not run.train_set]
    for job in jobs_of(study):
        found += [job.run.model.folder, job.data.path, *job.shots]
    return list(dict.fromkeys(found))


class TrainingCounts(NamedTuple):
    """How often a training does what takes time."""

    steps: int  # without those at which the gradient's norms are measured, too
    measured_steps: int
    validations: int
    saves: int  # from which it could resume
    weights: int  # saves of the best so far, at the most


def training_counts(settings: TrainingSettings, save_every: int | None) -> TrainingCounts:
    """Returns what a training does: it validates before the first step, every `validate_every` steps and at the end.

    Saves by minutes are not counted: training waits for a copy only.
    """
    measured = settings.steps // settings.validate_every
    validations = measured + (settings.steps % settings.validate_every > 0)
    saves = max(0, settings.steps - 1) // save_every if save_every else 0
    return TrainingCounts(settings.steps - measured, measured, 1 + validations, saves, validations)


class TrainingCost(Record):
    """Seconds that the parts of a training take: until it is ready, then one of each in `TrainingCounts`."""

    ready_s: float
    step_s: float
    measured_step_s: float
    validation_s: float
    save_s: float
    weights_s: float

    def seconds(self, counts: TrainingCounts) -> float:
        """Returns how long a whole training takes."""
        each = (self.step_s, self.measured_step_s, self.validation_s, self.save_s, self.weights_s)
        return self.ready_s + sum(count * cost for count, cost in zip(counts, each, strict=True))


class ProblemsCost(Record):
    """Seconds that an evaluation or a choice set takes before its first problem, and for each problem."""

    ready_s: float
    problem_s: float


class Costs(Record):
    """What was measured on one machine, by `Job.cost`; `start_s` is until a job has imported what it needs."""

    start_s: float
    trainings: dict[str, TrainingCost]
    measures: dict[str, ProblemsCost]

    def covers(self, jobs: Iterable[Job]) -> bool:
        """Whether all of these jobs were measured."""
        return {job.cost for job in jobs} <= {*self.trainings, *self.measures}

    def seconds(self, job: Job, runtime: RuntimeSettings, problems: int) -> float:
        """Returns how long a job takes; `problems` are those of its data set."""
        if job.of is not None:
            cost = self.measures[job.cost]
            return self.start_s + cost.ready_s + problems * cost.problem_s
        assert job.run.spec.training is not None
        counts = training_counts(job.run.spec.training, runtime.save_every)
        return self.start_s + self.trainings[job.cost].seconds(counts)


def problems_in(data: Data, results: Path) -> int:
    """Returns the number of problems in a prepared data set."""
    path = results / below(f"{data.stem}.json")
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); snakemake makes it") from None


def share(runtime: RuntimeSettings, cores: int, gpus: int) -> float:
    """Returns which share of the machine a job takes, so that no other can run there: of its cores or its GPUs."""
    return max(min(1.0, runtime.threads / cores), min(1.0, runtime.gpus / max(gpus, 1)))


def seconds_of(
    jobs: Iterable[Job], costs: Costs, runtimes: Mapping[str, RuntimeSettings], results: Path
) -> dict[Job, float]:
    """Returns how long each job takes; `runtimes` are the machine settings of the models by name."""
    known: dict[str, float] = {}
    found = {}
    for job in jobs:
        if job.cost not in known:
            known[job.cost] = costs.seconds(job, job.machine(runtimes), problems_in(job.data, results))
        found[job] = known[job.cost]
    return found
