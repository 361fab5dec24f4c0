"""Which rows of a source a set has: a range of ids, and no stories of test sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from softtok.errors import UserError
from softtok.problems.prepare import prepare
from softtok.problems.prompt import normalise_story
from tests.support.data_files import prepared, write
from tests.support.specs import data_spec

FIELDS: dict[str, Any] = {"id": "ID", "question": "q", "gold": {"field": "a"}}


def rows(*numbers: int) -> list[dict[str, Any]]:
    """Rows with ids of these numbers."""
    return [
        {"ID": f"chal-{n}", "q": f"What is {n} + {n}?", "a": float(2 * n), "s": f"A story of {n % 3} hens."}
        for n in numbers
    ]


@pytest.mark.parametrize("order", [range(1, 31), range(30, 0, -1)], ids=["in order", "backwards"])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_ids_are_compared_as_numbers_and_put_in_order(order: range, suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x.{suffix}", [*rows(*order), {"ID": "other-7", "q": "x", "a": 1.0, "s": ""}])
    found, manifest = prepared(
        "test", {"file": {"path": str(path)}}, tmp_path / "out.parquet", ids=["chal-2", "chal-11"], **FIELDS
    )
    assert [row["id"] for row in found] == [f"chal-{n}" for n in range(2, 12)]
    assert manifest["source_rows"] == 10
    some, _ = prepared(
        "test", {"file": {"path": str(path)}}, tmp_path / "out.parquet", limit=3, ids=["chal-2", "chal-11"], **FIELDS
    )
    assert some == found[:3]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((1, 2, 3), "no row has the id chal-4"),
        ((2, 3, 4), "no row has the id chal-1"),
        ((1, 2, 2, 4), "two rows have the id chal-2"),
    ],
)
def test_a_range_that_the_rows_do_not_have_is_refused(numbers: tuple[int, ...], words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", rows(*numbers))
    with pytest.raises(UserError, match=words):
        prepared("test", {"file": {"path": str(path)}}, tmp_path / "out.parquet", ids=["chal-1", "chal-4"], **FIELDS)


def test_stories_of_a_test_set_are_dropped_and_counted(tmp_path: Path) -> None:
    stories = [
        ("chal-1", "Tom has 3 hens .", "How many?"),
        ("chal-2", "Tom has 1,234.5 HENS.", "How many legs?"),
        ("chal-3", "Tom has hens.", "How many?"),
        ("chal-4", "", "What is 1 + 1?"),
        ("chal-5", "Ann has 3 hens.", "How many?"),
        ("chal-6", "Tom has 17 hens.", "How many now?"),
        ("chal-7", "", "What is 2 + 2?"),
    ]
    path = write(tmp_path / "x.jsonl", [{"ID": i, "b": b, "q": q, "a": 1.0} for i, b, q in stories])
    fields = {**FIELDS, "question": "{b} {q}", "story": "b"}
    source = {"file": {"path": str(path)}}
    test = data_spec("test", source, ids=["chal-6", "chal-7"], **fields)
    prepare(test, tmp_path / "test.parquet", {}, None)
    train = data_spec("train", source, ids=["chal-1", "chal-5"], exclude={"mine": test}, **fields)
    prepare(train, tmp_path / "train.parquet", {"mine": tmp_path / "test.parquet"}, None)
    manifest = json.loads((tmp_path / "train.json").read_text())
    assert manifest["dropped"] == [{"id": f"chal-{n}", "reason": "the story is in test set mine"} for n in (1, 2)]
    assert manifest["reasons"]["dropped"] == {"the story is in test set mine": 2}
    assert manifest["rows"] == 3, "no story is not the same story"


def told(named: bool) -> dict[str, Any]:
    """Returns the field of stories, or none."""
    return {"story": "s"} if named else {}


def test_stories_count_only_where_both_sets_name_them(tmp_path: Path) -> None:
    source = {"file": {"path": str(write(tmp_path / "x.jsonl", rows(1, 4)))}}
    for of_train, of_test in ((True, False), (False, True)):
        test = data_spec("test", source, ids=["chal-4", "chal-4"], **FIELDS, **told(of_test))
        prepare(test, tmp_path / "test.parquet", {}, None)
        train = data_spec("train", source, ids=["chal-1", "chal-1"], exclude={"mine": test}, **FIELDS, **told(of_train))
        prepare(train, tmp_path / "train.parquet", {"mine": tmp_path / "test.parquet"}, None)
        assert json.loads((tmp_path / "train.json").read_text())["rows"] == 1


def test_numbers_are_all_that_may_differ_in_a_story() -> None:
    assert normalise_story("A 12 b 3.5 c") == normalise_story("a 7  b 1,000 C")
    assert normalise_story("A 12 b") != normalise_story("A b") != normalise_story("A 12 c")
