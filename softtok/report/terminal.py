"""A study's headline for a terminal: written with the report, printed by `softtok show`.

`show` imports nothing that draws or reads tables, so that it starts at once.
"""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

from softtok.errors import UserError
from softtok.report.palette import DIVERGED_MARK

if TYPE_CHECKING:
    from softtok.report.study import Row
    from softtok.report.tables import Column, Table

HEADLINE = "headline.txt"
COLUMNS = 80  # of the terminal that it fits
LONGEST_NUMBER = 12  # characters of "100.0 ± 10.0"


def headline(study: str, table: Table) -> str:
    """Returns the hard-inference table as text: one block per test set and pair of model and train set."""
    from rich.console import Console

    console = Console(width=COLUMNS, record=True, file=io.StringIO())
    console.print(f"{study}: hard inference, percent, mean ± std over n seeds\n", highlight=False, markup=False)
    rows = [row for row in table.rows if row.training_mode != "base"] or list(table.rows)
    pairs = list(dict.fromkeys((row.model, row.train_set) for row in rows))
    for test_set in dict.fromkeys(column.test_set for column in table.columns):
        for model, train_set in pairs:
            title = test_set if len(pairs) < 2 else f"{test_set}: {model} trained on {train_set}"
            shown = [row for row in table.rows if row.model == model and row.train_set in ("none", train_set)]
            console.print(_block(title, table, shown, [c for c in table.columns if c.test_set == test_set]))
    if any(table.diverged.values()):
        console.print(f"{DIVERGED_MARK} includes a diverged run", highlight=False)
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())


def _block(title: str, table: Table, rows: list[Row], columns: list[Column]) -> object:
    """Returns the rows of one test set as a rich table."""
    from rich import box
    from rich.table import Table as RichTable

    block = RichTable(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    block.add_column("training mode", overflow="fold")  # names give way to numbers, which are never cut
    block.add_column("n", justify="right")
    for column in columns:
        heading = "\n".join([*wrap(column.inference_mode, LONGEST_NUMBER), column.metric_name])
        block.add_column(heading, justify="right", no_wrap=True, min_width=LONGEST_NUMBER)
    places = [table.columns.index(column) for column in columns]
    for row in rows:
        texts = [f"{mean} ± {std}" if std else mean for mean, std in table.texts(row)]
        block.add_row(table.marked_labels(row)[-1], table.n_text(row), *(texts[place] for place in places))
    return block


def show(results: Path, study: str) -> str:
    """Returns the headline of a finished report, and where the report is.

    Raises UserError when the study has no report below `results`.
    """
    folder = results / "reports" / study
    page = folder / "report.html"
    if not page.exists():
        made = sorted(path.parent.name for path in results.glob("reports/*/report.html"))
        raise UserError(f"no report of study '{study}' in {results}; reports there: {', '.join(made) or 'none'}")
    source = folder / "tables" / HEADLINE
    text = source.read_text(encoding="utf-8") if source.exists() else ""  # a study without hard inference has none
    made_at = datetime.fromtimestamp(page.stat().st_mtime)
    return (
        f"{text}Report: {page}\n"
        f"made {made_at:%Y-%m-%d %H:%M}; `snakemake {study}` makes it anew if settings have changed"
    )
