"""The paper's 909 cells beside a study's own: every one is reached by its names, differences and marks are right."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from softtok.config.load import read
from softtok.report import paper
from softtok.report.latex import escape_tex, to_latex
from softtok.report.metrics import Summary, summarise
from softtok.report.page import make_report
from softtok.report.paper import Key, Printed, compare, key_of, printed_cells
from softtok.report.study import Row, Study
from softtok.report.tables import Table, make_tables, to_csv, to_markdown
from softtok.storage.files import file_sha256
from tests.support.project import ROOT
from tests.support.report_specs import report_spec, study_of
from tests.support.synthetic_runs import INFERENCE_MODES, write_study

SOURCE = Path(paper.__file__).with_name("paper.csv")
LINES = list(csv.DictReader(io.StringIO(SOURCE.read_text(encoding="utf-8"))))
CHOICE_SETS = ("hellaswag", "arc_challenge", "mmlu")
SHAPES = {"1": "hard-inference", "2": "out-of-domain"}  # the others have all inference modes on one test set


EXCHANGED = {"hard": "plain", "soft": "fuzzy", "fuzzy": "soft"}


def ours(name: str) -> str:
    """A study's own name for what the paper calls `name`: never the same, so that only `paper:` can join the two."""
    kind, _, rest = name.partition("-")
    return f"{EXCHANGED[kind]}-{rest}" if rest in ("greedy", "sample") else f"our_{name[::-1]}" if name else "none"


def mode_of(line: dict[str, str]) -> str:
    return f"{line['training_mode']} {line['variant']}".strip()


def study_with(lines: list[dict[str, str]]) -> tuple[Study, pd.DataFrame]:
    """A study that has exactly the rows and columns of these lines of paper.csv, under names of its own.

    It has three seeds whose mean is the number of the line: no two cells are alike.
    """

    def unique(values: Any) -> list[str]:
        return list(dict.fromkeys(value for value in values if value))

    models, train_sets = unique(line["model"] for line in lines), unique(line["train_set"] for line in lines)
    modes = [mode for mode in unique(map(mode_of, lines)) if mode != "base"]
    sets = unique(line["test_set"] for line in lines)
    tests, choices = [[name for name in sets if (name in CHOICE_SETS) == choice] for choice in (False, True)]
    rows = dict.fromkeys((line["model"], line["train_set"], mode_of(line)) for line in lines)
    spec = {
        "runs": [
            {
                "model": ours(model),
                "train_set": ours(train_set),
                "mode": mode if mode == "base" else ours(mode),
                "seed": seed,
            }
            for model, train_set, mode in rows
            for seed in range(3)
        ],
        "tests": {ours(name): {"all": "0"} for name in tests},
        "choices": {ours(name): "" for name in choices},
        "inference_modes": {ours(name): settings for name, settings in INFERENCE_MODES.items()},
        "order": {
            "models": list(map(ours, models)), "train_sets": list(map(ours, train_sets)),
            "training_modes": list(map(ours, modes)), "test_sets": list(map(ours, tests)),
            "choice_sets": list(map(ours, choices)),
        },
        "paper": {
            "models": {ours(name): name for name in models},
            "train_sets": {ours(name): name for name in train_sets},
            "training_modes": {ours(name): name for name in modes},
            "test_sets": {ours(name): name for name in tests},
            "choice_sets": {ours(name): name for name in choices},
            "inference_modes": {ours(name): name for name in INFERENCE_MODES},
        },
    }  # fmt: skip
    values = []
    for number, line in enumerate(lines):
        choice = line["test_set"] in CHOICE_SETS
        metric, _, k = line["metric"].partition("@")
        for seed in range(3):
            values.append(
                {
                    "model": ours(line["model"]), "train_set": ours(line["train_set"]),
                    "training_mode": "base" if line["training_mode"] == "base" else ours(mode_of(line)), "seed": seed,
                    "test_set": ours(line["test_set"]),
                    "inference_mode": "" if choice else ours(line["inference_mode"]),
                    "metric": f"{metric}@k" if k else metric, "k": int(k) if k else pd.NA, "index": pd.NA,
                    "value": number + seed - 1, "n_problems": 10, "n_samples": 1,
                }
            )  # fmt: skip
    return study_of(spec), pd.DataFrame(values)


