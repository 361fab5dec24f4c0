"""A test set that limits the samples per problem: its jobs, its tables and the figures of a study with another set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from softtok.config.grid import Grid
from softtok.config.specs import ReportSpec
from softtok.report.page import make_report
from softtok.report.study import Study
from tests.support.project import Project, shipped
from tests.support.synthetic_runs import write_planned

MOST = 4


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    made, config = Project(tmp_path_factory.mktemp("limited")), shipped()
    study = config["studies"]["demo"] | {"training_modes": ["hard", "soft"], "seeds": [0, 1]}
    config["test_sets"][study["test_sets"][1]]["samples"] = MOST
    made.config = config | {"studies": {"small": study}, "run": ["small"]}
    return made


@pytest.fixture(scope="module")
def spec(project: Project) -> ReportSpec:
    return project.grid().studies["small"].spec


def sets_of(spec: ReportSpec) -> tuple[str, str]:
    whole, limited = spec.order["test_sets"]
    return limited, whole


def test_evaluations_draw_no_more_than_the_set_allows(project: Project, spec: ReportSpec) -> None:
    limited, whole = sets_of(spec)
    grid = project.grid()
    drawn = {
        item.data.name: {name: mode.samples for name, mode in item.spec.inference_modes.items()}
        for item in grid.evaluations.values()
    }
    assert drawn[limited]["hard-greedy"] == 1
    assert drawn[limited]["hard-sample"] == MOST < drawn[whole]["hard-sample"]
    told = {name: settings.model_dump(exclude={"samples"}) for name, settings in grid.config.inference_modes.items()}
    for item in grid.evaluations.values():
        for name, mode in item.spec.inference_modes.items():
            assert mode.model_dump(exclude={"samples"}).items() <= told[name].items()


def test_a_limit_that_no_mode_reaches_changes_no_spec(project: Project, spec: ReportSpec, tmp_path: Path) -> None:
    limited, _ = sets_of(spec)
    entry = dict(project.config["test_sets"][limited])
    del entry["samples"]

    def grid_with(changed: dict[str, Any]) -> Grid:
        free = Project(tmp_path)
        free.config = project.config | {"test_sets": project.config["test_sets"] | {limited: changed}}
        return free.grid()

    without = grid_with(entry)
    assert '"samples":{' not in without.studies["small"].spec.as_json()
    ample = grid_with(entry | {"samples": 1000})
    assert {*ample.evaluations} == {*without.evaluations} != {*project.grid().evaluations}


def test_tables_and_figures_have_the_k_of_each_set(project: Project, spec: ReportSpec, tmp_path: Path) -> None:
    limited, whole = sets_of(spec)
    write_planned(project.folder, spec, problems=6, steps=4, cot=16)
    make_report(spec, tmp_path / "report", project.folder)
    metrics = pd.read_csv(tmp_path / "report/metrics.csv")
    passes = metrics[(metrics["metric"] == "pass@k") & (metrics["inference_mode"] == "hard-sample")]
    most = passes.groupby("test_set")[["k", "n_samples"]].max()
    drawn = Study(spec).inference_modes["hard-sample"].samples
    assert list(most.loc[limited]) == [MOST, MOST]
    assert list(most.loc[whole]) == [drawn, drawn]
    table = (tmp_path / "report/tables/hard-inference.md").read_text(encoding="utf-8")
    assert set(re.findall(r"hard-sample pass@(\d+)", table)) == {"1", str(MOST), str(drawn)}
    assert Study(spec).samples("hard-sample") == drawn
