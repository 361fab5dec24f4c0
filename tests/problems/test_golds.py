"""Golds are judged by what a model would write: odd ones are named, counted and told of, and none is lost for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softtok.problems.golds import forms
from softtok.problems.spec import Kind
from tests.support.data_files import Row, prepared, write


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def judged(golds: list[str], kind: Kind = "test", judged_by: str = "math") -> tuple[list[Row], Row]:
    """Returns (problems, manifest) of a set with these golds."""
    path = write(Path("x.jsonl"), [{"q": f"question {n}", "a": gold} for n, gold in enumerate(golds)])
    mapping: Row = {"question": "q", "gold": {"field": "a"}, "judged_by": judged_by}
    return prepared(kind, {"file": {"path": str(path)}}, **mapping)


@pytest.mark.parametrize(
    ("gold", "name", "plain"),
    [
        ("18 dollars", "units", "18"),
        ("5 cm", "units", "5"),
        ("5cm", "units", "5"),
        ("$18", "units", "18"),
        (r"\$1,250.50", "units", "1,250.50"),
        ("€ 3", "units", "3"),
        (r"12\text{ cm}^2", "units", "12"),
        (r"12 \, \mathrm{cm}", "units", "12"),
        ("90°", "units", "90"),
        (r"90^\circ", "units", "90"),
        (r"90^{\circ}", "units", "90"),
        ("50%", "units", "50"),
        (r"50\%", "units", "50"),
        ("-3.5 m/s", None, None),  # one letter may be a variable
        ("2.5 hours", "units", "2.5"),
        ("9 (apples)", "parentheses", "9"),
        ("x + 1 (for all x in it)", "parentheses", "x + 1"),
        ("1e-07", "e-notation", "0.0000001"),
        ("6.02E23", "e-notation", "602000000000000000000000"),
        ("1,234", "thousands separators", "1234"),
        ("1,234,567.8", "thousands separators", "1234567.8"),
        (r"12{,}345", "thousands separators", "12345"),
        (r"12\,345", "thousands separators", "12345"),
        (r"12,\!345", "thousands separators", "12345"),
        ("12 345", "thousands separators", "12345"),
        ("['5']", "a list in a text", "5"),
        ("yes", "words", None),
        ("New York", "words", None),
        ("nan", "no value", None),
        ("None", "no value", None),
        ("N/A", "no value", None),
        ("4\0", "control characters", None),
        ("42", None, None),
        ("-0.5", None, None),
        ("1,2", None, None),
        ("(1,2)", None, None),
        ("f(x)", None, None),
        ("2x", None, None),
        ("3(x+1)", None, None),
        (r"\frac{1}{2}", None, None),
        (r"2\sqrt{3}", None, None),
        (r"2\pi", None, None),
        ("[1,234)", None, None),
        ("A", None, None),
        ("2^{10}", None, None),
        (r"\text{east}", None, None),
    ],
)
def test_forms(gold: str, name: str | None, plain: str | None) -> None:
    assert [(form.name, form.plain) for form in forms(gold)] == ([] if name is None else [(name, plain)])


def test_what_a_model_would_write_decides_whether_a_gold_is_flagged() -> None:
    golds = ["9 (apples)", "1,234", r"5\text{ cm}", "7"]
    problems, manifest = judged(golds, judged_by="math")
    assert [problem["gold"] for problem in problems] == [[gold] for gold in golds], "a gold stays as it is"
    (flagged,) = manifest["flagged"]
    assert flagged == {"id": "row0", "reason": "gold '9 (apples)': parentheses, the answer '9' is wrong"}
    assert manifest["forms"] == {"parentheses": 1, "thousands separators": 1, "units": 1}


def test_no_problem_is_dropped_for_the_form_of_its_gold() -> None:
    golds = ["9 (apples)", "yes", "nan", "1e-07", "1,234"]
    problems, manifest = judged(golds, "train")
    assert len(problems) == len(golds)
    assert manifest["dropped"] == []


def test_the_last_line_of_the_log_says_what_was_kept_dropped_and_flagged_and_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    judged(["7"] * 3 + ["9 (apples)", "8 (pears)", "", "( ,", "1,234", "yes"], "train")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("softtok: data set x.jsonl: 7 of 9 rows kept, 2 dropped (")
    assert "no gold 1" in last and "a gold that parses only as a string 1" in last
    assert "3 flagged (parentheses 2, words 1)" in last
    assert last.endswith("; golds written with parentheses 2, thousands separators 1, words 1")


def test_what_was_dropped_and_flagged_is_counted_for_the_report() -> None:
    _, manifest = judged([*map(str, range(17)), "9 (apples)", "9 (pears)", ""], "train")
    assert manifest["reasons"] == {"dropped": {"no gold": 1}, "flagged": {"parentheses": 2}}


@pytest.mark.parametrize("judged_by", ["exact", "function", "choice"])
def test_forms_are_those_of_mathematics(judged_by: str) -> None:
    _, manifest = judged(["A", "B"], judged_by=judged_by)
    assert (manifest["forms"], manifest["flagged"]) == ({}, [])


def test_a_gold_that_stands_for_nothing_is_flagged_under_any_reward() -> None:
    for judged_by in ("exact", "function"):
        _, manifest = judged(["nan", "Paris"], judged_by=judged_by)
        assert manifest["flagged"] == [{"id": "row0", "reason": "gold 'nan': no value"}]


def test_only_kept_problems_are_counted() -> None:
    _, manifest = judged(["9 (apples)", "1,234"] * 2)
    first: Any = prepared(
        "train", {"file": {"path": "x.jsonl"}}, "out/few.parquet", question="q", gold={"field": "a"}, limit=1
    )
    assert manifest["forms"] == {"parentheses": 2, "thousands separators": 2}
    assert first[1]["forms"] == {"parentheses": 1}
