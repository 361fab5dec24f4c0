"""How CoTs and answers end: lengths, and the shares of samples that are unboxed, cut off, refused or timed out."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from softtok.report.study import Study

UNIT = (
    "CoT tokens at test time, and percent of samples: unboxed (no closed box, or no answer), cut off (the CoT reached "
    "its longest length), refused (the answer is too large to evaluate), timed out (the reward did not end)."
)
NONE = "Not shown, as it did not occur: {}."
SHARES = {"unboxed": "unboxed", "cut_off": "cut off", "refused": "refused", "timed_out": "timed out"}
"""Metrics and their names in a table."""


def shares(table: pa.Table) -> dict[str, dict[str, float]]:
    """Returns the `SHARES` of an evaluation's samples in percent, by inference mode."""
    marks = {
        "unboxed": pc.invert(table["boxed"]),
        "cut_off": pc.equal(table["stop"], "cap"),
        "refused": pc.equal(table["status"], "refused"),
        "timed_out": pc.equal(table["status"], "timeout"),
    }
    columns = pa.table(
        {"mode": table["inference_mode"]} | {name: mark.cast(pa.float64()) for name, mark in marks.items()}
    )
    found = columns.group_by("mode").aggregate([(name, "mean") for name in marks]).to_pylist()
    return {line["mode"]: {name: 100 * line[f"{name}_mean"] for name in SHARES} for line in found}


def answer_columns(
    study: Study, metrics: pd.DataFrame, test_set: str
) -> tuple[str, list[tuple[str, str, str, str, str]]]:
    """Returns the unit and the columns (as `tables.Column`) of the table of one test set.

    Shares that are 0 everywhere have no columns.
    """
    most = metrics[metrics["test_set"] == test_set].groupby("metric", sort=False)["value"].max()
    absent = [label for metric, label in SHARES.items() if metric in most and most[metric] == 0]
    told = {"cot_tokens": "CoT tokens"} | {metric: label for metric, label in SHARES.items() if label not in absent}
    modes = [mode for mode in study.inference_modes if study.plans(test_set, mode)]
    columns = [
        (label, mode, test_set, mode, metric) for metric, label in told.items() if metric in most for mode in modes
    ]
    return f"{UNIT} {NONE.format(', '.join(absent))}" if absent else UNIT, columns
