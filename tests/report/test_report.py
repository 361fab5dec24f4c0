"""The report from made-up runs with known rates: numbers, tables, figures, page, and what it does with bad files."""

import csv
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.colors import same_color

from softtok.errors import UserError
from softtok.report import figures, palette, panels
from softtok.report.collect import METRIC_COLUMNS, Results, collect
from softtok.report.differences import with_differences
from softtok.report.latex import escape_tex, to_latex
from softtok.report.metrics import pass_at_k
from softtok.report.page import make_report
from softtok.report.panels import Plot
from softtok.report.study import Family, Row, Study
from softtok.report.tables import Table, make_tables, to_csv, to_markdown
from softtok.report.terminal import show
from tests.support.figures import points_of, visible_texts
from tests.support.report_specs import report_spec, study_of
from tests.support.synthetic_runs import INFERENCE_MODES, rates, write_study

MODES = ("hard", "soft", "fuzzy", "soft_noise1")
HARD = {name: INFERENCE_MODES[name] for name in ("hard-greedy", "hard-sample")}
Made = tuple[Path, dict[str, Any], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(root, spec, report folder) of a study with a diverged run and runs on two devices."""
    root = tmp_path_factory.mktemp("study")
    spec = write_study(root, modes=MODES, problems=40, steps=60, diverged=(("soft_noise1", 1),))
    edit_json(
        root / spec["runs"][1]["path"] / "manifest.json", lambda manifest: manifest["provenance"].update(device="gpu")
    )
    for place, day in ((3, 30), (5, 28)):
        began = {"event": "start", "time": f"2026-11-{day}T07:05:50+0000"}
        edit_json(root / spec["runs"][place]["path"] / "manifest.json", partial(dict.update, attempts=[began, began]))
    out = root / "results/reports/demo"
    make_report(report_spec(spec), out, root)
    return root, spec, out


@pytest.fixture(scope="module")
def results(made: Made) -> Results:
    return collect(study_of(made[1]), made[0])


@pytest.fixture(scope="module")
def tables(made: Made, results: Results) -> dict[str, Table]:
    diverged, study = [run.row for run in results.runs if run.manifest.diverged], study_of(made[1])
    return with_differences(make_tables(study, results.metrics, diverged), study, results.metrics)


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


# metrics.csv


def test_metrics_are_what_the_files_say(made: Made) -> None:
    root, spec, out = made
    metrics = pd.read_csv(out / "metrics.csv", keep_default_na=False)
    assert tuple(metrics.columns) == METRIC_COLUMNS
    for run in (spec["runs"][0], spec["runs"][4]):
        here = metrics[(metrics["training_mode"] == run["mode"]) & (metrics["seed"] == run["seed"])]
        assert set(here["train_set"]) == {run["train_set"]}
        rows = pd.read_parquet(root / run["path"] / "eval/long-sums/six-89ab4567.parquet")
        for mode, of_mode in rows.groupby("inference_mode"):
            cell = here[(here["test_set"] == "long-sums") & (here["inference_mode"] == mode)]
            curve = cell[cell["metric"] == "pass@k"]
            samples = INFERENCE_MODES[str(mode)]["samples"]
            assert curve["k"].tolist() == (["1", "2", "4", "8", "16", "32"] if samples == 32 else ["1"])
            assert set(curve["n_samples"]) == {samples}
            assert set(curve["n_problems"]) == {40}
            correct = of_mode.groupby("problem_id")["correct"].sum()
            for k, value in zip(curve["k"], curve["value"], strict=True):
                assert value == pytest.approx(100 * pass_at_k(correct, samples, int(k)).mean(), abs=1e-6)
            assert cell[cell["metric"] == "cot_tokens"]["value"].item() == pytest.approx(of_mode["cot_tokens"].mean())
        profile = pd.read_csv(root / run["path"] / "eval/sums/six-89ab4567.entropy.csv")
        profile = profile[profile["inference_mode"] == "soft-sample"]
        entropy = here[(here["metric"] == "entropy") & (here["inference_mode"] == "soft-sample")]
        entropy = entropy[entropy["test_set"] == "sums"]
        assert entropy["index"].astype(int).tolist() == profile["index"].tolist()
        assert entropy["n_samples"].tolist() == profile["count"].tolist()
        np.testing.assert_allclose(entropy["value"], profile["entropy"], atol=1e-6)
        choices = pd.read_parquet(root / run["path"] / "choices/order-cdef0123.parquet")
        of_choices = here[here["test_set"] == "order"].set_index("metric")["value"]
        assert of_choices["accuracy"] == pytest.approx(100 * choices["correct"].mean())
        assert of_choices["nll_per_token"] == pytest.approx(choices["nll"].sum() / choices["tokens"].sum())


def test_equal_results_give_equal_bytes_in_the_order_of_the_configuration(made: Made, tmp_path: Path) -> None:
    root, spec, out = made
    shuffled = {**spec, "runs": spec["runs"][::-1], "tests": dict(reversed(spec["tests"].items()))}
    make_report(report_spec(shuffled), tmp_path / "again", root)
    files = sorted(path.relative_to(out) for path in out.rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*.*"))
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
    metrics = pd.read_csv(out / "metrics.csv")
    assert metrics["training_mode"].unique().tolist() == ["base", *MODES]
    assert metrics["test_set"].unique().tolist() == ["sums", "long-sums", "order"]
    assert metrics["inference_mode"].dropna().unique().tolist() == list(INFERENCE_MODES)


def test_the_order_of_rows_in_a_file_does_not_matter(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=(), problems=97)
    before = collect(study_of(spec), tmp_path).metrics
    for path in (tmp_path / spec["runs"][0]["path"]).rglob("*.parquet"):
        drop_rows(path, lambda rows: rows.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(collect(study_of(spec), tmp_path).metrics, before, check_exact=True)


def test_majority_counts_what_stands_in_the_boxes(tmp_path: Path) -> None:
    """One problem of 5 samples each: the same answer in two spellings, a box that was not graded, and no box at all."""
    modes = {"hard-greedy": HARD["hard-greedy"], "hard-sample": {**HARD["hard-sample"], "samples": 5}}
    spec = write_study(tmp_path, modes=(), test_sets=("sums",), choice_sets=(), problems=3, inference_modes=modes)
    answers = {
        "sums-00000": [(r"\boxed{\frac{1}{2}}", 1, 1), (r"so \boxed{ \dfrac{1}{2} }", 1, 1), (r"\boxed{3}", 0, 1),
                       (r"\boxed{4}", 0, 1), (r"\boxed{5}", 0, 1)],
        "sums-00001": [(r"\boxed{1}", 1, 1), (r"\boxed{2}", 0, 1), ("2", 0, 0), ("2", 0, 0), (r"\boxed{2}", 0, 0)],
        "sums-00002": [("7", 0, 0)] * 5,
    }  # fmt: skip
    path = tmp_path / spec["runs"][0]["path"] / CELL
    rows = pd.read_parquet(path)
    for problem, samples in answers.items():
        here = (rows["problem_id"] == problem) & (rows["inference_mode"] == "hard-sample")
        rows.loc[here, "answer"], rows.loc[here, "correct"], rows.loc[here, "boxed"] = (
            [answer for answer, _, _ in samples], [bool(right) for _, right, _ in samples],
            [bool(boxed) for *_, boxed in samples],
        )  # fmt: skip
    rows.to_parquet(path)
    metrics = collect(study_of(spec), tmp_path).metrics
    found = metrics[metrics["metric"] == "majority@k"]
    assert found[["inference_mode", "k", "n_samples"]].values.tolist() == [["hard-sample", 5, 5]]
    assert found["value"].item() == pytest.approx(100 * (1 + 0.5 + 0) / 3)
    assert "majority-voting" not in make_tables(study_of(spec), metrics)  # too few to vote


# tables


def in_memory(values: dict[str, list[float]], problems: int = 10) -> tuple[Study, pd.DataFrame]:
    """A study of hard-greedy pass@1 on one test set: training mode -> one value per seed."""
    runs = [
        {"model": "m", "train_set": "none" if mode == "base" else "t", "mode": mode, "seed": seed}
        for mode, of_mode in values.items()
        for seed in range(len(of_mode))
    ]
    study = study_of(
        {
            "runs": runs,
            "tests": {"t": {"all": "0"}},
            "choices": {},
            "inference_modes": {"hard-greedy": INFERENCE_MODES["hard-greedy"]},
            "order": {"models": ["m"], "train_sets": ["t"], "training_modes": list(values), "test_sets": ["t"],
                      "choice_sets": []},
        }
    )  # fmt: skip
    frame = pd.DataFrame(runs).rename(columns={"mode": "training_mode"})
    frame = frame.assign(test_set="t", inference_mode="hard-greedy", metric="pass@k", k=1)
    frame["index"] = pd.NA
    return study, frame.assign(value=[*itertools.chain(*values.values())], n_problems=problems, n_samples=1)


@pytest.mark.parametrize("problems", [10, 100_000])
def test_the_seed_is_the_unit_and_not_the_problem(problems: int) -> None:
    study, metrics = in_memory({"base": [30.0], "hard": [40.0, 60.0]}, problems)
    table = make_tables(study, metrics)["hard-inference"]
    column = table.columns[0]
    hard = table.cells[Row("m", "t", "hard"), column]
    assert (hard.n, hard.mean) == (2, 50) and hard.std == pytest.approx(np.sqrt(200))
    base = table.cells[Row("m", "none", "base"), column]
    assert (base.n, base.mean, base.std) == (1, 30, None)
    assert "| base | 1 | 30.0 |" in to_markdown(table)
    assert "| hard | 2 | 50.0 ± 14.1 |" in to_markdown(table)


def test_n_is_said_honestly() -> None:
    study, metrics = in_memory({"base": [30.0], "hard": [40.0, 60.0]})
    caption = make_tables(study, metrics)["hard-inference"].caption
    assert "Model m, trained on t." in caption
    assert "Problems: t 10." in caption
    assert "ddof = 1" in caption
    assert "n = 1 is a single checkpoint" in caption
    study, metrics = in_memory({"base": [30.0], "hard": [40.0]})
    assert "no spread is known" in make_tables(study, metrics)["hard-inference"].caption


NUMBER = re.compile(r"-?\d+\.\d+")


def shown_numbers(table: Table) -> list[list[str]]:
    """Per row the numbers a table must show, from its csv rounded to its digits: mean, then std where known."""
    digits = {(column.test_set, column.inference_mode, column.metric_name): column.digits for column in table.columns}
    rows: dict[tuple[str, ...], list[str]] = {}
    for cell in csv.DictReader(io.StringIO(to_csv(table))):
        where = rows.setdefault((cell["model"], cell["train_set"], cell["training_mode"]), [])
        for value in (cell["mean"], cell["std"]):
            if value:
                where.append(f"{float(value):.{digits[cell['test_set'], cell['inference_mode'], cell['metric']]}f}")
    return list(rows.values())


def test_the_three_formats_show_the_same_numbers(tables: dict[str, Table], made: Made) -> None:
    assert list(tables) == [
        "hard-inference", "inference-modes-sums", "inference-modes-long-sums", "answers-sums", "answers-long-sums",
        "out-of-domain", "majority-voting",
    ]  # fmt: skip
    assert [len(table.columns) for table in tables.values()] == [6, 9, 9, 6, 6, 2, 6]
    for table in tables.values():
        expected = shown_numbers(table)
        assert len(expected) == 1 + len(MODES)
        markdown = [line for line in to_markdown(table).splitlines() if line.startswith("|")][2:]
        latex = to_latex(table).partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
        assert [NUMBER.findall(line) for line in markdown] == expected
        assert [NUMBER.findall(line) for line in latex] == expected
        columns = len(table.columns) + 2
        assert {line.count(" | ") + 1 for line in markdown} == {columns}
        assert {line.count(" & ") + 1 for line in latex} == {columns}
        for suffix, text in {"md": to_markdown(table), "csv": to_csv(table), "tex": to_latex(table)}.items():
            assert (made[2] / f"tables/{table.name}.{suffix}").read_text() == text


def test_the_csv_gives_the_t_interval(tables: dict[str, Table]) -> None:
    for cell in csv.DictReader(io.StringIO(to_csv(tables["hard-inference"]))):
        if cell["training_mode"] == "base":
            assert (cell["n"], cell["std"], cell["low"], cell["high"]) == ("1", "", "", "")
        else:
            half = 4.30265273 * float(cell["std"]) / np.sqrt(3)
            assert float(cell["high"]) - float(cell["mean"]) == pytest.approx(half, abs=1e-5)
            assert float(cell["mean"]) - float(cell["low"]) == pytest.approx(half, abs=1e-5)


def test_a_row_with_a_diverged_run_is_marked(tables: dict[str, Table]) -> None:
    table = tables["hard-inference"]
    assert "| soft_noise1 † | 3 |" in to_markdown(table)
    assert "| soft | 3 |" in to_markdown(table)
    assert r"soft\_noise1 \textsuperscript{$\dagger$} & 3" in to_latex(table)
    assert "includes a diverged run" in table.caption
    cells = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert {(cell["training_mode"], cell["diverged"]) for cell in cells} == {
        (mode, "1" if mode == "soft_noise1" else "0") for mode in ("base", *MODES)
    }


@given(st.text(alphabet="\\&%$#_{}~^<>|± –ab1", max_size=12))
def test_escaped_tex_has_no_live_special_characters(text: str) -> None:
    escaped = escape_tex(text)
    commands = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}"
    rest = re.sub(rf"{commands}|\$\\pm\$|\\[&%$#_{{}}]", "", escaped)
    assert not set(rest) & set("\\&%$#_{}~^<>|±–")
    assert sum(character in "ab1 " for character in rest) == sum(character in "ab1 " for character in text)


def test_markdown_cells_cannot_break_their_row() -> None:
    study, metrics = in_memory({"a|b": [40.0, 60.0]})
    assert r"| a\|b | 2 | 50.0 ± 14.1 |" in to_markdown(make_tables(study, metrics)["hard-inference"])


def test_intervals_cover_known_rates_at_the_nominal_rate() -> None:
    """Counts how often the truth is inside: 1,500 models with the same known rates, 3 seeds each, 8 samples."""
    rng = np.random.default_rng(0)
    known = rates("soft", "hard-sample", "sums", 200)
    seeds = [(f"m{model}", seed) for model in range(1500) for seed in range(3)]
    correct = rng.binomial(8, known, size=(len(seeds), 200))
    frame = pd.DataFrame(seeds, columns=["model", "seed"]).assign(
        train_set="t", training_mode="soft", test_set="t", inference_mode="hard-sample", metric="pass@k",
        n_problems=200, n_samples=8,
    )  # fmt: skip
    frame["index"] = pd.NA
    metrics = pd.concat([frame.assign(k=k, value=100 * pass_at_k(correct, 8, k).mean(axis=1)) for k in (1, 8)])
    spec = {
        "runs": [{"model": model, "train_set": "t", "mode": "soft", "seed": seed} for model, seed in seeds],
        "tests": {"t": {"all": "0"}},
        "choices": {},
        "inference_modes": {"hard-sample": {"tokens": "hard", "samples": 8}},
        "order": {"models": [f"m{m}" for m in range(1500)], "train_sets": ["t"], "training_modes": ["soft"],
                  "test_sets": ["t"], "choice_sets": []},
    }  # fmt: skip
    table = make_tables(study_of(spec), metrics)["hard-inference"]
    for column in table.columns:
        truth = 100 * np.mean(1 - (1 - known) ** column.k)
        inside = []
        for row in table.rows:
            cell = table.cells[row, column]
            assert cell.low is not None
            assert cell.high is not None
            inside.append(cell.low <= truth <= cell.high)
        assert len(inside) == 1500
        assert np.mean(inside) == pytest.approx(0.95, abs=0.02)  # 3.6 standard errors


def test_known_rates_come_back_from_files(tmp_path: Path) -> None:
    modes = {
        name: {**INFERENCE_MODES[name], "samples": samples}
        for name, samples in (("hard-greedy", 1), ("hard-sample", 8))
    }
    spec = write_study(
        tmp_path, models=tuple(f"m{n}" for n in range(20)), modes=("hard",), test_sets=("sums",), choice_sets=(),
        inference_modes=modes, problems=50, steps=1, wobble=0,
    )  # fmt: skip
    table = make_tables(study_of(spec), collect(study_of(spec), tmp_path).metrics)["hard-inference"]
    errors = []
    for (row, column), cell in table.cells.items():
        if row.training_mode == "hard":
            known = rates("hard", column.inference_mode, "sums", 50)
            truth = 100 * np.mean(1 - (1 - known) ** column.k)
            assert cell.low is not None
            assert cell.high is not None
            errors.append((column.k, cell.mean - truth, cell.low <= truth <= cell.high))
    assert np.mean([inside for *_, inside in errors]) > 0.85
    assert abs(np.mean([error for _, error, _ in errors])) < 1.5


def test_families_pair_greedy_and_sample() -> None:
    def families(**samples: int) -> dict[str, Family]:
        modes = {name: {"tokens": "soft", "samples": n} for name, n in samples.items()}
        return study_of({"inference_modes": modes}).families()

    assert families(**{"hard-greedy": 1, "hard-sample": 32, "x": 4, "y": 1}) == {
        "hard": Family("hard-greedy", "hard-sample"),
        "x": Family(None, "x"),
        "y": Family("y", None),
    }
    assert families(**{"hard-sample": 1}) == {"hard": Family(None, "hard-sample")}
    assert families(**{"hard-greedy": 1, "hard-sample-4": 4}) == {"hard": Family("hard-greedy", "hard-sample-4")}
    assert families(**{"hard-sample-256": 256, "hard-sample": 32}) == {
        "hard-sample-256": Family(None, "hard-sample-256"),
        "hard": Family(None, "hard-sample"),
    }
    assert families(**{"t-sample-1": 8, "t-sample-2": 8}) == {
        "t": Family(None, "t-sample-1"),
        "t-sample-2": Family(None, "t-sample-2"),
    }
    assert families(**{"x": 4, "x-sample": 8}) == {"x": Family(None, "x"), "x-sample": Family(None, "x-sample")}


def test_hard_modes_pair_by_their_settings() -> None:
    greedy, sample, single = HARD["hard-greedy"], HARD["hard-sample"], {**HARD["hard-sample"], "samples": 1}

    def hard(**modes: dict[str, Any]) -> Family:
        return study_of({"inference_modes": modes}).hard_family()

    assert hard(**{"hard-greedy": greedy, "hard-p": sample}) == Family("hard-greedy", "hard-p")
    assert hard(**{"hard-p": single, "hard-greedy": greedy}) == Family("hard-greedy", "hard-p")
    assert hard(**{"best": greedy, "hard-sample": sample}) == Family("best", "hard-sample")
    assert hard(**{"best": greedy, "hard-sample": sample, "hard-p": sample}) == Family("best", "hard-sample")
    assert hard(**HARD, **{"hard-p": sample}) == Family("hard-greedy", "hard-sample")
    assert hard(**{"hard-greedy": greedy, "mixed": sample | {"inputs_beta": 1.0}}) == Family("hard-greedy", None)
    assert hard(**{"hard-greedy": greedy, "soft-p": INFERENCE_MODES["soft-sample"]}) == Family("hard-greedy", None)
    both = {"soft-p": INFERENCE_MODES["soft-sample"], "hard-greedy": greedy, "hard-p": sample}
    assert list(study_of({"inference_modes": both}).families()) == ["soft-p", "hard"]


def test_a_mode_that_a_test_set_is_not_met_in_has_no_column_there(tmp_path: Path) -> None:
    """Grid blocks give test sets inference sets of their own; base is tested in all that its test set has."""
    modes = {**HARD, "hard-sample-64": {**HARD["hard-sample"], "samples": 64}}
    shape: dict[str, Any] = {"modes": ("hard",), "seeds": 1, "choice_sets": (), "problems": 6, "steps": 4}
    spec = write_study(tmp_path, inference_modes=modes, **shape)
    spec["inference_sets"] = {"six": list(HARD), "many": ["hard-sample-64"]}
    spec["tests"]["long-sums"]["many"] = "01234567"
    for run in spec["runs"]:
        folder = tmp_path / run["path"] / "eval"
        for kind, read in ((".parquet", pd.read_parquet), (".entropy.csv", pd.read_csv)):
            for test_set in ("sums", "long-sums"):
                path = folder / test_set / f"six-89ab4567{kind}"
                rows = read(path)
                for name, kept in spec["inference_sets"].items():
                    if name in spec["tests"][test_set]:
                        part = rows[rows["inference_mode"].isin(kept)]
                        target = path.with_name(f"{name}-{spec['tests'][test_set][name]}{kind}")
                        part.to_parquet(target) if kind == ".parquet" else part.to_csv(target)
    made = make_tables(study_of(spec), collect(study_of(spec), tmp_path).metrics)
    assert "hard-sample-64" not in {column.inference_mode for column in made["inference-modes-sums"].columns}
    assert "hard-sample-64" in {column.inference_mode for column in made["inference-modes-long-sums"].columns}
    assert [column.test_set for column in made["majority-voting"].columns] == ["sums", "long-sums", "long-sums"]
    for table in made.values():
        assert all(mean != "–" for row in table.rows for mean, _ in table.texts(row)), table.name


# figures


@pytest.fixture(scope="module")
def plots(made: Made, results: Results) -> list[Plot]:
    return list(figures.draw_all(study_of(made[1]), results.metrics, results.training))


def test_all_figures_are_drawn(plots: list[Plot], made: Made) -> None:
    names = ["pass-at-k-hard", "pass-at-k--toy--sums", "training--toy--sums", "entropy-change--toy--sums"]
    names += ["entropy--toy--sums--sums", "entropy--toy--sums--long-sums"]
    assert [plot.name for plot in plots] == names
    folder = made[2] / "figures"
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png", "pdf")
    }


def test_no_text_is_clipped_and_no_names_collide(plots: list[Plot]) -> None:
    for plot in plots:
        plot.figure.draw_without_rendering()
        page = plot.figure.bbox
        for text in filter(lambda text: text.get_text(), visible_texts(plot.figure)):
            box = text.get_window_extent()
            inside = box.x0 >= page.x0 and box.y0 >= page.y0 and box.x1 <= page.x1 and box.y1 <= page.y1
            assert inside, (plot.name, text.get_text())
        for axes in plot.figure.axes:
            assert axes.get_window_extent().width / plot.figure.dpi > 1.2, plot.name  # inches left beside the names
            boxes = [text.get_window_extent() for text in axes.texts if text.get_text() != "greedy"]
            for one, other in itertools.combinations(boxes, 2):
                assert min(one.y1, other.y1) - max(one.y0, other.y0) < 1, plot.name  # pixels


def test_every_mode_has_its_name_and_its_one_colour_in_every_panel(plots: list[Plot]) -> None:
    expected = {mode: look.colour for mode, look in palette.looks(["base", *MODES]).items()}
    assert len(set(expected.values())) == len(expected)
    for plot in plots:
        for axes in plot.figure.axes:
            found = {text.get_text(): text.get_color() for text in axes.texts if text.get_text() != "greedy"}
            assert set(found) == set(MODES) | (
                set() if plot.name.startswith(("training", "entropy-change")) else {"base"}
            )
            assert found == {mode: expected[mode] for mode in found}
            assert set(found.values()) <= {line.get_color() for line in axes.lines}


def test_the_hard_figure_draws_the_means(plots: list[Plot], results: Results) -> None:
    metrics = results.metrics[(results.metrics["metric"] == "pass@k") & (results.metrics["training_mode"] == "soft")]
    axes = plots[0].figure.axes[0]
    colour = palette.looks([])["soft"].colour
    lines = [line for line in axes.lines if line.get_color() == colour]
    curve = next(line for line in lines if len(points_of(line)) == 6)
    of_set = metrics[metrics["test_set"] == "sums"]
    sampled = of_set[of_set["inference_mode"] == "hard-sample"].groupby("k")["value"]
    assert points_of(curve)[:, 0].tolist() == [1, 2, 4, 8, 16, 32]
    np.testing.assert_allclose(points_of(curve)[:, 1], sampled.mean().to_numpy())
    diamond = next(line for line in lines if line.get_marker() == "D")
    greedy = of_set[of_set["inference_mode"] == "hard-greedy"]["value"]
    np.testing.assert_allclose(points_of(diamond)[:, 1], [float(greedy.mean())])
    assert 0 < points_of(diamond)[0, 0] < 1
    of_mode = [
        drawn for drawn in axes.collections if same_color(tuple(np.asarray(drawn.get_edgecolor())[0, :3]), colour)
    ]
    (bar,) = [drawn.get_segments()[0] for drawn in of_mode if isinstance(drawn, LineCollection)]
    assert bar[:, 1].tolist() == [greedy.min(), greedy.max()]
    (band,) = [np.asarray(drawn.get_paths()[0].vertices) for drawn in of_mode if not isinstance(drawn, LineCollection)]
    for k, values in sampled:
        heights = band[band[:, 0] == k, 1]
        assert (heights.min(), heights.max()) == (values.min(), values.max())


def test_a_mean_ends_where_its_first_seed_ends(plots: list[Plot]) -> None:
    axes = plots[2].figure.axes[0]
    colour = palette.looks(MODES)["soft_noise1"].colour
    mean = next(line for line in axes.lines if line.get_color() == colour and line.get_linewidth() == 2)
    assert points_of(mean)[:, 0].max() <= 30  # of 60 steps


def test_svg_text_is_text_and_drawing_leaves_matplotlib_alone(made: Made) -> None:
    import matplotlib

    svg = (made[2] / "figures/pass-at-k-hard.svg").read_text()
    assert re.search(r"<text[^>]*>fuzzy</text>", svg)
    assert "sans-serif" in svg
    assert "<dc:date>" not in svg
    assert matplotlib.rcParams["svg.fonttype"] == matplotlib.rcParamsDefault["svg.fonttype"]


@given(st.lists(st.floats(-50, 250), max_size=12))
def test_spread_names_do_not_touch_and_keep_their_order(wanted: list[float]) -> None:
    placed = panels.spread(wanted, gap=10, high=200)
    assert len(placed) == len(wanted)
    assert all(-1e-6 <= place <= 200 + 1e-6 for place in placed)
    order = np.argsort(wanted, kind="stable")
    assert np.all(np.diff(np.array(placed)[order]) >= 10 - 1e-6)
    if len(wanted) == 1 and 0 <= wanted[0] <= 200:
        assert placed[0] == pytest.approx(wanted[0])


def simulated(colour: str, deficiency: str) -> np.ndarray:
    """CIE Lab of a colour as seen with a colour vision deficiency (Machado, Oliveira, Fernandes 2009, severity 1)."""
    matrix = {
        "none": np.eye(3),
        "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
        "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
        "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
    }[deficiency]  # fmt: skip
    xyz = [[0.412456, 0.357576, 0.180437], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]]
    ratio = np.array(xyz) @ np.clip(np.array(matrix) @ linear(colour), 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def linear(colour: str) -> np.ndarray:
    srgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_told_apart_by_colour_blind_readers_and_are_readable(theme: str) -> None:
    variables = palette.themes()[theme]
    paper = linear(variables["--paper"]) @ [0.2126, 0.7152, 0.0722]
    colours = [variables["--base"], *(variables[f"--series-{place}"] for place in range(6))]
    for deficiency in ("none", "protanopia", "deuteranopia", "tritanopia"):
        seen = [simulated(colour, deficiency) for colour in colours]
        distances = {
            pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(range(7), 2)
        }
        assert min(distances.values()) > 8
        assert (
            min(distance for pair, distance in distances.items() if max(pair) <= 3) > 20
        )  # base and the paper's modes
    for colour in [*colours, variables["--ink"], variables["--muted"]]:
        ink = linear(colour) @ [0.2126, 0.7152, 0.0722]
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5  # WCAG AA


# report.html


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.within: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.within = tag
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("href", "xlink:href"):
                self.links.append(str(value))
            elif name in ("src", "srcset", "data", "action", "poster"):
                self.loads.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        self.within = None

    def handle_data(self, data: str) -> None:
        if self.within not in ("script", "style"):
            self.text += data

    def dead_ends(self, folder: Path) -> list[str]:
        """Links that lead nowhere, neither within the page nor to a file beside it."""
        return [
            link for link in self.links
            if not (link[1:] in self.ids if link.startswith("#") else (folder / link).is_file())
        ]  # fmt: skip


def test_the_page_is_one_self_contained_file(made: Made) -> None:
    text = (made[2] / "report.html").read_text()
    page = Page(text)
    assert page.loads == []
    assert not page.tags & {"link", "img", "iframe", "object", "embed", "base"}
    assert "@import" not in text and "fetch(" not in text and "XMLHttpRequest" not in text
    assert len(page.ids) == len(set(page.ids))
    assert len(page.links) > 100
    assert page.dead_ends(made[2]) == []
    assert all(target[1:] in page.ids for target in re.findall(r"url\(['\"]?([^'\")]*)", text))
    beside = {link for link in page.links if not link.startswith("#")}
    written = {path.relative_to(made[2]).as_posix() for path in made[2].rglob("*.*")}
    assert written - beside == {"report.html", "tables/headline.txt"}, "every file beside the page has a link"
    assert not any(colour in re.sub(r"--[a-z0-9-]+: #[0-9a-f]{6};", "", text) for colour in palette.VARIABLES)


def test_the_page_says_what_was_run_and_what_to_beware_of(made: Made, tables: dict[str, Table]) -> None:
    page = Page((made[2] / "report.html").read_text())
    for what in (
        "training runs12", "seeds3", "runs begun28 Nov 2026 to 30 Nov 2026",
        "toy, sums, soft_noise1, seed 1 at step 30 (loss is not finite)",
        "The runs differ in device (cpu (4 cores) in 12 of 13 runs, gpu in 1 of 13 runs).", "No evidence".lower(),
        "0a1b2c3d4e5f", "2.13.0", "softsums2603079.31 min 13 s2done",
        "soft_noise1sums1303079.31 min 13 s2diverged at step 30",
        "learning_rate: 1.0e-05", "95 % bootstrap over 40 problems",
    ):  # fmt: skip
        assert what in page.text.replace("\n", ""), what
    assert "secret-host" not in page.text
    for table in tables.values():
        assert table.caption in page.text
        for row in table.rows:
            for mean, std in table.texts(row):
                assert mean in page.text
                assert not std or f"± {std}" in page.text
    for heading in ("Hard inference", "All inference modes", "Training", "Entropy", "Out of domain", "Provenance"):
        assert heading in page.text


def test_a_real_study_has_no_toy_note_and_gives_up_openly(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=("hard",), seeds=2, toy=False, problems=8, steps=8)
    path = tmp_path / spec["runs"][1]["path"] / "eval/sums/six-89ab4567.parquet"
    rows = pd.read_parquet(path)
    rows.loc[:2, "status"] = ["timeout", "error", "timeout"]
    rows.to_parquet(path)
    make_report(report_spec({**spec, "title": "<b>&"}), tmp_path / "out", tmp_path)
    text = (tmp_path / "out/report.html").read_text()
    assert "toy: a very small model" not in text
    assert "The reward gave up on 3 of 4,752 answers" in text
    assert "<h1>&lt;b&gt;&amp;</h1>" in text


@pytest.mark.parametrize(
    "shape",
    [
        {"modes": ()},
        {"choice_sets": (), "test_sets": ("sums",)},
        {"test_sets": ()},
        {"inference_modes": {"soft-greedy": INFERENCE_MODES["soft-greedy"]}},
        {"inference_modes": {"hard-sample": {**INFERENCE_MODES["hard-sample"], "samples": 1}}},
        {"inference_modes": {"hard-sample": {**INFERENCE_MODES["hard-sample"], "samples": 3}}},
        {"models": ("a", "b"), "train_sets": ("s", "t"), "seeds": 1, "inference_modes": HARD},
        {"models": ("a", "b"), "seeds": 1, "inference_modes": HARD},
    ],
    ids=["base only", "no choices", "no tests", "soft only", "one sample", "three samples", "two by two", "two models"],
)
def test_studies_of_every_shape_have_a_report(shape: dict[str, Any], tmp_path: Path) -> None:
    spec = write_study(tmp_path, **{"modes": ("hard", "soft"), "seeds": 2, "problems": 6, "steps": 4, **shape})
    make_report(report_spec(spec), tmp_path / "results/reports/demo", tmp_path)
    page = Page((tmp_path / "results/reports/demo/report.html").read_text())
    assert page.dead_ends(tmp_path / "results/reports/demo") == []
    assert "Report: " in shown(tmp_path / "results")


def test_many_inference_families_go_on_in_the_next_line(tmp_path: Path) -> None:
    modes = {
        **HARD,
        **{f"hard-sample-t{n}": {**HARD["hard-sample"], "temperature": n, "samples": 2} for n in range(2, 7)},
    }
    spec = write_study(tmp_path, modes=("hard",), seeds=1, problems=6, steps=4, inference_modes=modes)
    results = collect(study_of(spec), tmp_path)
    plots = {plot.name: plot for plot in figures.draw_all(study_of(spec), results.metrics, results.training)}
    for name, panels_of_set in (("pass-at-k--toy--sums", 6), ("entropy--toy--sums--sums", 7)):
        shown = [axes for axes in plots[name].figure.axes if axes.get_visible()]
        assert len({axes.get_position().x0 for axes in shown}) == figures.ACROSS
        titles = [axes.get_title("left") for axes in shown]
        assert len(set(titles)) == len(titles) == panels_of_set * (2 if "pass" in name else 1)
        assert all(len(axes.texts) >= 2 for axes in shown), name  # base and hard have their lines in every one


def test_runs_with_sets_of_their_own_share_a_report(tmp_path: Path) -> None:
    spec = write_study(
        tmp_path, train_sets=("s", "t"), modes=("hard",), seeds=2, problems=6, steps=4, inference_modes=HARD
    )
    tests = spec["tests"]
    for run in spec["runs"]:
        run["tests"] = (
            tests if run["train_set"] == "none" else {"sums": tests["sums"]} if run["train_set"] == "s" else {}
        )
        run["choices"] = spec["choices"] if run["train_set"] == "t" else {}
    results = collect(study_of(spec), tmp_path)
    study = study_of(spec)
    table = make_tables(study, results.metrics)["hard-inference"]
    shown = {row.train_set: [mean != "–" for mean, _ in table.texts(row)] for row in table.rows}
    assert shown == {"none": [True] * 6, "s": [True] * 3 + [False] * 3, "t": [False] * 6}
    assert [table.n_text(row) for row in table.rows] == ["1", "2", "0"]
    hard = next(figures.draw_all(study, results.metrics, results.training))
    assert [axes.get_visible() for axes in hard.figure.axes] == [True] * 4  # base everywhere
    make_report(report_spec(spec), tmp_path / "out", tmp_path)


def test_what_a_report_no_longer_has_is_removed(made: Made, tmp_path: Path) -> None:
    root, spec, out = made
    shutil.copytree(out, tmp_path / "out")
    make_report(report_spec({**spec, "choices": {}, "tests": {"sums": spec["tests"]["sums"]}}), tmp_path / "out", root)
    names = {path.name for path in (tmp_path / "out").rglob("*.*")}
    assert {"report.html", "metrics.csv", "inference-modes-sums.md", "entropy--toy--sums--sums.svg"} <= names
    assert not any("long-sums" in name or "out-of-domain" in name for name in names)


# bad files


def drop_rows(path: Path, keep: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    keep(pd.read_parquet(path)).to_parquet(path, index=False)


CELL = "eval/sums/six-89ab4567.parquet"
ENTROPY = "eval/sums/six-89ab4567.entropy.csv"
CHOICES = "choices/order-cdef0123.parquet"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (CELL, Path.unlink, "is missing"),
        (CELL, lambda path: path.write_text("no parquet"), "not a readable parquet file"),
        (CELL, lambda path: path.write_bytes(path.read_bytes()[:200]), "not a readable parquet file"),
        (CELL, lambda path: drop_rows(path, lambda rows: rows.drop(columns="cot_tokens")), "no column 'cot_tokens'"),
        (CELL, lambda path: drop_rows(path, lambda rows: rows[:0]), "no rows"),
        (CELL, lambda path: drop_rows(path, lambda rows: rows[:-1]), "31 rows (31 samples) of problem 'sums-00005'"),
        (CELL, lambda path: drop_rows(path, lambda rows: rows.assign(sample=0)), "32 rows (1 samples)"),
        (CELL, lambda path: drop_rows(path, lambda rows: pd.concat([rows, rows[-1:]])), "33 rows (32 samples)"),
        (CELL, lambda path: drop_rows(path, lambda rows: rows.assign(inference_mode="warm")), "'warm'"),
        (
            CELL,
            lambda path: drop_rows(path, lambda rows: rows[rows["inference_mode"] != "soft-sample"]),
            "'soft-sample'",
        ),
        (
            CELL,
            lambda path: drop_rows(path, lambda rows: rows[rows["problem_id"] != "sums-00003"]),
            "problems of test set",
        ),
        (
            CELL,
            lambda path: drop_rows(path, lambda rows: rows.assign(correct=None)),
            "empty values in column 'correct'",
        ),
        (CHOICES, Path.unlink, "is missing"),
        (CHOICES, lambda path: drop_rows(path, lambda rows: pd.concat([rows, rows[:1]])), "problems of choice set"),
        (ENTROPY, Path.unlink, "is missing"),
        (ENTROPY, lambda path: path.write_text("a,b\n1,2\n"), "not an entropy profile"),
        (ENTROPY, lambda path: path.write_text(""), "not an entropy profile"),
        (ENTROPY, lambda path: path.write_text(path.read_text() * 2), "entropy"),
        ("manifest.json", Path.unlink, "is missing"),
        ("manifest.json", lambda path: path.write_text("{"), "cannot be read (Expecting"),
        ("manifest.json", lambda path: path.write_text("[]"), "cannot be read (no JSON object)"),
        ("manifest.json", lambda path: path.write_text("{}"), "is not a run's manifest"),
        ("metrics.jsonl", Path.unlink, "is missing"),
        ("metrics.jsonl", lambda path: path.write_text('{"step": 0}\n{"step": 1}\n'), "line 2"),
        ("metrics.jsonl", lambda path: path.write_text("[]\n"), "line 1"),
    ],
)
def test_a_bad_file_is_one_clear_line_and_harms_nothing(
    file: str, damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    spec = write_study(tmp_path, modes=("hard",), seeds=1, problems=6, steps=4)
    path = tmp_path / spec["runs"][1]["path"] / file
    damage(path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.html").write_text("older")
    with pytest.raises(UserError) as caught:
        make_report(report_spec(spec), tmp_path / "out", tmp_path)
    assert message in str(caught.value)
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]
    assert (tmp_path / "out/report.html").read_text() == "older"


# the terminal, and what is imported


def shown(results: Path, study: str = "demo") -> str:
    return show(results, study)


def test_show_prints_the_hard_inference_table_in_80_columns(made: Made, tables: dict[str, Table]) -> None:
    text = shown(made[0] / "results")
    lines = text.splitlines()
    assert max(map(len, lines[:-3])) <= 80
    table = tables["hard-inference"]
    for row in table.rows:
        texts = [f"{mean} ± {std}" if std else mean for mean, std in table.texts(row)]
        for place in (0, 3):  # one line per test set
            expected = [*table.marked_labels(row), table.n_text(row), *texts[place : place + 3]]
            assert any(line.split() == " ".join(expected).split() for line in lines), expected
    assert "report.html" in text.replace("\n", "")
    assert "† includes a diverged run" in text


def test_show_folds_long_names_and_never_cuts_a_number(tmp_path: Path) -> None:
    name, mode = "a-training-mode-whose-name-is-longer-than-forty-characters", "hard-sample-of-temperature-0.25"
    inference_modes = {"hard-greedy": HARD["hard-greedy"], mode: HARD["hard-sample"]}
    shape: dict[str, Any] = {"test_sets": ("sums",), "choice_sets": (), "problems": 40, "steps": 4}
    spec = write_study(tmp_path, modes=("hard", name), inference_modes=inference_modes, **shape)
    make_report(report_spec(spec), tmp_path / "results/reports/demo", tmp_path)
    lines = shown(tmp_path / "results").splitlines()
    table = make_tables(study_of(spec), collect(study_of(spec), tmp_path).metrics)["hard-inference"]
    for row in table.rows:
        texts = [f"{mean} ± {std}" if std else mean for mean, std in table.texts(row)]
        assert any(" ".join(line.split()).endswith(" ".join([table.n_text(row), *texts])) for line in lines), texts
    assert max(len(line) for line in lines[:-3]) <= 80
    assert name in re.sub(r"\s|\d+\.\d ± \d+\.\d|\b3 ", "", "".join(lines))


def test_show_of_a_study_without_report_names_those_there_are(made: Made) -> None:
    with pytest.raises(UserError, match=r"no report of study 'dmeo' .* demo"):
        show(made[0] / "results", "dmeo")


def test_a_report_needs_no_torch_and_show_no_pandas(made: Made) -> None:
    root, spec, _ = made
    small = report_spec({**spec, "tests": {"sums": spec["tests"]["sums"]}})
    (root / "spec.json").write_text(small.as_json())
    code = """
import sys
from pathlib import Path
from softtok.config.specs import ReportSpec, parse
from softtok.report.page import make_report
from softtok.report.terminal import show
root = Path(sys.argv[1])
show(root / "results", "demo")
assert not {"torch", "transformers", "pandas", "matplotlib", "seaborn", "rich"} & set(sys.modules)
make_report(parse(ReportSpec, str(root / "spec.json")), root / "light", root)
assert "pandas" in sys.modules
assert not {"torch", "transformers", "math_verify", "sympy", "datasets"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
