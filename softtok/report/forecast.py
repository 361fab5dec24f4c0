"""What a study costs before it is run: jobs, hours, GPU-hours, disk and tokens, on one screen.

Each number comes from the best source there is: jobs of the same kind that have finished, `softtok measure`, and else
counted arithmetic with the rates of `softtok doctor` or of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from softtok.config.counted import Counting, problems_of
from softtok.config.grid import Grid, Study
from softtok.config.model_sizes import parameters
from softtok.config.rates import DEVICES, DOCTOR, Rates
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import HubSource, parse
from softtok.config.work import Costs, Job, jobs_of
from softtok.errors import UserError
from softtok.report.estimate import took_s
from softtok.storage.progress import duration

MARGIN = 2  # columns before a line of the screen
STATE_BYTES = 12  # a parameter, of a saved training state: weights in fp32 and two moments


@dataclass(frozen=True)
class Kind:
    """Jobs that take equally long: their number, the seconds of each, and where that is known from."""

    job: Job
    count: int
    seconds: float
    source: str
    runtime: RuntimeSettings
    spread: float = 1.0

    @property
    def longest(self) -> float:
        """The most seconds that one may take."""
        return self.seconds * self.spread

    @property
    def limit(self) -> float:
        """The seconds that it asks the scheduler for."""
        return 60.0 * self.runtime.runtime_min


class Forecast:
    """The costs of all jobs of a study. `device` names a row of the table, in the place of what was measured here."""

    def __init__(
        self,
        grid: Grid,
        study: Study,
        results: Path,
        device: str | None = None,
        cot_tokens: float | None = None,
    ) -> None:
        self.study, self.results, self.jobs = study, results, jobs_of(study)
        self.runtimes = grid.runtimes
        self.rates = rates_of(self.jobs, grid, results, device)
        self.counting = Counting(self.jobs, self.rates, grid.runtimes, results, cot_tokens)
        self.of_this_machine = device is None
        self.kinds = list(self._kinds())

    def _kinds(self) -> Iterator[Kind]:
        counted, measured = self.counting.costs(), self._measured()
        alike: dict[str, list[Job]] = {}
        for job in self.jobs:
            alike.setdefault(job.cost, []).append(job)
        for jobs in alike.values():
            job, problems = jobs[0], problems_of(jobs[0].data, self.results)
            runtime = job.machine(self.runtimes)
            took = [s for one in jobs if one.finished(self.results) and (s := took_s(one, self.results)) is not None]
            if took and self.of_this_machine:
                yield Kind(job, len(jobs), sum(took) / len(took), "finished", runtime)
            elif measured is not None and measured.covers([job]):
                yield Kind(job, len(jobs), measured.seconds(job, runtime, problems), "measured", runtime)
            else:
                source = "probes" if self.rates.measured else "counted"
                seconds = counted.seconds(job, runtime, problems)
                yield Kind(job, len(jobs), seconds, source, runtime, self.rates.spread)

    def _measured(self) -> Costs | None:
        path = self.results / "logs" / f"costs-{self.study.name}.json"
        return parse(Costs, str(path), "costs") if self.of_this_machine and path.exists() else None

    def gpu_hours(self, longest: bool = False) -> float:
        """Returns the hours of GPUs that all jobs hold; `longest`: at the most."""
        return sum(_of(kind, longest) * kind.count * kind.runtime.gpus for kind in self.kinds) / 3600

    def core_hours(self, longest: bool = False) -> float:
        """Returns the hours of CPU cores that all jobs hold."""
        return sum(_of(kind, longest) * kind.count * kind.runtime.threads for kind in self.kinds) / 3600

    def tokens(self) -> float:
        """Returns the tokens that all jobs generate, without validations."""
        return sum(kind.count * self.counting.tokens(kind.job) for kind in self.kinds)

    def disk_bytes(self) -> tuple[float, float]:
        """Returns what stays on the disk, and what a training of the largest model needs beside it while it runs."""
        weight = self.rates.bytes_a_weight
        trained = [run for run in self.study.runs.values() if run.train_set is not None]
        models = {run.model.folder: run for run in self.study.runs.values()}
        fetched = [2 if isinstance(run.model.spec.source, HubSource) else 4 for run in models.values()]
        of_models = sum(
            each * parameters(self.counting.size(run)) for each, run in zip(fetched, models.values(), strict=True)
        )
        counts = [parameters(self.counting.size(run)) for run in trained]
        return of_models + weight * sum(counts), 2.0 * STATE_BYTES * max(counts, default=0)

    def lines(self, width: int = 80) -> list[str]:
        """Returns the screen."""
        done = sum(job.finished(self.results) for job in self.jobs)
        found = [f"{self.study.name} on {self.rates.device}: {len(self.jobs)} trainings and tests, {done} finished", ""]
        unit = "GPU-h" if self.gpu_hours() else "core-h"
        found.append(f"{'jobs':>6}  {'each':>12}  {unit:>8}  {'from':<8}  what")
        found += [self._row(kind, width) for kind in self.kinds]
        gpus, cores = (f"{_about(hours(), hours(longest=True))}" for hours in (self.gpu_hours, self.core_hours))
        stays, beside = self.disk_bytes()
        facts = [f"GPU-hours: {gpus}"] if self.gpu_hours() else [f"core-hours: {cores}"]
        facts.append(f"tokens: {_thousands(self.tokens())} generated, validations not counted")
        facts.append(f"disk: {_gb(stays)} for models and checkpoints, {_gb(beside)} more while the largest trains")
        facts += list(self.too_long())
        if any(kind.spread > 1 for kind in self.kinds):
            facts += [f"assumed: {line}" for line in self.counting.assumptions()]
            untimed = ", a guess: nothing was timed on a GPU yet" if self.rates.gpu else ""
            facts.append(f"counted times may be off by a factor of {self.rates.spread:g} either way{untimed}")
        found.append("")
        for fact in facts:
            found += wrap(fact, width, subsequent_indent=" " * MARGIN)
        return found

    def _row(self, kind: Kind, width: int) -> str:
        label = kind.job.label if kind.job.of is None else kind.job.label.removesuffix(", base")
        held = kind.seconds * kind.count / 3600 * (kind.runtime.gpus or kind.runtime.threads)
        mark = "!" if kind.longest > kind.limit else " "
        row = f"{kind.count:>6}  {duration(kind.seconds):>12}  {held:>8.1f}  {kind.source:<8} {mark}{label}"
        return row if len(row) <= width else f"{row[: width - 3]}..."

    def too_long(self) -> Iterator[str]:
        """Yields a line for the trainings and one for the tests of a model that may exceed the time they ask for."""
        over: dict[tuple[str, str], list[Kind]] = {}
        for kind in self.kinds:
            if kind.longest > kind.limit:
                setting = "runtime_min" if kind.job.of is None else "evaluation_runtime_min"
                over.setdefault((kind.job.run.model.name, setting), []).append(kind)
        for (name, setting), kinds in over.items():
            surely = sum(kind.count for kind in kinds if kind.seconds > kind.limit)
            most, limit = max(kind.longest for kind in kinds), kinds[0].runtime.runtime_min
            yield (
                f"! {sum(kind.count for kind in kinds)} jobs of {name} may exceed {setting}: {limit} ({surely} are"
                f" expected to); they take up to {most / 60:.0f} min. A further attempt goes on; or raise it"
            )


def rates_of(jobs: Sequence[Job], grid: Grid, results: Path, device: str | None) -> Rates:
    """Returns the rates of the named device, or what the doctor measured here, or of a likely device.

    Raises UserError for a device that the table lacks.
    """
    if device is not None:
        if device not in DEVICES:
            raise UserError(f"--device {device}: is not in the table; choose one of {', '.join(DEVICES)}")
        return DEVICES[device]
    gpus = any(grid.runtimes[job.run.model.name].gpus for job in jobs)
    if (results / DOCTOR).exists():
        rates = parse(Rates, str(results / DOCTOR), "doctor")
        if rates.gpu == gpus:
            return rates
    return DEVICES["H100" if gpus else "cpu"]


def _of(kind: Kind, longest: bool) -> float:
    return kind.longest if longest else kind.seconds


def _about(hours: float, most: float) -> str:
    """Returns hours with their range; equal ones were measured."""
    if most <= hours:
        return f"about {hours:,.1f}"
    return f"about {hours:,.0f}, up to {most:,.0f}" if hours >= 10 else f"about {hours:.1f}, up to {most:.1f}"


def _thousands(count: float) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:,.0f}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 1e10 else f"{size / 1e9:.1f} GB"
