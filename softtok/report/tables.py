"""Tables over seeds from tidy metrics, as markdown, csv and LaTeX (booktabs).

A `Table` has rows (model, train set, training mode) and columns (what is measured, on what); every cell is a `Summary`
over seeds. Markdown and LaTeX show it rounded; the csv has one line per cell, with 6 decimals, n and the t interval. If
the paper prints a cell too, its value and the difference are shown below the row, and in extra columns of the csv.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import pandas as pd

from softtok.report.metrics import Summary, summarise
from softtok.report.palette import DIVERGED_MARK
from softtok.report.paper import CSV_COLUMNS as PAPER_COLUMNS
from softtok.report.paper import OUTSIDE_MARK, Comparison, Key, caption_of, csv_values, join, key_of
from softtok.report.study import Row, Study
from softtok.storage.files import csv_text

NO_VALUE = "–"
CSV_COLUMNS = tuple("model train_set training_mode test_set inference_mode metric n mean std low high diverged".split())
LEAST_VOTERS = 8  # with fewer samples per problem, a majority vote is not worth a table


class Column(NamedTuple):
    """One measured quantity; `k` is 0 if the metric has none, `digits` is the number of decimals shown."""

    group: str
    label: str
    test_set: str
    inference_mode: str
    metric: str
    k: int = 0
    digits: int = 1

    @property
    def metric_name(self) -> str:
        """The metric's name with its k, such as pass@32."""
        return self.metric.replace("@k", f"@{self.k}")


@dataclass(frozen=True)
class Table:
    """A table as data; `to_markdown`, `to_csv` and `to_latex` write it."""

    name: str
    title: str
    caption: str
    labels: tuple[str, ...]  # the fields of Row that are shown; the caption says what is the same in all rows
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    cells: Mapping[tuple[Row, Column], Summary]
    diverged: Mapping[Row, int]  # diverged runs among the row's seeds
    paper: Mapping[tuple[Row, Column], Comparison] = field(default_factory=dict)

    def groups(self) -> list[tuple[str, int]]:
        """Returns the upper header line: (group, number of columns that it spans)."""
        return [(group, len(list(columns))) for group, columns in groupby(self.columns, lambda column: column.group)]

    def row_labels(self, row: Row) -> list[str]:
        """Returns the names shown at the left of a row."""
        labels = [getattr(row, label) for label in self.labels]
        return [NO_VALUE if label == "none" else label for label in labels]

    def marked_labels(self, row: Row) -> list[str]:
        """Returns the names shown at the left of a row; the last one is marked if a run of the row diverged."""
        *first, last = self.row_labels(row)
        return [*first, f"{last} {DIVERGED_MARK}" if self.diverged.get(row) else last]

    def n_text(self, row: Row) -> str:
        """Returns the number of seeds behind a row, as a range if its cells differ."""
        counts = {self.cells[row, column].n for column in self.columns if (row, column) in self.cells}
        return "–".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "0"

    def texts(self, row: Row) -> list[tuple[str, str]]:
        """Returns (mean, standard deviation) of each cell as shown; the second is empty for one seed."""
        return [cell_text(self.cells.get((row, column)), column.digits) for column in self.columns]

    def paper_lines(self, row: Row) -> list[tuple[str, list[str]]]:
        """Returns the lines below a row that the paper has too: its values, then our differences.

        A line is (label, one text per column).
        """
        found = [self.paper.get((row, column)) for column in self.columns]
        if not any(found):
            return []
        numbers = sorted({cell.printed.table for cell in found if cell})
        label = f"paper, {'Table' if len(numbers) == 1 else 'Tables'} {', '.join(map(str, numbers))}"
        differences = [
            cell.difference_text(column.digits) if cell else NO_VALUE
            for cell, column in zip(found, self.columns, strict=True)
        ]
        return [
            (label, [cell.printed.text if cell else NO_VALUE for cell in found]),
            ("difference", differences),
        ]


def cell_text(cell: Summary | None, digits: int) -> tuple[str, str]:
    """Returns (mean, standard deviation) of a cell as shown; the second is empty for one seed."""
    if cell is None:
        return NO_VALUE, ""
    mean, std = (None if value is None else round(value, 6) for value in (cell.mean, cell.std))  # as in the csv
    return f"{mean:.{digits}f}", "" if std is None else f"{std:.{digits}f}"


