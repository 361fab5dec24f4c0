"""The numbers that the paper prints, beside a study's own.

`paper.csv` holds every cell of the paper's Tables 1 to 8. A study's cell is joined to it through the names that its
entries carry under `paper:`; entries without one (and so every study of one's own) are compared with nothing. An
ablation's training mode is named by mode and variant, as in `fuzzy noise_scale=0.1`.
"""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from softtok.report.metrics import Summary, t_interval_of

Names = Mapping[str, Mapping[str, str]]  # section of config.yaml -> an entry's name -> its name in the paper
Place = TypeVar("Place", bound=Hashable)

CHOICE_METRICS = ("accuracy", "nll_per_token")
REPRINTED = {
    "fuzzy noise_scale=0.33": "fuzzy",
    "fuzzy noise_at=embedding;temperature=1e-4": "fuzzy",
    "fuzzy temperature=0.0001": "fuzzy",
    "soft noise_at=embedding;temperature=0.5": "soft",
}
"""Rows of the ablation tables that print the main runs again, under the name of the setting that is varied there."""
CSV_COLUMNS = (
    "paper_table", "paper_mean", "paper_std", "paper_n", "paper_low", "paper_high", "difference", "outside",
    "paper_elsewhere",
)  # fmt: skip
SEEDS, ABLATION_SEEDS = 3, 2
OUTSIDE_MARK = "‡"  # beside a difference from the paper that the two intervals do not explain
RULE = (
    f"{OUTSIDE_MARK}: each mean lies outside the other's 95 % interval. Ours is the t interval over seeds; the paper's "
    "is mean ± t · std / √n with its n = 3 seeds (ablations 2), widened by half of the last digit that it prints for "
    "mean and std. Where one of the two has no spread, nothing is marked."
)


class Key(NamedTuple):
    """What a printed number measures, in the paper's words; a base model has no train set, a choice set no inference
    mode."""

    model: str
    train_set: str
    training_mode: str
    test_set: str
    inference_mode: str
    metric: str


@dataclass(frozen=True)
class Printed:
    """One cell of one of the paper's tables, as it is printed; `std` is empty where none is."""

    table: int
    mean: str
    std: str
    n: int

    @property
    def text(self) -> str:
        return f"{self.mean} ± {self.std}" if self.std else self.mean

    @property
    def digits(self) -> int:
        """Decimals of the mean."""
        return -int(Decimal(self.mean).as_tuple().exponent)

    @property
    def mean_range(self) -> tuple[float, float]:
        """What rounds to the printed mean."""
        half = 0.5 * 10.0**-self.digits
        return float(self.mean) - half, float(self.mean) + half

    @property
    def interval(self) -> tuple[float, float] | None:
        """The widest 95 % t interval that the printed digits allow; None for a single checkpoint."""
        if not self.std:
            return None
        std = float(self.std) + 0.5 * 10.0 ** int(Decimal(self.std).as_tuple().exponent)
        half = t_interval_of(0.0, std, self.n)[1]
        return self.mean_range[0] - half, self.mean_range[1] + half


@dataclass(frozen=True)
class Comparison:
    """A study's cell beside the paper's. `elsewhere`: the same cell in other tables of the paper."""

    printed: Printed
    elsewhere: tuple[Printed, ...]
    difference: float  # ours - the paper's
    outside: bool | None  # see `RULE`; None where one of the two has no spread

    def difference_text(self, digits: int) -> str:
        """The difference with its sign, in `digits` decimals but no more than the paper prints; marked if outside."""
        text = f"{round(self.difference, 6):+z.{min(digits, self.printed.digits)}f}".replace("-", "−")
        return f"{text} {OUTSIDE_MARK}" if self.outside else text


