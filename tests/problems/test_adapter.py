"""Data adapters, the columns that rewards get, and the warning of a set of words under the reward of mathematics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from softtok import plugins
from softtok.errors import UserError
from softtok.plugins import Reference
from softtok.problems.adapter import DOOR
from softtok.problems.prepare import prepare
from softtok.problems.spec import ADAPTED, ADAPTED_CHOICES, DataSpec, FileRows, GoldRule, Kind, OpenFields

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def adapter(text: str) -> Reference:
    Path("mine.py").write_text(text, encoding="utf-8")
    found = plugins.locate("mine.py:f", DOOR)
    assert isinstance(found, Reference)
    return found


def prepared(kind: Kind, rows: list[Row], code: str | None = None, **more: Any) -> tuple[list[Row], Row]:
    """Returns (rows, manifest) of a set that an adapter with this code makes; without code it is mapped by fields."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = DataSpec(
        kind=kind,
        source=FileRows(path="rows.jsonl", format=None, columns=None, sha256=None),
        adapter=adapter(code) if code else None,
        **{
            "fields": ADAPTED_CHOICES if kind == "choice" else ADAPTED,
            "limit": None,
            "exclude": {},
            "judged_by": "math",
            "columns": False,
            "version": 1,
        }
        | more,
    )
    out = Path("set.parquet")
    prepare(DataSpec.model_validate_json(spec.as_json()), out, {}, None)
    return pq.read_table(out).to_pylist(), json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


def refused(kind: Kind, rows: list[Row], code: str) -> str:
    with pytest.raises(UserError) as caught:
        prepared(kind, rows, code)
    assert "\n" not in str(caught.value)
    assert not Path("set.parquet").exists()
    return str(caught.value)


ROWS: list[Row] = [
    {"Body": "There are 9.", "Question": "How many?", "Answer": "9 (apples)"},
    {"Body": "", "Answer": ""},
]
JOINED = """
import re
def f(row):
    if not row["Answer"]:
        return None
    return {"question": row["Body"] + " " + row["Question"], "gold": re.match(r"\\d+", row["Answer"])[0], "unit": "x"}
"""


def test_two_fields_are_joined_and_a_number_is_cut_out() -> None:
    problems, manifest = prepared("train", ROWS, JOINED)
    assert problems == [{"id": "row0", "question": "There are 9. How many?", "gold": ["9"]}]
    assert manifest["dropped"] == [{"id": "row1", "reason": "the adapter returned None"}]
    assert (manifest["rows"], manifest["source_rows"], manifest["warnings"]) == (1, 2, [])


def test_a_test_set_keeps_every_row() -> None:
    said = refused("test", ROWS, JOINED)
    assert said.startswith("mine.py, line 3: f returns None for data set rows.jsonl, row 1; ")


