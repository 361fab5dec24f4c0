"""The first screen of a report: claims in a line each, differences to hard and to the base, and the best of rows."""

import re
import statistics
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from softtok.report.claim_controls import controlled, remark
from softtok.report.claim_lines import claim_lines, forest, overall, scales
from softtok.report.claims import CONTRADICTED, INCONCLUSIVE, NOT_RUN, SUPPORTED, Verdict, contrasts, verdicts
from softtok.report.collect import collect
from softtok.report.differences import difference, step_of, with_differences
from softtok.report.metrics import t_interval_of
from softtok.report.page import make_report
from softtok.report.palette import looks
from softtok.report.questions import QUESTIONS, questions
from softtok.report.study import Row, Study
from softtok.report.tables import Table, make_tables, to_csv
from tests.support.report_specs import report_spec, study_of
from tests.support.synthetic_runs import write_study

Made = tuple[Study, pd.DataFrame, dict[str, Table]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("study")
    study = study_of(write_study(root, models=("a", "b"), problems=40, steps=6, cot=16))
    metrics = collect(study, root).metrics
    return study, metrics, with_differences(make_tables(study, metrics), study, metrics)


def of_seeds(metrics: pd.DataFrame, mode: str, test_set: str = "sums", k: int = 32) -> dict[int, float]:
    wanted = {"model": "a", "training_mode": mode, "test_set": test_set, "inference_mode": "hard-sample", "k": k}
    rows = metrics[(metrics["metric"] == "pass@k")]
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    return dict(zip(rows["seed"], rows["value"], strict=True))


def test_differences_are_paired_by_seed_and_the_base_is_one_checkpoint(made: Made) -> None:
    _, metrics, tables = made
    table = tables["hard-inference"]
    column = next(column for column in table.columns if column.label == "hard-sample pass@32")
    soft, hard, base = (of_seeds(metrics, mode) for mode in ("soft", "hard", "base"))
    for other, expected in (
        ("hard", [soft[seed] - hard[seed] for seed in range(3)]),
        ("base", [soft[seed] - base[0] for seed in range(3)]),
    ):
        found = table.differences[other][Row("a", "sums", "soft"), column]
        std = max(statistics.stdev(expected), 100 / 40)  # seeds that agree are one problem of 40 apart
        low, high = t_interval_of(statistics.mean(expected), std, 3)
        assert found.n == 3
        assert [found.mean, found.low, found.high] == pytest.approx([statistics.mean(expected), low, high])
    assert (Row("a", "sums", "hard"), column) not in table.differences["hard"]
    assert not any(row.training_mode == "base" for of in table.differences.values() for row, _ in of)
    line = next(line for line in to_csv(table).splitlines() if line.startswith("a,sums,soft,sums,hard-sample,pass@32"))
    assert f"{table.differences['base'][Row('a', 'sums', 'soft'), column].mean:.6f}" in line.split(",")


def test_only_what_counts_problems_has_a_least_spread(made: Made) -> None:
    study, _, tables = made
    columns = [column for name in ("hard-inference", "out-of-domain") for column in tables[name].columns]
    steps = {column.label: step_of(study, column, {column.test_set: 40}) for column in columns}
    assert steps["hard-greedy pass@1"] == steps["hard-sample pass@32"] == steps["accuracy"] == 100 / 40
    assert steps["hard-sample pass@1"] == steps["NLL per token"] == 0.0


def test_a_difference_needs_the_same_seeds_and_agreement_is_no_certainty() -> None:
    found = difference({0: 10.0, 1: 20.0, 2: 30.0}, {2: 25.0, 1: 18.0, 7: 99.0}, one_checkpoint=False)
    assert found is not None and (found.n, found.mean) == (2, 3.5)
    assert difference({0: 10.0}, {1: 10.0}, one_checkpoint=False) is None
    single = difference({0: 10.0}, {0: 7.0}, one_checkpoint=True)
    assert single is not None and (single.n, single.mean, single.low) == (1, 3.0, None)
    same = difference({0: 5.0, 1: 5.0}, {0: 3.0, 1: 3.0}, one_checkpoint=False, step=2.5)
    assert same is not None and same.low is not None and same.low < 0 < 2 < (same.high or 0)


def test_the_best_of_a_model_and_train_set_is_marked(made: Made) -> None:
    _, _, tables = made
    for table in (tables["hard-inference"], tables["out-of-domain"]):
        for column in table.columns:
            for model in ("a", "b"):
                of = {row: round(table.cells[row, column].mean, column.digits) for row in table.rows
                      if row.model == model and row.training_mode != "base"}  # fmt: skip
                best = min(of.values()) if column.metric == "nll_per_token" else max(of.values())
                marked = {row for row, of_column in table.best if of_column == column and row.model == model}
                assert marked == {row for row, value in of.items() if value == best}


def judged(*outcomes: str) -> list[Verdict]:
    """Verdicts on the tests of C3 with made-up effects."""
    tests = [contrast for contrast in contrasts() if contrast.claim == "C3"]
    return [
        Verdict(test, outcome, n=3, effect=place + 1.0, low=place - 1.0, high=place + 3.0, p=0.1, p_holm=0.1 * place)
        for place, (test, outcome) in enumerate(zip(tests, outcomes, strict=False))
    ]


def test_a_claim_is_as_good_as_its_worst_test() -> None:
    assert overall(judged(SUPPORTED, SUPPORTED)) == SUPPORTED
    assert overall(judged(SUPPORTED, INCONCLUSIVE)) == INCONCLUSIVE
    assert overall(judged(INCONCLUSIVE, CONTRADICTED, SUPPORTED)) == CONTRADICTED
    assert overall(judged(NOT_RUN, NOT_RUN)) == NOT_RUN
    assert overall(judged(SUPPORTED, NOT_RUN)) == INCONCLUSIVE
    found = judged(SUPPORTED, INCONCLUSIVE, INCONCLUSIVE, SUPPORTED)
    line = next(line for line in claim_lines(found, {}, looks(["hard"]), {}) if line.name == "C3")
    assert (line.verdict, line.count, line.deciding) == (INCONCLUSIVE, "2 of 4 tests", found[2])
    assert all(other.verdict == NOT_RUN for other in claim_lines(found, {}, {}, {}) if other.name != "C3")


def test_a_forest_shows_every_test_at_its_place_and_what_goes_beyond_as_an_arrow() -> None:
    one, two = judged(SUPPORTED, SUPPORTED)
    wide = replace(two, low=-99.0)
    drawn = forest([one, wide], limits := scales([one, wide]), [None, None])
    assert limits == {"points": 3.0}
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert places == pytest.approx([90 + 82 / 3, 90 + 2 * 82 / 3], abs=0.1)
    assert drawn.count("L8.0 ") == 1, "one arrow, at the left end"
    assert "+2.0 (−99.0 to +4.0)" in drawn, "a reader who cannot see it is told the numbers"


def test_hard_training_takes_the_test_of_staying_near(made: Made) -> None:
    study, metrics, _ = made
    beside = controlled(study, metrics)
    assert {name: len(tests) for name, tests in beside.items()} == {"C5": 3, "C6": 3}
    main = {(one.contrast.claim, one.contrast.run): one for one in verdicts(study, metrics)}
    hard = beside["C5"][0]
    assert hard.effect == main["C5", "hard"].effect and hard.contrast.margin == 0.05
    direct = beside["C5"][1]
    assert direct.effect == pytest.approx((main["C5", "soft"].effect or 0) - (main["C5", "hard"].effect or 0), abs=1e-6)
    assert "hard does not pass this test" in remark(beside["C5"])
    # Where hard training changes as little as soft training does, it would pass as well, and the line says so.
    tame = metrics.copy()
    nll = tame["metric"] == "nll_per_token"
    tame.loc[nll, "value"] = 1.1 + 0.001 * tame.loc[nll, "seed"].astype(float)
    told = remark(controlled(study, tame)["C5"])
    assert told.startswith("hard would pass as well (+0.001") and "soft − hard +0.000" in told


def test_controls_stand_below_the_question_that_they_answer(tmp_path: Path) -> None:
    modes = ("hard", "soft", "soft-answer", "hard-g8", "soft-cold", "odd")
    sketch = write_study(tmp_path, modes=modes, problems=12, steps=4, seeds=2)
    soft = {"tokens": "soft", "temperature": 0.5, "noise_scale": 0.33}
    sketch["settings"] = {
        "soft-answer": soft | {"training": {"cot_term": False}},
        "hard-g8": {"tokens": "hard", "training": {"samples_per_prompt": 8}},
        "soft-cold": soft | {"temperature": 0.1},
        "odd": soft | {"training": {"gradient_clip": 2.0}},
    }
    study, metrics = study_of(sketch), collect(study_of(sketch), tmp_path).metrics
    table = make_tables(study, metrics)["hard-inference"]
    found = questions(study, table, metrics)
    assert [(one.text, [(answer.row.training_mode, answer.reference) for answer in one.answers]) for one in found] == [
        (QUESTIONS["cot_term"], [("soft-answer", "soft")]),
        (QUESTIONS["samples_per_prompt"], [("hard-g8", "hard")]),
        (QUESTIONS["temperature"], [("soft-cold", "soft")]),
        ("What does gradient clip change?", [("odd", "soft")]),
    ]
    greedy = metrics[(metrics["inference_mode"] == "hard-greedy") & (metrics["metric"] == "pass@k")]
    values = greedy[greedy["test_set"] == "sums"].set_index(["training_mode", "seed"])["value"]
    apart = (values["soft-answer"] - values["soft"]).mean()
    assert found[0].answers[0].texts[0][0] == f"{apart:+.1f}".replace("-", "−")
    make_report(report_spec(sketch), tmp_path / "out", tmp_path)
    text = (tmp_path / "out/report.html").read_text()
    assert text.index(QUESTIONS["cot_term"]) < text.index(QUESTIONS["samples_per_prompt"])


def test_the_page_has_claims_and_differences_before_everything_else(made: Made, tmp_path: Path) -> None:
    spec = write_study(tmp_path, problems=12, steps=4)
    make_report(report_spec(spec), tmp_path / "out", tmp_path)
    text = (tmp_path / "out/report.html").read_text()
    glance, headline = text.index('<section id="answers">'), text.index('<section id="headline">')
    assert glance < headline < text.index('<section id="modes">') < text.index('<section id="claims">')
    first = text[glance:headline]
    for name in ("C1 Parity", "C5 Softer touch", "hard ", "not run", "n = 3"):
        assert name in first
    assert text[headline:].index("minus hard") < text[headline:].index("</table>")
