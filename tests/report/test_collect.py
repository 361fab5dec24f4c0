"""Collected numbers and tables by hand: the noise of a choice of problems, which k are kept, rows and their losses."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softtok.errors import UserError
from softtok.report.collect import collect
from softtok.report.page import notes
from softtok.report.study import Row, Study
from softtok.report.tables import LEAST_VOTERS, make_tables, to_csv
from softtok.storage.files import write_json
from tests.support.report_specs import study_of
from tests.support.synthetic_runs import INFERENCE_MODES, MADE_ON, write_study


def test_noise_of_problems_is_half_an_interval_of_the_median_run(tmp_path: Path) -> None:
    spec = write_study(
        tmp_path, modes=("hard",), seeds=2, test_sets=("sums",), choice_sets=(), problems=100, steps=1,
        inference_modes={"hard-greedy": INFERENCE_MODES["hard-greedy"]},
    )  # fmt: skip
    for run, solved in zip(spec["runs"], (50, 2, 20), strict=True):
        path = tmp_path / run["path"] / "eval/sums/six-89ab4567.parquet"
        pd.read_parquet(path).assign(correct=np.arange(100) < solved).to_parquet(path)
    points = 196 * np.sqrt(0.2 * 0.8 / 100)  # of 20 in 100 problems, in the normal approximation
    assert collect(study_of(spec), tmp_path).problem_noise == {"sums": pytest.approx(points, rel=0.05)}


def test_a_studys_own_k_come_beside_the_first_and_the_last(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=(), test_sets=("sums",), choice_sets=(), problems=4)
    metrics = collect(study_of(spec | {"k": [4, 64]}), tmp_path).metrics
    curves = metrics[metrics["metric"] == "pass@k"].groupby("inference_mode")["k"].apply(set)
    assert curves["hard-sample"] == {1, 4, 32}, "64 is more than there are samples"
    assert curves["hard-greedy"] == {1}


def test_a_loss_that_is_no_number_is_no_small_loss(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=(), test_sets=(), choice_sets=("order",), problems=4)
    path = next(tmp_path.rglob("order-*.parquet"))
    table = pq.read_table(path)
    losses = [*table["nll"].to_pylist()[1:], float("nan")]
    pq.write_table(table.set_column(table.column_names.index("nll"), "nll", pa.array(losses)), path)
    metrics = collect(study_of(spec), tmp_path).metrics.set_index("metric")["value"]
    assert np.isnan(metrics["nll_per_token"]) and metrics["accuracy"] >= 0


def test_test_problems_that_were_trained_on_are_told_of(tmp_path: Path) -> None:
    """`exclude:` keeps out what it names when a train set is made; a test set that comes later may hold anything."""
    spec = write_study(tmp_path, modes=("hard",), seeds=1, test_sets=("sums", "long-sums"), choice_sets=(), problems=4)
    assert collect(study_of(spec), tmp_path).overlaps == []
    spec["data"] = {"train": {"sums": "train.parquet"}, "test": {"sums": "sums.parquet", "long-sums": "long.parquet"}}
    asked = {"train": ["1 + 1?", "2 + 2?", "2 + 3?"], "sums": ["3 + 3?"], "long": ["2 +  2?", "5?", "1 + 1?"]}
    for name, questions in asked.items():
        pd.DataFrame({"question": questions}).to_parquet(tmp_path / f"{name}.parquet")
    results = collect(study_of(spec), tmp_path)
    assert results.overlaps == [("long-sums", "sums", 2, 3)]
    (warning,) = (text for kind, text in notes(results) if kind == "warning")
    assert "2 of 3 of long-sums in sums" in warning
    (tmp_path / "long.parquet").unlink()
    with pytest.raises(UserError, match=r"long\.parquet"):
        collect(study_of(spec), tmp_path)
    assert collect(study_of(spec), tmp_path, []).overlaps == [], "tables before all has finished go without"


@pytest.mark.parametrize(("flagged", "told"), [(1, False), (2, True)])
def test_a_set_with_more_than_a_twentieth_flagged_is_told_of(tmp_path: Path, flagged: int, told: bool) -> None:
    spec = write_study(tmp_path, modes=("hard",), seeds=1, test_sets=("sums",), choice_sets=(), problems=4)
    spec["data"] = {"train": {"sums": "train.parquet"}, "test": {"sums": "test.parquet"}}
    for name in ("train", "test"):
        pd.DataFrame({"question": [f"{name}?"]}).to_parquet(tmp_path / f"{name}.parquet")
    manifest = {"rows": 20, "flagged": [{}] * flagged, "reasons": {"dropped": {}, "flagged": {"units": flagged}}}
    write_json(tmp_path / "test.json", manifest)
    results = collect(study_of(spec), tmp_path)
    assert results.flagged == ({"test set sums": "2 of 20 problems (units 2)"} if told else {})
    assert any("test set sums: 2 of 20 problems (units 2)" in text for _, text in notes(results)) == told
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(UserError, match=r"test\.json (is damaged|cannot be read)"):
        collect(study_of(spec), tmp_path)


def test_results_made_on_several_devices_are_told_of(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=("hard",), seeds=1, test_sets=("sums",), choice_sets=("order",), problems=4)
    assert collect(study_of(spec), tmp_path).made_on == {MADE_ON: 4}
    assert not any("devices" in text for _, text in notes(collect(study_of(spec), tmp_path)))
    files = sorted(tmp_path.rglob("*.parquet"))
    assert len(files) == 4
    for place, path in enumerate(files):
        table = pd.read_parquet(path)
        table.assign(made_on=["one"] + ["other" if place == 3 else "one"] * (len(table) - 1)).to_parquet(path)
    results = collect(study_of(spec), tmp_path)
    assert results.made_on == {"one": 4, "other": 1}
    (warning,) = (text for kind, text in notes(results) if kind == "warning")
    assert "different devices or in different precisions (one: 4; other: 1 files)" in warning


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
    return study_of(spec), collect(study_of(spec), root).metrics


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


def test_answers_of_training_without_a_verdict_are_told_of(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=("hard",), seeds=1, test_sets=(), choice_sets=("order",), problems=4, steps=4)
    assert not any("gave up" in text for _, text in notes(collect(study_of(spec), tmp_path)))
    (path,) = (path for path in tmp_path.rglob("metrics.jsonl") if "/hard/" in str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2] |= {"unjudged": 100.0, "reward": None}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (warning,) = (text for _, text in notes(collect(study_of(spec), tmp_path)) if "gave up" in text)
    assert warning.startswith("The reward gave up on 25 % of the answers in training (timeout or error)")
    assert "up to 1e+02 %" not in warning and "up to 100 % in a step" in warning


def test_how_often_the_two_rewards_differ_is_told(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=(), test_sets=("sums", "long-sums"), choice_sets=(), problems=4)
    assert not any("math-strict" in text for _, text in notes(collect(study_of(spec), tmp_path)))
    (path,) = (path for path in tmp_path.rglob("*.parquet") if "/sums/" in str(path))
    table = pd.read_parquet(path)
    table["correct"] = table.index % 2 == 0
    table.loc[:4, "other_status"] = ["wrong", "correct", "unparsed", "", "timeout"]
    table.loc[5, ["status", "other_status"]] = ["timeout", "correct"]
    table.to_parquet(path)
    (note,) = (
        text for kind, text in notes(collect(study_of(spec), tmp_path)) if kind == "note" and "math-strict" in text
    )
    counts = f"sums: 3 of {len(table)} answers (2 accepted by the set's reward alone, 1 by the other alone)"
    assert counts in note and "long-sums" not in note


def test_the_answers_of_a_mode_of_two_inference_sets_count_once(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=("hard",), seeds=1, test_sets=("sums",), choice_sets=(), problems=4)
    files = list(tmp_path.rglob("six-89ab4567.parquet"))
    for path in files:
        rows = pd.read_parquet(path)
        rows.loc[rows["inference_mode"] == "hard-sample", "other_status"] = "correct"
        rows.loc[rows["inference_mode"] == "hard-greedy", "status"] = "timeout"
        rows.to_parquet(path)
    once = collect(study_of(spec), tmp_path)
    assert once.answers == sum(map(len, map(pd.read_parquet, files))) and once.unjudged == 2 * 4
    spec["inference_sets"] = {"six": list(INFERENCE_MODES), "hard": ["hard-greedy", "hard-sample"]}
    spec["tests"]["sums"]["hard"] = "01234567"
    for path in files:
        rows = pd.read_parquet(path)
        rows[rows["inference_mode"].isin(spec["inference_sets"]["hard"])].to_parquet(
            path.with_name("hard-01234567.parquet")
        )
        profile = pd.read_csv(path.with_suffix(".entropy.csv"))
        profile.to_csv(path.with_name("hard-01234567.entropy.csv"), index=False)
    twice = collect(study_of(spec), tmp_path)
    assert (twice.answers, twice.unjudged) == (once.answers, once.unjudged)
    assert twice.disagreements == once.disagreements