def meets(table: Table, lines: list[dict[str, str]]) -> None:
    """Every line is joined in its place, and nothing else is."""
    columns = {(column.test_set, column.inference_mode, column.metric_name): column for column in table.columns}
    assert len(table.paper) == len(lines)
    for number, line in enumerate(lines):
        row = Row(
            ours(line["model"]), ours(line["train_set"]),
            "base" if line["training_mode"] == "base" else ours(mode_of(line)),
        )  # fmt: skip
        choice = line["test_set"] in CHOICE_SETS
        mode = "" if choice else ours(line["inference_mode"])
        joined = table.paper[row, columns[ours(line["test_set"]), mode, line["metric"]]]
        assert joined.printed.table == int(line["table"])
        assert (joined.printed.mean, joined.printed.std) == (line["mean"], line["std"])
        assert joined.difference == pytest.approx(number - float(line["mean"]))


def test_the_shipped_file_is_the_papers() -> None:
    assert file_sha256(SOURCE) == "86a7a28f4d50cee16371dfd4e7dcfefb796c8bf04ad873ec883a974504da3396"
    assert len(LINES) == 909
    assert sum(len(tables) for tables in printed_cells().values()) == 909


@pytest.mark.parametrize("number", list("12345678"))
def test_every_cell_is_reached_from_a_study_in_the_shape_of_its_table(number: str) -> None:
    lines = [line for line in LINES if line["table"] == number]
    study, metrics = study_with(lines)
    name = SHAPES.get(number) or f"inference-modes-{ours(lines[0]['test_set'])}"
    meets(make_tables(study, metrics)[name], lines)


def test_one_study_meets_tables_1_to_5_each_in_its_own_table() -> None:
    lines = [line for line in LINES if line["table"] in "12345"]
    distinct = {tuple(line[name] for name in list(line)[1:-2]): line for line in lines}
    study, metrics = study_with(list(distinct.values()))
    tables = make_tables(study, metrics)
    met = {name: Counter(cell.printed.table for cell in table.paper.values()) for name, table in tables.items()}
    assert met == {
        "hard-inference": {1: 162}, "out-of-domain": {2: 108}, "majority-voting": {},
        **{
            f"inference-modes-{ours(name)}": {number: 162}
            for number, name in ((3, "gsm8k"), (4, "math500"), (5, "olympiadbench"))
        },
    }  # fmt: skip


def test_a_value_of_several_tables_says_where_else_it_stands() -> None:
    lines = [line for line in LINES if line["table"] == "7"]
    table = make_tables(*study_with(lines))[f"inference-modes-{ours('gsm8k')}"]
    found = list(csv.DictReader(io.StringIO(to_csv(table))))
    base = found[0]
    assert (base["paper_table"], base["paper_mean"], base["paper_n"]) == ("7", "71.0", "1")
    assert base["paper_elsewhere"] == "Table 1: 71.4; Table 3: 71.4"
    fuzzy = next(cell for cell in found if cell["training_mode"] == ours("fuzzy noise_at=embedding;temperature=1e-4"))
    assert (fuzzy["paper_mean"], fuzzy["paper_std"], fuzzy["paper_n"]) == ("76.7", "1.8", "3")
    listed = [part.split(":")[0] for part in fuzzy["paper_elsewhere"].split("; ")]
    assert listed == ["Table 1", "Table 3", "Table 6", "Table 8"]
    hidden = next(cell for cell in found if cell["training_mode"] == ours("soft noise_at=hidden;temperature=0.5"))
    assert (hidden["paper_n"], hidden["paper_elsewhere"]) == ("2", "")


def test_reprinted_rows_are_the_main_rows() -> None:
    """What the ablation tables call by a variant, and we take for the main runs, prints the same numbers.

    Only the rounding differs now and then.
    """
    cells = {
        (line["table"], mode_of(line), line["inference_mode"], line["metric"]): line
        for line in LINES
        if (line["model"], line["train_set"], line["test_set"]) == ("llama-3.2-3b-instruct", "gsm8k", "gsm8k")
    }
    met: Counter[str] = Counter()
    for (number, mode, inference_mode, metric), line in cells.items():
        if mode in paper.REPRINTED:
            main = cells["3", paper.REPRINTED[mode], inference_mode, metric]
            for column in ("mean", "std"):
                assert float(line[column]) == pytest.approx(float(main[column]), abs=0.11), (
                    number,
                    mode,
                    inference_mode,
                    metric,
                )
            met[mode] += 1
    assert met == dict.fromkeys(paper.REPRINTED, 9)


def test_names_of_the_configuration_are_the_papers() -> None:
    """A misspelt `paper:` would be compared with nothing, and nobody would notice."""
    known = {
        "models": {line["model"] for line in LINES}, "train_sets": {line["train_set"] for line in LINES},
        "test_sets": {line["test_set"] for line in LINES} - set(CHOICE_SETS), "choice_sets": set(CHOICE_SETS),
        "training_modes": set(map(mode_of, LINES)), "inference_modes": set(INFERENCE_MODES),
    }  # fmt: skip
    config = read(ROOT / "config.yaml")
    for section, names in known.items():
        written = {entry.paper for entry in getattr(config, section).values() if entry.paper is not None}
        assert written <= names, section


