"""Differences of a table's rows to `hard` and to the untouched base, paired by seed, and the best of its rows.

A difference is one number a seed: ours minus that of the same seed after hard training, or minus the one checkpoint
that is the base. Its interval is Student's t over seeds. Where problems are counted, the deviation over seeds is at
least one problem, as in the claims: seeds often agree by chance. Means over samples, such as pass@1 of several, are no
counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from softtok.report.metrics import Summary, t_interval_of
from softtok.report.significance import spread
from softtok.report.study import Row, Study
from softtok.report.tables import Cell, Column, Table

OTHERS = ("hard", "base")
COUNTED = ("pass@k", "majority@k", "accuracy")  # in percent of problems
Seeds = Mapping[int, float]  # seed -> value
Key = tuple[Row, str, str, str, int]  # row, test set, inference mode, metric, k


def with_differences(tables: Mapping[str, Table], study: Study, metrics: pd.DataFrame) -> dict[str, Table]:
    """Returns the tables with the value of each seed, and with the differences to `OTHERS`."""
    values, problems = seed_values(metrics), problem_counts(metrics)
    return {name: _with_differences(table, study, values, problems) for name, table in tables.items()}


def _with_differences(table: Table, study: Study, values: Mapping[Key, Seeds], problems: Mapping[str, int]) -> Table:
    seeds = {
        (row, column): values[key]
        for row in table.rows
        for column in table.columns
        if (key := key_of(row, column)) in values
    }
    differences: dict[str, dict[Cell, Summary]] = {}
    for other in OTHERS:
        for row, column in seeds:
            against = reference(study, row, other)
            theirs = values.get(key_of(against, column)) if against else None
            step = step_of(study, column, problems)
            if theirs and (found := difference(seeds[row, column], theirs, other == "base", step)):
                differences.setdefault(other, {})[row, column] = found
    return replace(table, seeds=seeds, differences=differences)


def key_of(row: Row, column: Column) -> Key:
    return row, column.test_set, column.inference_mode, column.metric, column.k


def step_of(study: Study, column: Column, problems: Mapping[str, int]) -> float:
    """Returns one problem in percent, if a column counts problems, else 0: for nats, and for means over samples."""
    if column.metric not in COUNTED or column.test_set not in problems:
        return 0.0
    averaged = column.metric == "pass@k" and not study.counts(column.inference_mode, column.test_set, column.k)
    return 0.0 if averaged else 100 / problems[column.test_set]


def reference(study: Study, row: Row, other: str) -> Row | None:
    """Returns the row that `row` is compared with: its model's base, or hard training on the same train set."""
    if row.training_mode == "base":
        return None
    names = study.paper.get("training_modes", {})
    hard = [mode for mode in study.spec.order["training_modes"] if names.get(mode, mode) == "hard"]
    if other == "base":
        return Row(row.model, "none", "base")
    return Row(row.model, row.train_set, hard[0]) if len(hard) == 1 and hard[0] != row.training_mode else None


def difference(ours: Seeds, theirs: Seeds, one_checkpoint: bool, step: float = 0.0) -> Summary | None:
    """Returns ours - theirs over the seeds that both have; None if there is no such seed.

    With `one_checkpoint`, theirs is a single one, which every seed is compared with. `step` is the least deviation.
    """
    if one_checkpoint:
        (single,) = theirs.values()
        apart = [value - single for value in ours.values()]
    else:
        apart = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not apart:
        return None
    effects = [round(value, 9) for value in apart]
    mean, n = float(np.mean(effects)), len(effects)
    if n == 1:
        return Summary(1, mean, None, None, None)
    std = spread(effects, step)
    return Summary(n, mean, std, *t_interval_of(mean, std, n))


def seed_values(metrics: pd.DataFrame) -> dict[Key, dict[int, float]]:
    """Returns the value of each seed of each cell of tidy metrics, entropy profiles left out."""
    found: dict[Key, dict[int, float]] = {}
    used = metrics[metrics["metric"] != "entropy"]
    used = used.assign(k=used["k"].fillna(0).astype(int), inference_mode=used["inference_mode"].fillna(""))
    names = ["model", "train_set", "training_mode", "test_set", "inference_mode", "metric", "k", "seed", "value"]
    for *row, test_set, mode, metric, k, seed, value in used[names].itertuples(index=False, name=None):
        found.setdefault((Row(*row), test_set, mode, metric, int(k)), {})[int(seed)] = float(value)
    return found


def problem_counts(metrics: pd.DataFrame) -> dict[str, int]:
    """Returns how many problems each test or choice set has."""
    counts = metrics.drop_duplicates("test_set").set_index("test_set")["n_problems"]
    return {str(name): int(count) for name, count in counts.items()}
