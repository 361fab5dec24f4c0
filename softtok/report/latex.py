"""Tables for an article: a `table` with caption and label that fits the width of its text, best cells in bold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from textwrap import shorten

from softtok.report.palette import DIVERGED_MARK
from softtok.report.paper import OUTSIDE_MARK
from softtok.report.study import Row
from softtok.report.tables import Column, Table, to_csv, to_markdown

FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # not wider than the text, else as it is
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
    r"""Returns a `table` for `\input`: the group above two lines of head, as columns are narrow in an article."""
    left = len(table.labels) + 1
    groups, rules, start = [], [], left + 1
    for group, width in table.groups():
        groups.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_tex(group)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    first, second = zip(*(_two_lines(column) for column in table.columns), strict=True)
    lines = [
        r"% Needs \usepackage{booktabs,graphicx}.",
        r"\begin{table}[t]",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escape_tex(f'{table.title}. {table.caption}')}{_bold_phrase(table)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        FITTED,
        rf"\begin{{tabular}}{{{'l' * len(table.labels)}{'r' * (1 + len(table.columns))}}}",
        r"\toprule",
        f"{'& ' * left}{' & '.join(groups)} \\\\",
        " ".join(rules),
        f"{' & '.join([*[''] * left, *map(escape_tex, first)])} \\\\",
        f"{' & '.join(map(escape_tex, [*(label.replace('_', ' ') for label in table.labels), 'n', *second]))} \\\\",
        r"\midrule",
        *(line for row in table.rows for line in _lines(table, row)),
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def _two_lines(column: Column) -> tuple[str, str]:
    """Returns the two lines of a column's head."""
    first, _, second = column.label.rpartition(" ")
    return first, second


def _bold_phrase(table: Table) -> str:
    return " Bold: the best of the training modes of one model and train set." if table.best else ""


def _lines(table: Table, row: Row) -> list[str]:
    """Returns a row of the table, and the paper's lines below it."""
    values = []
    for column, (mean, std) in table.shown(row):
        number = rf"\mathbf{{{mean}}}" if (row, column) in table.best else mean
        bold = rf"$\mathbf{{{mean}}}$" if (row, column) in table.best else escape_tex(mean)
        values.append(rf"${number} \pm {std}$" if std else bold)
    labels = [escape_tex(label) for label in [*table.marked_labels(row), table.n_text(row)]]
    lines = [f"{' & '.join([*labels, *values])} \\\\"]
    for label, texts in table.paper_lines(row):
        beside = [
            *[""] * (len(table.labels) - 1),
            rf"\quad {escape_tex(shorten(label, 60))}",
            "",
            *map(escape_tex, texts),
        ]
        lines.append(f"{' & '.join(beside)} \\\\")
    return lines


FORMATS: Mapping[str, Callable[[Table], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