def test_a_limit_stops_the_adapter() -> None:
    rows: list[Row] = [{"n": 1}, {"n": 2}, {"n": 0}]
    code = "def f(row): return {'question': f'{1 / row[\"n\"]}?', 'gold': '1'}"
    assert len(prepared("test", rows, code, limit=2)[0]) == 2


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def f(row):\n    return {}[0]\n", "mine.py, line 2: f raises KeyError: 0 for data set rows.jsonl, row 0"),
        ("def f(row):\n    raise SystemExit\n", "mine.py, line 2: f raises SystemExit for"),
        ("1 / 0\ndef f(row): ...\n", "mine.py, line 1: f raises ZeroDivisionError"),
        ("def f(row): return 5\n", "f returns 5 for data set rows.jsonl, row 0; give a dictionary"),
        ("def f(row): return {'question': 'a'}\n", "f returns no 'gold' for"),
        ("def f(row): return {'question': 5, 'gold': 'a'}\n", "f returns 'question': 5 for"),
        ("def f(row): return {'question': 'a', 'gold': 5}\n", "a text or a list of texts is wanted"),
        ("def f(row): return {'question': 'a', 'gold': ['1', 2]}\n", "f returns 'gold': ['1', 2]"),
        ("def f(row): return {'question': 'a', 'gold': '1', 'x': {1}}\n", "row 0: its columns are not JSON"),
        ("f = 'text'\n", "f is str, not a function"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_row(code: str, says: str) -> None:
    assert says in refused("train", ROWS, code)


def test_the_signature_is_seen_when_the_configuration_is_read() -> None:
    with pytest.raises(UserError, match=r"mine\.py, line 1: f\(line\) has other arguments"):
        adapter("def f(line): ...")


def test_an_edited_adapter_is_refused() -> None:
    reference = adapter(JOINED)
    Path("mine.py").write_text(JOINED + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="has changed since"):
        plugins.read(reference)


def test_choice_sets() -> None:
    code = "def f(row): return {'question': row['q'], 'choices': ['a', 'b'], 'answer': row['right']}"
    assert prepared("choice", [{"q": "x", "right": "B"}, {"q": "y", "right": 0}], code)[0] == [
        {"id": "row0", "question": "x", "choices": ["a", "b"], "answer": 1},
        {"id": "row1", "question": "y", "choices": ["a", "b"], "answer": 0},
    ]
    Path("set.parquet").unlink()
    assert "f returns None" in refused("choice", [{"q": "x"}], "def f(row): return None")
    assert "f returns 'answer': True" in refused("choice", [{"q": "x", "right": True}], code)


class TestColumns:
    def test_a_reward_of_ones_own_gets_the_row_as_the_adapter_gives_it(self) -> None:
        problems, _ = prepared("train", ROWS, JOINED, columns=True)
        expected = {"question": "There are 9. How many?", "gold": "9", "unit": "x"}
        assert [json.loads(problem["columns"]) for problem in problems] == [expected]

    def test_or_as_the_source_gives_it(self) -> None:
        rows: list[Row] = [{"question": "x", "gold": "1", "level": 3, "tags": ["a"], "none": None}]
        assert [json.loads(p["columns"]) for p in prepared("test", rows, columns=True)[0]] == rows

    def test_others_have_no_such_column(self) -> None:
        assert "columns" not in prepared("test", [{"question": "x", "gold": "1"}])[0][0]


WORDS: list[Row] = [
    {"question": "Is 9 odd?", "answer": "yes"},
    {"question": "Is 8 odd?", "answer": "no"},
    {"question": "Capital of France?", "answer": "Paris"},
    {"question": "Which way is the current, on or off?", "answer": "on"},
]
BY_NAME = OpenFields(id=None, question="question", gold=GoldRule(field="answer"))


class TestWords:
    def test_a_set_of_words_under_math_is_warned_of(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, manifest = words("math")
        (warning,) = manifest["warnings"]
        assert "4 of 4 golds are words, such as 'yes'" in warning
        assert "reward: exact" in warning
        assert f"softtok: warning: data set rows.jsonl: {warning}\n" in capsys.readouterr().err

    def test_nor_are_they_for_a_reward_of_mathematics_that_knows_words(self) -> None:
        (warning,) = words("math-strict")[1]["warnings"]
        assert "4 of 4 golds are words" in warning and "set reward: exact" in warning

    def test_not_under_exact_or_a_function(self, capsys: pytest.CaptureFixture[str]) -> None:
        for judged_by in ("exact", "function"):
            problems, manifest = words(judged_by)
            assert manifest["warnings"] == manifest["flagged"] == []
            assert [problem["gold"] for problem in problems] == [[row["answer"]] for row in WORDS]
        assert capsys.readouterr().err == ""

    def test_not_where_most_golds_are_mathematics(self) -> None:
        golds = ["5", "x", "yes", "no"]
        assert words("math", [{"question": f"q{g}", "answer": g} for g in golds])[1]["warnings"] == []

    def test_letters_are_wanted_for_choice(self) -> None:
        _, manifest = words("choice", [{"question": "x", "answer": "B"}, {"question": "y", "answer": "Paris"}])
        assert [flagged["id"] for flagged in manifest["flagged"]] == ["row1"]


def words(judged_by: str, rows: list[Row] = WORDS) -> tuple[list[Row], Row]:
    """Returns (rows, manifest) of a test set under this reward."""
    return prepared("test", rows, judged_by=judged_by, fields=BY_NAME)