@pytest.mark.parametrize(
    "lost", ["models", "train_sets", "training_modes", "test_sets", "inference_modes"]
)  # fmt: skip
def test_without_a_name_there_is_no_comparison(lost: str) -> None:
    names = {
        "models": {"m": "llama-3.2-3b-instruct"}, "train_sets": {"t": "gsm8k"}, "training_modes": {"s": "soft"},
        "test_sets": {"g": "gsm8k"}, "inference_modes": {"h": "hard-sample"},
    }  # fmt: skip
    cell = ("m", "t", "s", "g", "h", "pass@1")
    assert key_of(names, Key(*cell)) in printed_cells()
    assert key_of({**names, lost: {}}, Key(*cell)) is None


# the difference and its mark


def summary(low: float, mean: float, high: float) -> Summary:
    return Summary(3, mean, 1.0, low, high)


# 70.0 ± 1.0 over 3 seeds: 4.302653 * 1.05 / sqrt(3) + 0.05 = 2.658351 to either side
EDGE = 2.658351


@pytest.mark.parametrize(
    ("mean", "half", "outside"),
    [
        (70 + EDGE - 1e-5, 0.1, False),  # our mean within the paper's interval
        (70 + EDGE + 1e-5, 0.1, True),
        (70 - EDGE + 1e-5, 0.1, False),
        (70 - EDGE - 1e-5, 0.1, True),
        (80, 9.949, True),  # our interval ends above all that rounds to 70.0
        (80, 9.951, False),
        (60, 9.949, True),
        (60, 9.951, False),
        (70.01, 0.001, False),
    ],
)
def test_a_mark_means_that_each_mean_is_outside_the_others_interval(mean: float, half: float, outside: bool) -> None:
    joined = compare(summary(mean - half, mean, mean + half), Printed(1, "70.0", "1.0", 3))
    assert joined.outside is outside
    assert joined.difference == pytest.approx(mean - 70)
    assert joined.difference_text(1).endswith(" ‡") is outside


def test_two_seeds_and_printed_digits_widen_the_papers_interval() -> None:
    low, high = Printed(6, "70.0", "1.0", 2).interval or (0, 0)
    assert high - 70 == pytest.approx(12.706205 * 1.05 / 2**0.5 + 0.05, abs=1e-5)
    assert 70 - low == pytest.approx(high - 70)
    low, high = Printed(2, "2.57", "0.00", 3).interval or (0, 0)  # a printed 0.00 is not none
    assert high - 2.57 == pytest.approx(4.302653 * 0.005 / 3**0.5 + 0.005, abs=1e-6)


def test_nothing_is_marked_where_a_spread_is_unknown() -> None:
    assert compare(summary(79, 80, 81), Printed(1, "70.0", "", 1)).outside is None
    assert compare(Summary(1, 80.0, None, None, None), Printed(1, "70.0", "1.0", 3)).outside is None


def test_differences_have_the_sign_of_ours_minus_the_papers() -> None:
    def text(mean: float, printed: str, digits: int) -> str:
        return compare(Summary(1, mean, None, None, None), Printed(1, printed, "", 1)).difference_text(digits)

    assert text(72.34, "71.0", 1) == "+1.3"
    assert text(69.96, "71.0", 1) == "−1.0"
    assert text(70.98, "71.0", 1) == "+0.0"  # not -0.0
    assert text(2.6149, "2.57", 3) == "+0.04"  # no more digits than the paper's


def test_equal_truths_are_seldom_marked() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3):
        marked = []
        for _ in range(4000):
            theirs, our = rng.normal(70, 2, n), rng.normal(70, 2, 3)
            printed = Printed(1, f"{theirs.mean():.1f}", f"{theirs.std(ddof=1):.1f}", n)
            outside = compare(summarise(our), printed).outside
            assert outside is not None
            marked.append(outside)
        assert 0.005 < np.mean(marked) < 0.05


# what people read


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("paper")
    spec = write_study(
        root, models=("llama",), train_sets=("gsm8k",), test_sets=("gsm8k",), choice_sets=("arc",), problems=40,
        steps=8, toy=False,
    )  # fmt: skip
    spec["paper"] = {
        "models": {"llama": "llama-3.2-3b-instruct"}, "train_sets": {"gsm8k": "gsm8k"},
        "training_modes": {"hard": "hard", "soft": "soft"}, "test_sets": {"gsm8k": "gsm8k"},
        "choice_sets": {"arc": "arc_challenge"}, "inference_modes": {name: name for name in INFERENCE_MODES},
    }  # fmt: skip
    make_report(report_spec(spec), root / "out", root)
    return root / "out", spec


