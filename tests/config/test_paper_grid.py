"""The shipped studies of the paper: the jobs that one counts by hand, and what they share.

Every number of the paper is in reach.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pandas as pd
import pytest

from softtok.config.grid import Grid, Study
from softtok.config.load import read
from softtok.errors import UserError
from softtok.report import study as report
from softtok.report.collect import collect
from softtok.report.tables import make_tables
from tests.support.project import ROOT, Project, counts, dry_run
from tests.support.synthetic_runs import write_planned

# Jobs by rule, without each study's report.
COUNTS = {
    # 5 pairs of model and train set x 3 modes x 3 seeds, and 3 bases; 3 train, 3 test and 3 choice sets.
    "paper": {"dataset": 9, "model": 3, "base": 3, "train": 45, "evaluate": 48 * 3, "choices": 48 * 3},
    # 4, 8 and 4 modes x 2 seeds, and the base, on one test set; the train set and the test set.
    "noise-scale": {"dataset": 2, "model": 1, "base": 1, "train": 8, "evaluate": 9},
    "noise-placement": {"dataset": 2, "model": 1, "base": 1, "train": 16, "evaluate": 17},
    "temperature": {"dataset": 2, "model": 1, "base": 1, "train": 8, "evaluate": 9},
    # 23 modes x 2 seeds and the base on 2 test sets; Gumbel's 2 runs there too, and with the base once more in its own
    # mode; the base and 3 modes x 2 seeds in 3 more sets of modes on 2 test sets, and in one on a single one.
    "controls": {
        "dataset": 3, "model": 1, "base": 1, "train": 24 * 2,
        "evaluate": 47 * 2 + (2 * 2 + 3 * 2) + 7 * 3 * 2 + 7,
    },
}  # fmt: skip
# What is left of a study when `paper` is built: hard, soft and fuzzy of Llama 3B on GSM8K are shared, with their
# evaluations in the six modes, and so are the base and all data.
ADDED = {
    "noise-scale": {"train": 3 * 2, "evaluate": 3 * 2},
    "noise-placement": {"train": 6 * 2, "evaluate": 6 * 2},
    "temperature": {"train": 3 * 2, "evaluate": 3 * 2},
    "controls": {"train": 21 * 2, "evaluate": 153 - 7 * 2},
}
NO_NETWORK = """
import socket

def refuse(*arguments, **options):
    raise SystemExit("the network was asked for something")

socket.getaddrinfo = socket.create_connection = refuse
"""


@pytest.fixture(scope="module")
def grid() -> Grid:
    return Grid(read(ROOT / "config.yaml"))


def jobs(study: str, folder: Path) -> dict[str, int]:
    """Jobs by rule, without the study's report, that report's spec, and its target."""
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site/sitecustomize.py").write_text(NO_NETWORK)
    listed = dry_run(folder, "--quiet", "rules", "--", study, PYTHONPATH=f"{folder / 'site'}:{ROOT}")
    found = counts(listed)
    assert [found.pop(name) for name in ("report_spec", "report", study)] == [1, 1, 1]
    assert "warning" not in listed.stdout.lower()
    return found


@pytest.mark.parametrize("study", COUNTS)
def test_a_study_means_the_jobs_one_counts_by_hand_without_network(study: str, tmp_path: Path) -> None:
    assert jobs(study, tmp_path) == COUNTS[study]


def test_a_study_built_after_the_papers_adds_only_the_runs_that_differ(grid: Grid, tmp_path: Path) -> None:
    Project(tmp_path).finish(grid.studies["paper"], grid)
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    assert {study: jobs(study, tmp_path) for study in ADDED} == ADDED


def test_the_readme_counts_the_same_jobs() -> None:
    rows = [line.split("|")[1:-1] for line in (ROOT / "README.md").read_text(encoding="utf-8").split("\n")]
    table = {row[0].strip().strip("`"): [cell.strip() for cell in row[2:]] for row in rows if len(row) == 5}
    for study, jobs in COUNTS.items():
        # As `snakemake -n` counts: with the report, its spec, and the study's own target.
        added = str(sum(ADDED[study].values()) + 3) if study in ADDED else "–"
        assert table[study] == [f"{jobs['train']} + {jobs['base']}", str(sum(jobs.values()) + 3), added]


def test_studies_are_of_two_or_three_seeds_and_their_modes_differ(grid: Grid) -> None:
    for name in COUNTS:
        runs = list(grid.studies[name].runs.values())
        trained = [run for run in runs if run.train_set]
        assert {run.seed for run in trained} == set(range(3 if name == "paper" else 2))
        assert len({run.hash for run in runs}) == len(runs), "two names for one thing would train it twice"


def test_the_papers_cells_are_all_in_reach(grid: Grid) -> None:
    """Each number has its run, its test set and its mode in the study of its table, by the `paper:` names."""
    table = ROOT / "softtok/report/paper.csv"
    studies = {"6": "noise-scale", "7": "noise-placement", "8": "temperature"}
    with table.open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 909
    reached = {name: in_reach(grid.studies[name]) for name in {"paper", *studies.values()}}
    for cell in cells:
        mode = f"{cell['training_mode']} {cell['variant']}".strip()
        key = (cell["model"], cell["train_set"], mode, cell["test_set"], cell["inference_mode"])
        known = reached[studies.get(cell["table"], "paper")]
        assert key in known or (cell["table"] == "2" and (*key[:4], "") in known), cell


def in_reach(study: Study) -> set[tuple[str, ...]]:
    """(model, train set, training mode, test or choice set, inference mode) by the paper's names; "" for none."""
    spec, paper = study.spec, study.spec.paper
    cells: set[tuple[str, ...]] = set()
    for run in spec.runs:
        names = paper["training_modes"] | {"base": "base"}
        place = (paper["models"][run.model], paper["train_sets"].get(run.train_set, ""), names[run.training_mode])
        for test_set, sets in run.tests.items():
            for inference_set in sets:
                for mode in spec.inference_sets[inference_set]:
                    cells.add((*place, paper["test_sets"][test_set], paper["inference_modes"][mode]))
        for choice_set in run.choices:
            cells.add((*place, paper["choice_sets"][choice_set], ""))
    return cells


LARGE = ("paper", "controls")  # thousands of files each


@pytest.mark.parametrize(
    "study", [pytest.param(study, marks=pytest.mark.slow) if study in LARGE else study for study in COUNTS]
)
def test_what_a_study_plans_is_what_its_report_asks_for(study: str, grid: Grid, tmp_path: Path) -> None:
    """No more: some runs are tested in more modes on one test set than on another. And no less."""
    spec = grid.studies[study].spec
    write_planned(tmp_path, spec)
    results = collect(report.Study(spec), tmp_path)
    assert make_tables(report.Study(spec), results.metrics)
    cell = next(iter(tmp_path.glob("results/runs/*/gsm8k/*/seed0-*/eval/gsm8k/six-*.parquet")))
    rows = pd.read_parquet(cell)
    rows[rows["inference_mode"] != "soft-greedy"].to_parquet(cell, index=False)
    with pytest.raises(UserError, match="no rows of inference mode 'soft-greedy'"):
        collect(report.Study(spec), tmp_path)