def make_tables(study: Study, metrics: pd.DataFrame, diverged: Sequence[Row] = ()) -> dict[str, Table]:
    """Returns all tables that the study has numbers for, by name.

    `metrics` is tidy (`collect.METRIC_COLUMNS`); `diverged` holds the row of each diverged run.
    """
    measured = metrics[metrics["metric"] != "entropy"]
    summaries = {
        key: summarise(group.to_numpy())
        for key, group in measured.assign(k=measured["k"].fillna(0).astype(int)).groupby(
            ["model", "train_set", "training_mode", "test_set", "inference_mode", "metric", "k"], sort=False
        )["value"]
    }
    losses = {row: diverged.count(row) for row in study.rows}
    constant = [
        f"{what} {values.pop()}"
        for what, values in (
            ("model", {row.model for row in study.rows}),
            ("trained on", {row.train_set for row in study.rows} - {"none"}),
        )
        if len(values) == 1
    ]
    several_models = len({row.model for row in study.rows}) > 1
    several_sets = len({row.train_set for row in study.rows} - {"none"}) > 1
    labels = (*["model"] * several_models, *["train_set"] * several_sets, "training_mode")

    def table(name: str, title: str, unit: str, columns: list[Column]) -> Table:
        cells = {
            (row, column): summaries[key]
            for row in study.rows
            for column in columns
            if (key := (*row, column.test_set, column.inference_mode, column.metric, column.k)) in summaries
        }
        keys = {
            (row, column): key_of(study.paper, Key(*row, column.test_set, column.inference_mode, column.metric_name))
            for row in study.rows
            for column in columns
        }
        joined = join(keys, cells)
        caption = " ".join(
            [
                unit,
                f"{', '.join(constant).capitalize()}." if constant else "",
                _problems_phrase(metrics, dict.fromkeys(column.test_set for column in columns)),
                _seeds_phrase(cells.values()),
                f"{DIVERGED_MARK} includes a diverged run." if any(losses.values()) else "",
                caption_of(joined.values()),
            ]
        )
        return Table(name, title, " ".join(caption.split()), labels, tuple(columns), study.rows, cells, losses, joined)

    made = []
    if columns := list(_hard_columns(study)):
        title = "Hard inference: every model thinks in ordinary tokens"
        made.append(table("hard-inference", title, "Percent.", columns))
    for test_set in study.test_sets:
        title, columns = f"All inference modes on {test_set}", list(_mode_columns(study, test_set))
        made.append(table(f"inference-modes-{test_set}", title, "pass@k in percent.", columns))
    if study.choice_sets:
        unit = (
            "Accuracy in percent; NLL in nats per token of the right answer behind the bare question, lower is better."
        )
        made.append(table("out-of-domain", "Out of domain", unit, list(_choice_columns(study))))
    if columns := list(_majority_columns(study)):
        unit = (
            "Percent of problems that a plurality vote over the boxed answers of all samples answers right; ties are "
            "taken in expectation, samples without a box abstain."
        )
        made.append(table("majority-voting", "Majority voting", unit, columns))
    return {table.name: table for table in made}


def _mode_columns(study: Study, test_set: str) -> Iterator[Column]:
    for mode in (mode for mode in study.inference_modes if study.plans(test_set, mode)):
        for k in sorted({1, study.samples(mode, test_set)}):
            yield Column(mode, f"pass@{k}", test_set, mode, "pass@k", k)


def _hard_columns(study: Study) -> Iterator[Column]:
    hard = study.hard_family()
    for test_set in study.test_sets:
        for mode in (mode for mode in hard if mode and study.plans(test_set, mode)):
            for k in sorted({1, study.samples(mode, test_set)}):
                yield Column(test_set, f"{mode} pass@{k}", test_set, mode, "pass@k", k)


def _majority_columns(study: Study) -> Iterator[Column]:
    for test_set in study.test_sets:
        for mode in study.inference_modes:
            if (k := study.samples(mode, test_set)) >= LEAST_VOTERS and study.plans(test_set, mode):
                yield Column(test_set, f"{mode} majority@{k}", test_set, mode, "majority@k", k)


