"""The jobs of a study in their order, what they are made of, and what is counted of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softtok.config.settings import RuntimeSettings, TrainingSettings
from softtok.config.work import (
    Costs,
    ProblemsCost,
    TrainingCost,
    jobs_of,
    prepared,
    problems_in,
    seconds_of,
    share,
    training_counts,
    unlike,
)
from softtok.errors import UserError
from softtok.storage.files import write_json
from tests.support.project import Project, shipped

STUDY = "small"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made, config = Project(tmp_path_factory.mktemp("work")), shipped()
    study = config["studies"]["demo"] | {"training_modes": ["soft", "hard"], "seeds": [3, 0]}
    made.config = config | {"studies": {STUDY: study}, "run": [STUDY]}
    grid = made.grid()
    for data in grid.data.values():
        write_json(made.folder / f"{data.stem}.json", {"rows": 100 if data.kind == "test" else 200})
    return made


def test_jobs_stand_in_the_order_of_seeds_then_modes_each_run_with_its_tests(project: Project) -> None:
    jobs = jobs_of(project.grid().studies[STUDY])
    runs = list(dict.fromkeys((job.run.name, job.run.seed) for job in jobs))
    assert runs == [("base", 0), ("soft", 0), ("hard", 0), ("soft", 3), ("hard", 3)]
    assert [job.kind for job in jobs] == [
        "evaluate",
        "evaluate",
        "choices",
        *(["train"] + ["evaluate"] * 2 + ["choices"]) * 4,
    ]
    assert len({job.benchmark for job in jobs}) == len({path for job in jobs for path in job.outputs[:1]}) == 19


def test_jobs_that_differ_in_the_seed_alone_cost_the_same(project: Project) -> None:
    study = project.grid().studies[STUDY]
    jobs = jobs_of(study)
    costs = {(job.kind, job.run.name, job.run.seed): job.cost for job in jobs if job.kind == "train"}
    assert costs["train", "soft", 0] == costs["train", "soft", 3] != costs["train", "hard", 0]
    assert len({job.cost for job in jobs}) == 2 + 2 + 1, "two modes, two test sets, one choice set"
    assert [job.kind for job in unlike(study, project.results)] == ["train", "train", "evaluate", "evaluate", "choices"]


def test_what_has_finished_is_not_counted(project: Project, tmp_path: Path) -> None:
    done = project.copy(tmp_path / "done")
    study = done.grid().studies[STUDY]
    for job in jobs_of(study):
        if job.run.name == "soft" or job.of is not None:
            done.write(*job.outputs)
    assert [job.label for job in unlike(study, done.results)] == ["training toy, sums, hard"]
    job = unlike(study, done.results)[0]
    done.write(job.outputs[1])
    assert not job.finished(done.results), "the manifest is written last"
    done.write(job.outputs[0])
    assert job.finished(done.results)


def test_jobs_start_from_data_models_and_untouched_runs(project: Project) -> None:
    grid = project.grid()
    study = grid.studies[STUDY]
    found = prepared(study)
    assert {path for path in found if "/data/" in path} == {data.path for data in grid.data.values()}
    (base,) = {job.base.folder for job in jobs_of(study)}
    assert f"{base}/manifest.json" in found and set(grid.models) <= set(found)


@pytest.mark.parametrize(
    ("settings", "save_every", "counted"),
    [
        ({"steps": 100, "validate_every": 25}, 50, (96, 4, 5, 1, 4)),
        ({"steps": 110, "validate_every": 25}, 50, (106, 4, 6, 2, 5)),
        ({"steps": 6, "validate_every": 2}, 1, (3, 3, 4, 5, 3)),
        ({"steps": 10, "validate_every": 50}, 50, (10, 0, 2, 0, 1)),
        ({"steps": 1, "validate_every": 1}, 1, (0, 1, 2, 0, 1)),
    ],
)
def test_a_training_is_counted_with_its_validations_and_saves(
    settings: dict[str, Any], save_every: int, counted: tuple[int, ...]
) -> None:
    assert training_counts(TrainingSettings(**settings), save_every) == counted


def costs_of(project: Project) -> Costs:
    """Returns costs that are all different."""
    jobs = unlike(project.grid().studies[STUDY], project.results)
    names = ("ready_s", "step_s", "measured_step_s", "validation_s", "save_s", "weights_s")
    trainings = {
        job.cost: TrainingCost(**{name: float(10**place) for place, name in enumerate(names)})
        for job in jobs
        if job.kind == "train"
    }
    rest = (job for job in jobs if job.kind != "train")
    measures = {job.cost: ProblemsCost(ready_s=4.0, problem_s=0.5 * place) for place, job in enumerate(rest, start=1)}
    return Costs(start_s=3.0, trainings=trainings, measures=measures)


def test_a_job_takes_what_its_parts_take(project: Project) -> None:
    grid = project.grid()
    jobs, costs = jobs_of(grid.studies[STUDY]), costs_of(project)
    assert costs.covers(jobs)
    assert not Costs(start_s=3.0, trainings=costs.trainings, measures={}).covers(jobs)
    found = seconds_of(jobs, costs, grid.runtimes, project.results)
    assert set(found) == set(jobs)
    of_kind = {kind: {found[job] for job in jobs if job.kind == kind} for kind in ("train", "evaluate", "choices")}
    assert of_kind["evaluate"] == {3 + 4 + 100 * 0.5, 3 + 4 + 100 * 1.0}, "so many problems as the sets have"
    assert of_kind["choices"] == {3 + 4 + 200 * 1.5}
    training = jobs[3].run.spec.training
    assert training is not None
    counts = training_counts(training, grid.runtimes["toy"].save_every)
    assert counts.steps == training.steps - counts.measured_steps and counts.validations > 2
    parts = zip(counts, (10, 100, 1e3, 1e4, 1e5), strict=True)
    assert of_kind["train"] == {3 + 1 + sum(count * one for count, one in parts)}


def test_a_set_that_is_not_prepared_is_one_line(project: Project, tmp_path: Path) -> None:
    data = next(iter(project.grid().data.values()))
    with pytest.raises(UserError, match=r"\.json cannot be read .*; snakemake makes it"):
        problems_in(data, tmp_path)


@pytest.mark.parametrize(
    ("runtime", "cores", "gpus", "expected"),
    [
        ({"threads": 1}, 2, 1, 0.5),
        ({"threads": 2}, 2, 1, 1.0),
        ({"threads": 8}, 2, 1, 1.0),
        ({"threads": 1, "gpus": 1}, 16, 1, 1.0),
        ({"threads": 1, "gpus": 1}, 16, 4, 0.25),
    ],
)
def test_jobs_run_side_by_side_as_far_as_cores_and_gpus_go(
    runtime: dict[str, int], cores: int, gpus: int, expected: float
) -> None:
    assert share(RuntimeSettings.model_validate(runtime), cores, gpus) == expected
