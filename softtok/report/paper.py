"""Compares a study's numbers with those that the paper prints.

`paper.csv` holds every cell of the paper's Tables 1 to 8. A study's cell is matched to it by the names that its entries
have under `paper:`. Entries without such a name, and so all of a new study, are not compared. An ablation's training
mode is named by mode and variant, as in `fuzzy noise_scale=0.1`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple, TypeVar

from softtok.config.paper_results import printed_lines
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
"""Rows of the ablation tables that repeat the main runs, under the name of the setting that is varied there."""
CSV_COLUMNS = (
    *"paper_table paper_mean paper_std paper_n paper_low paper_high".split(),
    *"difference outside paper_elsewhere".split(),
)
SEEDS, ABLATION_SEEDS = 3, 2
OUTSIDE_MARK = "‡"  # marks a difference from the paper that the two intervals do not explain
RULE = (
    f"{OUTSIDE_MARK}: each mean lies outside the other's 95 % interval. Ours is the t interval over seeds; the paper's "
    "is mean ± t · std / √n with its n = 3 seeds (ablations 2), widened by half of the last digit that it prints for "
    "mean and std. Where one of the two has no spread, nothing is marked."
)


class Key(NamedTuple):
    """What a printed number measures, in the paper's words.

    The train set of a base model and the inference mode of a choice set are empty.
    """

    model: str
    train_set: str
    training_mode: str
    test_set: str
    inference_mode: str
    metric: str


@dataclass(frozen=True)
class Printed:
    """One cell of one of the paper's tables, as it is printed; `std` is empty if none is printed."""

    table: int
    mean: str
    std: str
    n: int

    @property
    def text(self) -> str:
        """Mean and standard deviation, as printed."""
        return f"{self.mean} ± {self.std}" if self.std else self.mean

    @property
    def digits(self) -> int:
        """The number of decimals of the mean."""
        return -int(Decimal(self.mean).as_tuple().exponent)

    @property
    def mean_range(self) -> tuple[float, float]:
        """The range of values that round to the printed mean."""
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
    """A study's cell beside the paper's; `elsewhere` holds the same cell in other tables of the paper."""

    printed: Printed
    elsewhere: tuple[Printed, ...]
    difference: float  # ours - the paper's
    outside: bool | None  # see `RULE`; None where one of the two has no spread

    def difference_text(self, digits: int) -> str:
        """Formats the difference with its sign, and a mark if it is outside.

        It has `digits` decimals, but not more than the paper prints.
        """
        text = f"{round(self.difference, 6):+z.{min(digits, self.printed.digits)}f}".replace("-", "−")
        return f"{text} {OUTSIDE_MARK}" if self.outside else text


@functools.cache
def printed_cells() -> Mapping[Key, Mapping[int, Printed]]:
    """Returns all printed cells: what is measured -> table -> cell.

    The paper prints some cells in several tables, which may differ in the last digit.
    """
    found: dict[Key, dict[int, Printed]] = {}
    for line in printed_lines():
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


def key_of(names: Names, own: Key) -> Key | None:
    """Returns the paper's words for a cell in a study's own words; None if an entry has no `paper:` name."""
    choice = own.metric in CHOICE_METRICS
    try:
        return Key(
            names["models"][own.model],
            "" if own.train_set == "none" else names["train_sets"][own.train_set],
            "base" if own.training_mode == "base" else _once(names["training_modes"][own.training_mode]),
            names["choice_sets" if choice else "test_sets"][own.test_set],
            "" if choice else names["inference_modes"][own.inference_mode],
            own.metric,
        )
    except KeyError:
        return None


def compare(cell: Summary, printed: Printed, elsewhere: tuple[Printed, ...] = ()) -> Comparison:
    """Compares one cell with the paper's; `outside` follows `RULE`."""
    outside = None
    if printed.interval and cell.low is not None and cell.high is not None:
        (low, high), (least, most) = printed.interval, printed.mean_range
        outside = not low <= cell.mean <= high and (most < cell.low or least > cell.high)
    return Comparison(printed, elsewhere, cell.mean - float(printed.mean), outside)


def join(keys: Mapping[Place, Key | None], cells: Mapping[Place, Summary]) -> dict[Place, Comparison]:
    """Returns the comparisons for one table of a study: `keys` are all its places, `cells` those that have a value.

    Each place takes the paper's cell from the table that has most of `keys` (the first of equals). So a study in the
    shape of Table 7 is compared with Table 7, even if Table 3 prints the same cell.
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
    """Returns what a table's caption says about its comparisons; empty if there are none."""
    if not joined:
        return ""
    tables = Counter(cell.printed.table for cell in joined)
    listed = ", ".join(f"Table {number} ({count} cells)" for number, count in sorted(tables.items()))
    return f"Below a row: what the paper prints there, from its {listed}, and our difference from it. {RULE}"


def csv_values(cell: Comparison | None) -> list[str | float | None]:
    """Returns `CSV_COLUMNS` of one cell; printed numbers stay as they are printed."""
    if cell is None:
        return [None] * len(CSV_COLUMNS)
    printed = cell.printed
    outside = None if cell.outside is None else int(cell.outside)
    elsewhere = "; ".join(f"Table {other.table}: {other.text}" for other in cell.elsewhere)
    numbers = [printed.n, *(printed.interval or (None, None)), cell.difference, outside]
    return [printed.table, printed.mean, printed.std, *numbers, elsewhere]
