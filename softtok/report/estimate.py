"""How long a study takes on this machine, from measured parts, and how long it still takes, from finished jobs."""

from __future__ import annotations

import contextlib
import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from softtok.config.settings import RuntimeSettings
from softtok.config.work import Costs, Job, below, problems_in, training_counts
from softtok.storage.costs import read_cost
from softtok.storage.progress import duration

PARTS = ("steps", "steps with gradient norms", "validations", "resumable saves", "saves of the best weights")


def took_s(job: Job, results: Path) -> float | None:
    """Returns how long a finished job took, all its attempts together; None if that is unknown.

    Snakemake notes the last attempt alone. Evaluations of an earlier version tell no more.
    """
    found = []
    benchmark = results / below(job.benchmark)
    with contextlib.suppress(OSError, ValueError, KeyError), open(benchmark, newline="", encoding="utf-8") as file:
        found = [float(row["s"]) for row in csv.DictReader(file, delimiter="\t")][-1:]
    if job.of is None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(float(json.loads((results / below(job.outputs[0])).read_text(encoding="utf-8"))["wall_s"]))
    elif (cost := read_cost(results / below(job.outputs[0]))) is not None:
        times = [part.wall_s for part in cost.parts]
        if None not in times:
            found.append(cost.ready_s + sum(filter(None, times)))
    return max(found, default=None)


class TimeLeft:
    """What the unfinished jobs of a study take: as expected, corrected by what finished jobs took.

    `expected` has the seconds of all jobs, `shares` the part of the machine that each takes (`work.share`).
    """

    def __init__(self, expected: Mapping[Job, float], shares: Mapping[Job, float]) -> None:
        self.expected, self.shares = expected, shares
        self.took: dict[Job, float] = {}

    def seconds(self) -> float:
        """Returns the seconds until all jobs are done.

        A job takes as long as jobs of equal cost took. Where none has finished, what is expected is multiplied by the
        ratio of real to expected times so far.
        """
        of_cost: dict[str, list[float]] = {}
        for job, seconds in self.took.items():
            of_cost.setdefault(job.cost, []).append(seconds)
        planned = sum(self.expected[job] for job in self.took)
        ratio = sum(self.took.values()) / planned if planned > 0 else 1.0
        waiting = [job for job in self.expected if job not in self.took]
        each = {
            job: sum(of_cost[job.cost]) / len(of_cost[job.cost]) if job.cost in of_cost else ratio * self.expected[job]
            for job in waiting
        }
        return sum(seconds * self.shares[job] for job, seconds in each.items())


def arithmetic(
    jobs: Sequence[Job],
    costs: Costs,
    runtimes: Mapping[str, RuntimeSettings],
    expected: Mapping[Job, float],
    results: Path,
) -> Iterator[str]:
    """Yields a line for each kind of job: how many there are, what one is made of, and how long one takes."""
    count = Counter(job.cost for job in jobs)
    for job in {job.cost: job for job in reversed(jobs)}.values():
        if job.of is None:
            assert job.run.spec.training is not None
            cost = costs.trainings[job.cost]
            counts = training_counts(job.run.spec.training, job.machine(runtimes).save_every)
            each = (cost.step_s, cost.measured_step_s, cost.validation_s, cost.save_s, cost.weights_s)
            parts = [f"{n} {what} x {s:.3g} s" for n, what, s in zip(counts, PARTS, each, strict=True) if n * s]
            ready = cost.ready_s
        else:
            one = costs.measures[job.cost]
            problems = problems_in(job.data, results)
            parts, ready = [f"{problems} problems x {one.problem_s:.3g} s"], one.ready_s
        start = f"start {costs.start_s + ready:.3g} s"
        label = job.label if job.of is None else job.label.split(" of ")[0]
        yield f"{count[job.cost]} x {label}: {' + '.join([start, *parts])} = {duration(expected[job])} each"
