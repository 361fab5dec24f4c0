"""Tables for an article: they compile where LaTeX is, and fit the width of the text."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from softtok.report.collect import collect
from softtok.report.differences import with_differences
from softtok.report.latex import to_latex
from softtok.report.tables import Table, make_tables
from tests.support.report_specs import study_of
from tests.support.synthetic_runs import write_study

ARTICLE = r"""\documentclass{article}
\usepackage{booktabs,graphicx}
\begin{document}
%s
\end{document}
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    root = tmp_path_factory.mktemp("study")
    study = study_of(write_study(root, models=("a_1", "b"), problems=20, steps=4, test_sets=("sums", "long-sums", "x")))
    metrics = collect(study, root).metrics
    return with_differences(make_tables(study, metrics), study, metrics)


def test_a_table_has_caption_label_two_lines_of_head_and_bold_best_cells(tables: dict[str, Table]) -> None:
    table = tables["hard-inference"]
    text = to_latex(table)
    assert r"\label{tab:hard-inference}" in text and text.count(r"\caption{") == 1
    head = text[text.index(r"\cmidrule") : text.index(r"\midrule")].strip().splitlines()[1:]
    assert head[0].split(" & ")[3:6] == ["hard-greedy", "hard-sample", "hard-sample"]
    assert head[1].removesuffix(r" \\").split(" & ") == [
        "model",
        "training mode",
        "n",
        *["pass@1", "pass@1", "pass@32"] * 3,
    ]
    rows = [line for line in text[text.index(r"\midrule") :].splitlines() if " & " in line]
    for row, line in zip(table.rows, rows, strict=True):
        cells = line.split(" & ")[3:]
        for column, cell in zip(table.columns, cells, strict=True):
            assert (r"\mathbf" in cell) == ((row, column) in table.best)
    assert len(re.findall(r"\\mathbf", text)) == len(table.best) > 0


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (Debian: texlive-latex-recommended)")
def test_tables_compile_and_stay_within_the_text(tables: dict[str, Table], tmp_path: Path) -> None:
    (tmp_path / "all.tex").write_text(ARTICLE % "\n\\clearpage\n".join(map(to_latex, tables.values())))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout
