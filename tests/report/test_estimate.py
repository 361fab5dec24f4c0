"""The time left, from what was expected and what finished jobs took."""

from __future__ import annotations

from pathlib import Path

import pytest

from softtok.config.grid import Grid
from softtok.config.work import Costs, Job, ProblemsCost, TrainingCost, jobs_of, seconds_of, share, unlike
from softtok.report.estimate import TimeLeft, arithmetic, took_s
from softtok.storage.costs import JobCost, Part, cost_path, write_cost
from softtok.storage.files import write_json
from tests.support.project import Project, shipped

STUDY = "demo"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made = Project(tmp_path_factory.mktemp("work"))
    made.config = shipped()
    for data in made.grid().data.values():
        write_json(made.folder / f"{data.stem}.json", {"rows": 100})
    return made


@pytest.fixture(scope="module")
def grid(project: Project) -> Grid:
    return project.grid()


@pytest.fixture(scope="module")
def costs(project: Project, grid: Grid) -> Costs:
    jobs = unlike(grid.studies[STUDY], project.results)
    one = TrainingCost(ready_s=1, step_s=0.5, measured_step_s=2, validation_s=3, save_s=0.25, weights_s=0.125)
    return Costs(
        start_s=4,
        trainings={job.cost: one for job in jobs if job.kind == "train"},
        measures={job.cost: ProblemsCost(ready_s=1, problem_s=0.5) for job in jobs if job.kind != "train"},
    )


def test_the_arithmetic_says_all_that_the_total_counts(project: Project, grid: Grid, costs: Costs) -> None:
    jobs = jobs_of(grid.studies[STUDY])
    expected = seconds_of(jobs, costs, grid.runtimes, project.results)
    lines = list(arithmetic(jobs, costs, grid.runtimes, expected, project.results))
    assert len(lines) == len({job.cost for job in jobs}) == 3 + 2 + 1
    assert sum(int(line.split(" x ")[0]) for line in lines) == len(jobs)
    for line in lines:
        given, told = line.split(": ", 1)[1].split(" = ")
        seconds = 0.0
        for part in given.split(" + "):
            count, _, one = part.rpartition(" x ")
            seconds += float(one.split()[-2]) * (int(count.split()[0]) if count else 1)
        label = line.split(" x ")[1].split(":")[0]
        (job,) = {job.cost: job for job in jobs if job.label.startswith(label)}.values()
        assert seconds == pytest.approx(expected[job], rel=1e-2), line
        assert told.endswith(" each")
    training = next(line for line in lines if "training toy, sums, soft" in line)
    assert training.startswith("3 x ") and "steps with gradient norms" in training and "validations x 3 s" in training


def test_time_left_follows_what_finished_jobs_took(project: Project, grid: Grid, costs: Costs) -> None:
    jobs = jobs_of(grid.studies[STUDY])
    expected = seconds_of(jobs, costs, grid.runtimes, project.results)
    shares = {job: share(job.machine(grid.runtimes), 2, 1) for job in jobs}
    left = TimeLeft(expected, shares)
    whole = left.seconds()
    assert whole == pytest.approx(sum(expected.values()) / 2), "two jobs of one thread on two cores"
    job = jobs[0]
    assert job.kind == "evaluate"
    left.took[job] = 3 * expected[job]
    assert left.seconds() == pytest.approx(3 * (whole - expected[job] / 2)), "all are as much slower"
    training = next(job for job in jobs if job.kind == "train")
    left.took[training] = expected[training]
    alike = [one for one in jobs if one not in left.took and one.cost == training.cost]
    assert len(alike) == 2
    slow = [one for one in jobs if one not in left.took and one.cost == job.cost]
    rest = [one for one in jobs if one not in left.took and one not in alike and one not in slow]
    ratio = (3 * expected[job] + expected[training]) / (expected[job] + expected[training])
    known = sum(expected[one] for one in alike) + 3 * sum(expected[one] for one in slow)
    assert left.seconds() == pytest.approx((known + ratio * sum(expected[one] for one in rest)) / 2)
    left.took = {job: 1.0 for job in jobs}
    assert left.seconds() == 0


def test_a_job_took_what_its_files_say(project: Project, grid: Grid, tmp_path: Path) -> None:
    made = project.copy(tmp_path / "made")
    jobs = jobs_of(grid.studies[STUDY])
    training: Job = next(job for job in jobs if job.kind == "train")
    evaluation = jobs[0]
    for job in (training, evaluation):
        assert took_s(job, made.results) is None
        made.write(job.benchmark, text="s\th:m:s\n7.5\t0:00:07\n")
        assert took_s(job, made.results) == 7.5
    write_json(made.folder / training.outputs[0], {"wall_s": 70.25})
    assert took_s(training, made.results) == 70.25, "earlier attempts count, too"
    part = Part(inference_mode="m", made_on="cpu", wall_s=8.0, tokens=1, tokens_per_s=1.0, peak_memory_mb=None)
    rows = made.folder / evaluation.outputs[0]
    for other, seconds in ((part, 17.5), (part.model_copy(update={"wall_s": None}), 7.5)):
        write_cost(rows, JobCost(made_on="cpu", ready_s=1.5, parts=[part, other]))
        assert took_s(evaluation, made.results) == seconds, "without a time of some of it, the benchmark counts"
    cost_path(rows).unlink()
    made.write(training.benchmark, evaluation.benchmark, text="s\n-\n")
    assert (took_s(training, made.results), took_s(evaluation, made.results)) == (70.25, None)
