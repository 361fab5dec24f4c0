"""What fields mean: templates, rules for golds, options with labels of their own, and paths from the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from softtok.errors import UserError
from softtok.problems.fields import own_labels
from softtok.storage.files import read_json
from tests.support.data_files import Row, from_text

SVAMP = [
    {"Body": "Mia picked 7 red apples and 2 green ones.", "Question": "How many did she pick?", "Answer": "9 (apples)"},
    {"Body": "A bus had 31 people, 12 got off.", "Question": "How many are left?", "Answer": "19 (people)"},
    {"Body": "Four share 18 cards and 2 jokers.", "Question": "How many has each?", "Answer": "5"},
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(rows: list[Row], kind: Any = "test", **fields: Any) -> list[Row]:
    return from_text(kind, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows), **fields)


def refused(rows: list[Row], kind: Any = "test", **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        problems(rows, kind, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestTemplates:
    @pytest.mark.parametrize(
        "rule", [{"before": " ("}, {"before": "("}, {"pattern": "[0-9]+"}, {"pattern": r"^(\d+)\b.*"}]
    )
    def test_a_question_of_two_fields_and_a_number_with_a_unit(self, rule: Row) -> None:
        found = problems(SVAMP, question="{Body} {Question}", gold={"field": "Answer", **rule})
        assert [problem["gold"] for problem in found] == [["9"], ["19"], ["5"]]
        assert found[0]["question"] == "Mia picked 7 red apples and 2 green ones. How many did she pick?"

    def test_other_braces_stay_and_paths_are_fields_too(self) -> None:
        rows: list[Row] = [{"a": [{"b": "x^{2}"}, {"b": 7}], "c": None, "gold": "1"}]
        found = problems(rows, question=r"{c} Find \boxed{} of {a.0.b} + {a.-1.b}: { }{", gold={"field": "gold"})
        assert found[0]["question"] == r"Find \boxed{} of x^{2} + 7: { }{"

    def test_an_unknown_field_in_a_template_is_refused(self) -> None:
        message = refused(SVAMP, question="{Body} {Qestion}", gold={"field": "Answer"})
        assert "no field 'Qestion'; did you mean 'Question'?" in message

    def test_a_field_that_some_rows_lack_is_null_there(self) -> None:
        rows: list[Row] = [{"q": "x"}] * 30 + [{"q": "y", "hint": "(easy)", "a": 1}]
        found = problems(rows, "train", question="{q} {hint}", gold={"field": "a"})
        assert [problem["question"] for problem in found] == ["y (easy)"]


def test_messages_are_one_line_whatever_fields_are_called() -> None:
    for row in ({"a\nb": "x", "c\r": {"d\n": 1}}, {f"field {n}": n for n in range(500)}):
        assert len(refused([row], question="q", gold={"field": "a"})) < 1000
        assert "is an object" in refused([{"q": {"e\nf": "x"}, "a": 1}], question="q", gold={"field": "a"})


class TestGoldRules:
    @pytest.mark.parametrize(
        ("value", "rule", "gold"),
        [
            ("9 (apples)", {"before": "("}, "9"),
            ("so #### 9 (apples) (all)", {"after": "####", "before": "("}, "9"),
            ("A: 1\nA: 2\nso", {"after": "A:", "before": "\n"}, "2"),
            ("9", {"before": "("}, "9"),
            ("no marker", {"after": "####", "before": "("}, None),
            ("72 (cm^2)", {"pattern": "[0-9]+"}, "72"),
            ("x = -3.5 m", {"pattern": r"=\s*(-?[0-9.]+)"}, "-3.5"),
            ("none", {"pattern": "[0-9]+"}, None),
            ("a or b", {"pattern": "(c)|a"}, None),
            (r"so \boxed{9 \text{ apples}}", {"boxed": True, "pattern": "[0-9]+"}, "9"),
            (r"so $\boxed{\text{A}}$ or \fbox{7}", {"boxed": True}, "7"),
            (r"\boxed 5", {"boxed": True}, "5"),
            (r"\boxed{\frac{1}{2}", {"boxed": True}, None),
            (r"\boxed{3} then $\boxed{4}$", {"boxed": True}, "4"),
            (r"{\text{so \boxed{6}}", {"boxed": True}, "6"),
            (["9 (a)", "8 (b)"], {"before": "("}, "9"),
        ],
    )
    def test_rules(self, value: Any, rule: Row, gold: str | None) -> None:
        rows = [{"q": "x", "a": value}, {"q": "y", "a": r"####c=1,A: 1 \boxed{1}"}]
        found = problems(rows, "train", question="q", gold={"field": "a", **rule})
        golds = [problem["gold"][0] for problem in found if problem["question"] == "x"]
        assert golds == ([] if gold is None else [gold])

    @pytest.mark.parametrize("marker", [".", "(", "\\", "[0-9]"])
    def test_a_marker_is_no_pattern(self, marker: str) -> None:
        rows: list[Row] = [{"q": "x", "a": f"1{marker}2{marker}3"}]
        assert problems(rows, question="q", gold={"field": "a", "after": marker})[0]["gold"] == ["3"]
        assert problems(rows, question="q", gold={"field": "a", "before": marker})[0]["gold"] == ["1"]


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            ["A)5", "B)6", "C)7", "D)8"],
            ["(a) 5", "(b) 6", "(c) 7", "(d) 8"],
            ["A. 5", "B. 6", "C. 7", "D. 8"],
            ["A.5", "B.6", "C.7", "D.8"],
            ["A: 5", "B: 6", "C: 7", "D: 8"],
            ["A）5", "B）6", "C）7", "D）8"],
            ["[A] 5", "[B] 6", "[C] 7", "[D] 8"],
            {"A": "5", "B": "6", "C": "7", "D": "8"},
            ["5", "6", "7", "8"],
        ],
    )
    @pytest.mark.parametrize(("answer", "place"), [("C", 2), ("A", 0), ("c", 2), ("(C)", 2), (2, 2)])
    def test_letters_of_their_own_are_not_doubled(self, options: Any, answer: Any, place: int) -> None:
        (found,) = problems(
            [{"q": "x", "o": options, "r": answer}], "choice", question="q", choices={"field": "o"}, answer="r"
        )
        assert (found["choices"], found["answer"]) == (["5", "6", "7", "8"], place)

    def test_in_another_order_the_label_counts(self) -> None:
        rows: list[Row] = [
            {"q": "x", "o": ["B) six", "A) five"], "r": "A"},
            {"q": "y", "o": ["2. b", "1. a"], "r": "2"},
        ]
        found = problems(rows, "choice", question="q", choices={"field": "o"}, answer="r")
        assert [(problem["choices"], problem["answer"]) for problem in found] == [(["six", "five"], 1), (["b", "a"], 0)]

    @pytest.mark.parametrize(
        "options",
        [
            ["1.5", "2.5", "3.5"],
            ["1, 2", "2, 3"],
            ["A dog", "B flat"],
            ["A. x", "B. y", "D. z"],
            ["A. x", "y"],
            ["A", "B"],
            ["A.B. Yeats", "B.C. 30"],
            ["(1, 2)", "(2, 3)"],
        ],
    )
    def test_what_only_looks_like_a_letter_stays(self, options: list[str]) -> None:
        assert own_labels(options) is None

    def test_an_empty_option_is_flagged(self) -> None:
        rows: list[Row] = [{"q": "x", "o": ["a", None], "r": 0}]
        problems(rows, "choice", question="q", choices={"field": "o"}, answer="r")
        assert read_json(Path("rows.jsonl.out.json"))["reasons"]["flagged"] == {"an option is empty": 1}

    def test_labels_must_be_as_many_as_options(self) -> None:
        mapping: Row = {"question": "q", "choices": {"field": "o", "labels": "l"}, "answer": "r"}
        assert "labels" in refused([{"q": "x", "o": ["a", "b"], "l": ["1"], "r": "1"}], "choice", **mapping)