def _choice_columns(study: Study) -> Iterator[Column]:
    for choice_set in study.choice_sets:
        yield Column(choice_set, "accuracy", choice_set, "", "accuracy")
        yield Column(choice_set, "NLL per token", choice_set, "", "nll_per_token", digits=3)


def _problems_phrase(metrics: pd.DataFrame, test_sets: Collection[str]) -> str:
    counts = metrics.drop_duplicates("test_set").set_index("test_set")["n_problems"]
    listed = ", ".join(f"{name} {counts[name]:,}" for name in test_sets if name in counts)
    return f"Problems: {listed}." if listed else ""


def _seeds_phrase(cells: Collection[Summary]) -> str:
    if not cells:
        return "No cell has a value."
    if all(cell.n == 1 for cell in cells):
        return "One run each (n = 1), so no spread is known."
    single = " A row with n = 1 is a single checkpoint and has no deviation." * any(cell.n == 1 for cell in cells)
    return f"Mean ± standard deviation (ddof = 1) over n seeds.{single}"


def to_csv(table: Table) -> str:
    """Returns one CSV line per cell: `CSV_COLUMNS`, and `PAPER_COLUMNS` if the table has cells of the paper.

    `low` and `high` are the 95 % t interval over seeds. `outside` is 1 or 0, or empty if one of the two has no spread.
    `paper_elsewhere` lists the paper's other tables that print the cell, with what they print.
    """
    lines = []
    for row in table.rows:
        for column in table.columns:
            if cell := table.cells.get((row, column)):
                where = [*row, column.test_set, column.inference_mode, column.metric_name]
                numbers = [cell.n, cell.mean, cell.std, cell.low, cell.high, table.diverged.get(row, 0)]
                beside = csv_values(table.paper.get((row, column))) if table.paper else []
                lines.append([*where, *numbers, *beside])
    return csv_text([*CSV_COLUMNS, *(PAPER_COLUMNS if table.paper else ())], lines)


def to_markdown(table: Table) -> str:
    """Returns a markdown table below its title and caption."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    head = [*(label.replace("_", " ") for label in table.labels), "n"]
    lines = [
        line([*head, *(f"{column.group} {column.label}" for column in table.columns)]),
        line([*["---"] * len(table.labels), *["---:"] * (1 + len(table.columns))]),
    ]
    for row in table.rows:
        values = [f"{mean} ± {std}" if std else mean for mean, std in table.texts(row)]
        lines.append(line([*table.marked_labels(row), table.n_text(row), *values]))
        for label, texts in table.paper_lines(row):
            lines.append(line([*[""] * (len(table.labels) - 1), f"↳ {label}", "", *texts]))
    return "\n".join([f"**{table.title}.** {table.caption}", "", *lines, ""])


_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    DIVERGED_MARK: r"\textsuperscript{$\dagger$}",
    OUTSIDE_MARK: r"\textsuperscript{$\ddagger$}",
}


def escape_tex(text: str) -> str:
    """Escapes `text`, so that LaTeX prints it literally."""
    return "".join(_TEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    r"""Returns a `tabular` for `\input`, with the caption above it as a comment."""
    left = len(table.labels) + 1
    groups, rules, start = [], [], left + 1
    for group, width in table.groups():
        groups.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_tex(group)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    head = [*(label.replace("_", " ") for label in table.labels), "n", *(column.label for column in table.columns)]
    lines = [
        f"% {table.title}. {table.caption}",
        r"% Needs \usepackage{booktabs}.",
        rf"\begin{{tabular}}{{{'l' * len(table.labels)}{'r' * (1 + len(table.columns))}}}",
        r"\toprule",
        f"{'& ' * left}{' & '.join(groups)} \\\\",
        " ".join(rules),
        f"{' & '.join(escape_tex(text) for text in head)} \\\\",
        r"\midrule",
    ]
    for row in table.rows:
        values = [rf"${mean} \pm {std}$" if std else escape_tex(mean) for mean, std in table.texts(row)]
        labels = [escape_tex(label) for label in [*table.marked_labels(row), table.n_text(row)]]
        lines.append(f"{' & '.join([*labels, *values])} \\\\")
        for label, texts in table.paper_lines(row):
            beside = [*[""] * (len(table.labels) - 1), rf"\quad {escape_tex(label)}", "", *map(escape_tex, texts)]
            lines.append(f"{' & '.join(beside)} \\\\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


FORMATS: Mapping[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
