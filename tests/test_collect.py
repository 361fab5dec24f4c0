"""Collected numbers and tables by hand: the noise of a choice of problems, which k are kept, rows and their losses."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import INFERENCE_MODES, write_study

from softtok.collect import collect
from softtok.tables import LEAST_VOTERS, Row, Study, make_tables, to_csv


def test_noise_of_problems_is_half_an_interval_of_the_median_run(tmp_path: Path) -> None:
    spec = write_study(
        tmp_path, modes=("hard",), seeds=2, test_sets=("sums",), choice_sets=(), problems=100, steps=1,
        inference_modes={"hard-greedy": INFERENCE_MODES["hard-greedy"]},
    )  # fmt: skip
    for run, solved in zip(spec["runs"], (50, 2, 20), strict=True):
        path = tmp_path / run["path"] / "eval/sums/six-89ab4567.parquet"
        pd.read_parquet(path).assign(correct=np.arange(100) < solved).to_parquet(path)
    points = 196 * np.sqrt(0.2 * 0.8 / 100)  # of 20 in 100 problems, in the normal approximation
    assert collect(spec, tmp_path).problem_noise == {"sums": pytest.approx(points, rel=0.05)}


def test_a_studys_own_k_come_beside_the_first_and_the_last(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=(), test_sets=("sums",), choice_sets=(), problems=4)
    metrics = collect(spec | {"k": [4, 64]}, tmp_path).metrics
    curves = metrics[metrics["metric"] == "pass@k"].groupby("inference_mode")["k"].apply(set)
    assert curves["hard-sample"] == {1, 4, 32}, "64 is more than there are samples"
    assert curves["hard-greedy"] == {1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, pd.DataFrame]:
    """Two models, each trained in one mode, with just enough samples for a vote."""
    root = tmp_path_factory.mktemp("two")
    modes = {name: INFERENCE_MODES[name] for name in ("hard-greedy", "hard-sample")}
    modes["hard-sample"] = modes["hard-sample"] | {"samples": LEAST_VOTERS}
    spec = write_study(
        root, models=("one", "other"), modes=("hard",), test_sets=("sums",), choice_sets=(), inference_modes=modes,
        problems=10, steps=4,
    )  # fmt: skip
    return Study.from_spec(spec), collect(spec, root).metrics


def test_rows_that_are_compared_are_of_one_model(made: tuple[Study, pd.DataFrame]) -> None:
    study, _ = made
    assert study.rows_of("one", "sums") == [Row("one", "none", "base"), Row("one", "sums", "hard")]


def test_a_table_counts_the_diverged_runs_of_each_row(made: tuple[Study, pd.DataFrame]) -> None:
    lost = Row("other", "sums", "hard")
    table = make_tables(*made, [lost, lost])["hard-inference"]
    cells = csv.DictReader(io.StringIO(to_csv(table)))
    counted = {(cell["model"], cell["training_mode"]): cell["diverged"] for cell in cells}
    assert counted == {("one", "base"): "0", ("one", "hard"): "0", ("other", "base"): "0", ("other", "hard"): "2"}


def test_the_least_number_of_voters_has_its_table(made: tuple[Study, pd.DataFrame]) -> None:
    assert "majority-voting" in make_tables(*made)