def test_the_papers_values_stand_in_every_format(made: tuple[Path, dict[str, Any]]) -> None:
    out, _ = made
    cells = list(csv.DictReader(io.StringIO((out / "tables/hard-inference.csv").read_text())))
    soft = [cell for cell in cells if cell["training_mode"] == "soft"]
    assert [cell["paper_mean"] for cell in soft] == ["77.2", "70.6", "97.9"]
    assert all(float(c["difference"]) == pytest.approx(float(c["mean"]) - float(c["paper_mean"])) for c in soft)
    assert all(cell["paper_mean"] == "" for cell in cells if cell["training_mode"] == "fuzzy")  # has no name here
    shown = [
        f"{float(cell['difference']):+.1f}".replace("-", "−") + " ‡" * (cell["outside"] == "1") for cell in soft
    ]  # fmt: skip
    assert any("‡" in text for text in shown)
    markdown = (out / "tables/hard-inference.md").read_text().splitlines()
    place = next(n for n, line in enumerate(markdown) if line.startswith("| soft |"))
    assert markdown[place + 1] == "| ↳ paper, Table 1 |  | 77.2 ± 0.9 | 70.6 ± 3.4 | 97.9 ± 0.3 |"
    assert markdown[place + 2] == f"| ↳ difference |  | {' | '.join(shown)} |"
    assert markdown[place + 3].startswith("| fuzzy | 3 |")  # the last line
    assert markdown[place + 4 :] == []
    latex = (out / "tables/hard-inference.tex").read_text()
    assert r"\quad paper, Table 1 &  & 77.2 $\pm$ 0.9 & 70.6 $\pm$ 3.4 & 97.9 $\pm$ 0.3 \\" in latex
    assert r"\textsuperscript{$\ddagger$}" in latex
    assert "‡" not in latex.partition("\n")[2]
    page = (out / "report.html").read_text()
    for text in ("paper, Table 1", "paper, Table 3", "paper, Table 2", "each mean lies outside the other", *shown):
        assert all(part in page for part in text.split(" ‡"))


def test_a_study_without_names_looks_as_it_always_did() -> None:
    metrics = pd.DataFrame(
        [("base", "none", 0, 30.0), ("hard", "t", 0, 40.0), ("hard", "t", 1, 60.0)],
        columns=["training_mode", "train_set", "seed", "value"],
    ).assign(
        model="m", test_set="t", inference_mode="hard-greedy", metric="pass@k", k=1, n_problems=10, n_samples=1,
    )  # fmt: skip
    metrics["index"] = pd.NA
    sketch = {
        "runs": [{"model": "m", "train_set": t, "mode": mode} for t, mode in (("none", "base"), ("t", "hard"))],
        "tests": {"t": {"all": "0"}},
        "inference_modes": {"hard-greedy": INFERENCE_MODES["hard-greedy"]},
        "order": {"models": ["m"], "train_sets": ["t"], "training_modes": ["hard"], "test_sets": ["t"]},
    }
    table = make_tables(study_of(sketch), metrics)
    caption = (
        "Hard inference: every model thinks in ordinary tokens.{} Percent. Model m, trained on t. Problems: t 10. Mean "
        "± standard deviation (ddof = 1) over n seeds. A row with n = 1 is a single checkpoint and has no deviation."
    )
    assert to_markdown(table["hard-inference"]) == (
        f"**{caption.format('**')}\n\n"
        "| training mode | n | t hard-greedy pass@1 |\n| --- | ---: | ---: |\n"
        "| base | 1 | 30.0 |\n| hard | 2 | 50.0 ± 14.1 |\n"
    )
    assert to_csv(table["hard-inference"]) == (
        "model,train_set,training_mode,test_set,inference_mode,metric,n,mean,std,low,high,diverged\n"
        "m,none,base,t,hard-greedy,pass@1,1,30.000000,,,,0\n"
        "m,t,hard,t,hard-greedy,pass@1,2,50.000000,14.142136,-77.062047,177.062047,0\n"
    )
    assert to_latex(table["hard-inference"]) == (
        r"""% Needs \usepackage{booktabs,graphicx}.
\begin{table}[t]
\centering\small\setlength{\tabcolsep}{4pt}
"""
        rf"\caption{{{escape_tex(caption.format(''))}}}"
        r"""
\label{tab:hard-inference}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{lrr}
\toprule
& & \multicolumn{1}{c}{t} \\
\cmidrule(lr){3-3}
 &  & hard-greedy \\
training mode & n & pass@1 \\
\midrule
base & 1 & 30.0 \\
hard & 2 & $50.0 \pm 14.1$ \\
\bottomrule
\end{tabular}}
\end{table}
"""
    )
