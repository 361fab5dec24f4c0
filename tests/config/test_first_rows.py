"""Local data sets are looked at when the configuration is read: a wrong field is one line before any job starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from softtok.config.load import load
from softtok.errors import UserError
from tests.support.configurations import basic

Row = dict[str, Any]
GOOD: list[Row] = [{"question": f"q{n}?", "answer": n, "options": ["A)x", "B)y"]} for n in range(30)]


def config(
    folder: Path, rows: list[Row] | str | bytes, kind: str = "test", name: str = "mine.jsonl", **entry: Any
) -> Row:
    """Returns a configuration whose study reads these rows as a set of this kind."""
    text = "".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else rows
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    fields: Row = {"question": "question", "gold": {"field": "answer"}}
    if kind == "choice":
        fields = {"question": "question", "choices": {"field": "options"}, "answer": "answer"}
    made = basic()
    made[f"{kind}_sets"]["mine"] = {"file": {"path": str(folder / name)}} | fields | entry
    made["studies"]["first"][f"{kind}_sets"] = ["mine"]
    if kind == "train":
        made["studies"]["first"]["grid"] = None
        made["studies"]["first"]["models"] = ["toy"]
    return made


def refused(made: Row) -> str:
    with pytest.raises(UserError) as caught:
        load(made)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["train", "test", "choice"])
def test_a_set_that_is_right_is_read(tmp_path: Path, kind: str) -> None:
    rows = GOOD if kind != "choice" else [row | {"answer": "B"} for row in GOOD]
    assert load(config(tmp_path, rows, kind))


CHAT = [{"prompt": [{"role": "user", "content": "q?"}], "answer": {"value": 1}}]


@pytest.mark.parametrize(
    ("rows", "entry", "told"),
    [
        (GOOD, {"question": "qestion"}, ["test_sets.mine.question", "row 0", "'qestion'; did you mean 'question'?"]),
        (GOOD, {"gold": {"field": "anser"}}, ["test_sets.mine.gold", "did you mean 'answer'?"]),
        (GOOD, {"id": "name"}, ["test_sets.mine.id", "no field 'name'"]),
        (GOOD, {"question": "{question} {hint}"}, ["test_sets.mine.question", "no field 'hint'"]),
        (CHAT, {"question": "prompt"}, ["test_sets.mine.question", "prompt.0.content"]),
        (CHAT, {"question": "prompt.0.content"}, ["test_sets.mine.gold", "'answer' is an object", "answer.value"]),
        (GOOD, {"gold": {"field": "answer", "after": "####"}}, ["test_sets.mine.gold", "has no gold by the rule"]),
        ([{"question": "q?", "answer": None}], {}, ["test_sets.mine.gold", "has no gold"]),
        ('{"question": "q?", "answer', {}, ["test_sets.mine.file", "line 1", "mine.jsonl"]),
        ("ü".encode("latin-1"), {}, ["test_sets.mine.file", "iconv"]),
        ("", {}, ["test_sets.mine.file", "the file is empty"]),
        (GOOD, {"gold": {"field": "answer", "pattern": "("}}, ["test_sets.mine.gold.pattern", "regular expression"]),
        (GOOD, {"gold": {"field": "answer", "pattern": "(a)(b)"}}, ["test_sets.mine.gold.pattern", "2 groups"]),
        (GOOD, {"gold": {"field": "answer", "before": "x", "boxed": True}}, ["test_sets.mine.gold", "not both"]),
        (GOOD, {"gold": {"field": "answer", "before": ""}}, ["test_sets.mine.gold.before"]),
    ],
)
def test_a_mistake_names_the_key(tmp_path: Path, rows: Any, entry: Row, told: list[str]) -> None:
    message = refused(config(tmp_path, rows, **entry))
    assert all(part in message for part in told), message


@pytest.mark.parametrize(
    ("name", "file", "told"),
    [
        ("x.csv", {"separator": ";;"}, ["file.separator", "not one character"]),
        ("x.csv", {"separator": "\\t"}, ["file.separator", "in double quotes"]),
        ("x.csv", {"rows": "data"}, ["file.rows", "has no use for csv files"]),
        ("x.jsonl", {"separator": ";"}, ["file.separator", "has no use for json files"]),
        ("x.jsonl", {"columns": ["a"]}, ["file.columns", "has no use for json files"]),
    ],
)
def test_a_key_of_another_format_is_a_mistake(tmp_path: Path, name: str, file: Row, told: list[str]) -> None:
    text = "question,answer\nq?,1\n" if name.endswith("csv") else GOOD
    made = config(tmp_path, text, name=name)
    made["test_sets"]["mine"]["file"] |= file
    message = refused(made)
    assert all(part in message for part in told), message


def test_a_mapping_of_the_file_alone_is_named(tmp_path: Path) -> None:
    made = config(tmp_path, GOOD)
    made["test_sets"]["mine"]["file"]["question"] = "qestion"
    assert "test_sets.mine.file.question: " in refused(made)


@pytest.mark.parametrize("kind", ["train", "choice"])
def test_other_kinds_are_looked_at_too(tmp_path: Path, kind: str) -> None:
    assert f"{kind}_sets.mine.question" in refused(config(tmp_path, GOOD, kind, question="qestion"))


def test_a_train_set_may_start_with_rows_without_a_gold(tmp_path: Path) -> None:
    rows = [{"question": "q?", "answer": None}] * 50 + [{"question": "q?", "other": 1}] * 50
    assert load(config(tmp_path, rows, "train"))
    late = [{"question": "q?"}] * 100 + GOOD
    assert load(config(tmp_path, late, "train"))


def test_rows_behind_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    rows: list[Row] = [*GOOD[:3], {"question": ["no text"], "answer": 1}]
    assert load(config(tmp_path, rows, limit=3))
    assert "'question' is a list" in refused(config(tmp_path, rows, limit=4))


def test_only_the_sets_of_requested_studies_are_looked_at(tmp_path: Path) -> None:
    made = config(tmp_path, GOOD, question="qestion")
    made["studies"]["second"] = made["studies"]["first"] | {"test_sets": ["sums"]}
    assert load(made, requested=["second"])
    assert "qestion" in refused(made)


def test_reading_the_configuration_imports_no_heavy_library(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(tmp_path, GOOD)), encoding="utf-8")
    code = "import sys, json; from softtok.config.load import load; load(json.load(open('config.json')));"
    code += (
        "print([name for name in ('torch', 'pandas', 'pyarrow', 'numpy', 'datasets', 'sympy') if name in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert made.stdout == "[]\n"
