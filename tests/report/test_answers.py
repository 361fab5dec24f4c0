"""How CoTs and answers end: shares by hand, and the table that shows what occurred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from softtok.report.collect import collect
from softtok.report.tables import make_tables
from tests.support.report_specs import study_of
from tests.support.synthetic_runs import INFERENCE_MODES, write_study

MODES = {name: INFERENCE_MODES[name] for name in ("hard-greedy", "soft-sample")}


def written(tmp_path: Path, **changes: dict[str, list[Any]]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Returns the metrics of one base run whose first samples in a mode are changed: column, then values."""
    spec = write_study(tmp_path, modes=(), test_sets=("sums",), choice_sets=(), problems=10, inference_modes=MODES)
    (path,) = tmp_path.rglob("six-89ab4567.parquet")
    rows = pd.read_parquet(path).to_dict("list")
    for mode, columns in changes.items():
        first = rows["inference_mode"].index(mode.replace("_", "-"))
        for column, values in columns.items():
            rows[column][first : first + len(values)] = values
    pd.DataFrame(rows).to_parquet(path)
    return collect(study_of(spec), tmp_path).metrics, spec


def test_shares_are_of_all_samples_of_a_mode(tmp_path: Path) -> None:
    metrics, spec = written(
        tmp_path,
        hard_greedy={"boxed": [False, False, True], "stop": ["cap", "eos", "cap"], "status": ["unboxed", "refused"]},
        soft_sample={"stop": ["cap"] * 32, "status": ["timeout", "error", "timeout"]},
    )
    shares = metrics.set_index(["inference_mode", "metric"])["value"]
    hard, soft = shares["hard-greedy"], shares["soft-sample"]
    assert (hard.unboxed, hard.cut_off, hard.refused, hard.timed_out) == pytest.approx((20, 20, 10, 0))
    assert (soft.unboxed, soft.cut_off, soft.refused, soft.timed_out) == pytest.approx((0, 10, 0, 100 * 2 / 320))
    table = make_tables(study_of(spec), metrics)["answers-sums"]
    assert table.groups() == [(name, 2) for name in ("CoT tokens", "unboxed", "cut off", "refused", "timed out")]
    cell = table.cells[table.rows[0], next(c for c in table.columns if c.metric == "cut_off")]
    assert cell.mean == pytest.approx(20)
    assert "did not occur" not in table.caption


def test_what_did_not_occur_has_no_columns_and_is_named(tmp_path: Path) -> None:
    metrics, spec = written(tmp_path, soft_sample={"boxed": [False]})
    table = make_tables(study_of(spec), metrics)["answers-sums"]
    assert [group for group, _ in table.groups()] == ["CoT tokens", "unboxed"]
    assert "Not shown, as it did not occur: cut off, refused, timed out." in table.caption