@functools.cache
def printed_cells() -> Mapping[Key, Mapping[int, Printed]]:
    """All printed cells: what is measured -> table -> the cell. The paper prints some cells in several tables, which
    may differ in the last digit."""
    found: dict[Key, dict[int, Printed]] = {}
    with open(Path(__file__).with_name("paper.csv"), encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            mode = _once(" ".join(filter(None, (line["training_mode"], line["variant"]))))
            inference_mode = "" if line["metric"] in CHOICE_METRICS else line["inference_mode"]
            key = Key(line["model"], line["train_set"], mode, line["test_set"], inference_mode, line["metric"])
            n = 1 if not line["std"] else ABLATION_SEEDS if " " in mode else SEEDS
            cell = Printed(int(line["table"]), line["mean"], line["std"], n)
            if found.setdefault(key, {}).setdefault(cell.table, cell) is not cell:
                raise ValueError(f"paper.csv: table {cell.table} has {key} twice")
    return found


def _once(training_mode: str) -> str:
    return REPRINTED.get(training_mode, training_mode)


def key_of(
    names: Names, model: str, train_set: str, training_mode: str, test_set: str, inference_mode: str, metric: str
) -> Key | None:
    """The paper's words for a cell of a study, whose own names these are; None if an entry has no `paper:` name."""
    tested = names.get("choice_sets" if metric in CHOICE_METRICS else "test_sets", {})
    try:
        return Key(
            names["models"][model],
            "" if train_set == "none" else names["train_sets"][train_set],
            "base" if training_mode == "base" else _once(names["training_modes"][training_mode]),
            tested[test_set],
            "" if metric in CHOICE_METRICS else names["inference_modes"][inference_mode],
            metric,
        )
    except KeyError:
        return None


def compare(cell: Summary, printed: Printed, elsewhere: tuple[Printed, ...] = ()) -> Comparison:
    """One cell beside the paper's; `outside` follows `RULE`."""
    outside = None
    if printed.interval and cell.low is not None and cell.high is not None:
        (low, high), (least, most) = printed.interval, printed.mean_range
        outside = not low <= cell.mean <= high and (most < cell.low or least > cell.high)
    return Comparison(printed, elsewhere, cell.mean - float(printed.mean), outside)


def join(keys: Mapping[Place, Key | None], cells: Mapping[Place, Summary]) -> dict[Place, Comparison]:
    """Comparisons for one table of a study: `keys` are all its places, `cells` those that have a value.

    Each place takes the paper's cell from the table that has most of `keys` (of equal ones the first); so a study in
    the shape of Table 7 meets Table 7, also where Table 3 prints the same cell.
    """
    known = printed_cells()
    found = {place: known[key] for place, key in keys.items() if key and key in known}
    shared = Counter(table for tables in found.values() for table in tables)
    order = sorted(shared, key=lambda table: (-shared[table], table))
    joined = {}
    for place, tables in found.items():
        if place in cells:
            first = next(table for table in order if table in tables)
            others = tuple(tables[table] for table in sorted(tables) if table != first)
            joined[place] = compare(cells[place], tables[first], others)
    return joined


def caption_of(joined: Collection[Comparison]) -> str:
    """What a table's caption says of its comparisons; empty if there are none."""
    if not joined:
        return ""
    tables = Counter(cell.printed.table for cell in joined)
    listed = ", ".join(f"Table {number} ({count} cells)" for number, count in sorted(tables.items()))
    return f"Below a row: what the paper prints there, from its {listed}, and our difference from it. {RULE}"


def csv_values(cell: Comparison | None) -> list[Any]:
    """`CSV_COLUMNS` of one cell; printed numbers as they are printed."""
    if cell is None:
        return [""] * len(CSV_COLUMNS)
    printed = cell.printed
    low, high = (f"{bound:.6f}" for bound in printed.interval) if printed.interval else ("", "")
    outside = "" if cell.outside is None else int(cell.outside)
    elsewhere = "; ".join(f"Table {other.table}: {other.text}" for other in cell.elsewhere)
    return [
        printed.table, printed.mean, printed.std, printed.n, low, high, f"{cell.difference:.6f}", outside, elsewhere,
    ]  # fmt: skip
