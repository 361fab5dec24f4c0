"""One set in five formats gives the same problems, and any gold comes back to the letter."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softtok.problems.fields import golds
from softtok.problems.rows import read_file
from softtok.problems.spec import FileRows, GoldRule
from tests.support.data_files import SUFFIXES, Row, prepared, write

FILE = FileRows(path="x", format=None, columns=None, sha256=None)


def mixed(count: int, size: int = 0) -> list[dict[str, str | None]]:
    """Returns rows whose golds are of all kinds, the odd ones last; questions have `size` characters more."""
    odd = [
        r"\frac{1}{2}",
        "0.50",
        "007",
        "1e-07",
        "12345678901234567890123456789",
        "2024-01-01",
        "1,234",
        "None",
        "naïve “π”",
        "x\ny",
        'a "b", c\td',
        "",
        "-0.1",
        " 5 ",
        "NaN",
        "true",
        "1.0",
    ]
    golds: list[str | None] = [str(n) for n in range(count - len(odd))]
    return [
        {"question": f'What is {n}, "roughly"?{"x" * size}', "answer": gold, "unused": "" if n % 2 else "0"}
        for n, gold in enumerate([*golds, *odd])
    ]


def in_every_format(folder: Path, rows: list[dict[str, str | None]]) -> dict[str, list[Row]]:
    """Returns the problems of a train set by format."""
    fields: Row = {"question": "question", "gold": {"field": "answer"}, "judged_by": "exact"}
    found = {}
    for suffix in SUFFIXES:
        source = {"file": {"path": str(write(folder / f"x.{suffix}", rows))}}
        found[suffix], manifest = prepared("train", source, folder / suffix / "x.parquet", **fields)
        assert manifest["source_rows"] == len(rows)
        assert [row["reason"] for row in manifest["dropped"]] == ["no gold"]
    return found


def expected(rows: list[dict[str, str | None]]) -> list[Row]:
    return [
        {"id": f"row{n}", "question": row["question"], "gold": [(row["answer"] or "").strip()]}
        for n, row in enumerate(rows)
        if row["answer"]
    ]


def test_a_set_is_the_same_in_every_format(tmp_path: Path) -> None:
    rows = mixed(60)
    for suffix, problems in in_every_format(tmp_path, rows).items():
        assert problems == expected(rows), suffix


@pytest.mark.slow
def test_a_set_of_over_20_mb_is_the_same_in_every_format(tmp_path: Path) -> None:
    rows = mixed(60_000, size=320)
    for suffix, problems in in_every_format(tmp_path, rows).items():
        assert (tmp_path / f"x.{suffix}").stat().st_size > 20_000_000 or suffix == "parquet"
        assert problems == expected(rows), suffix


letters = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
words = letters.map(str.strip).filter(lambda text: bool(text) and "$" not in text)
integers = st.integers(-(10**40), 10**40)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=12)
latex = st.builds(r"\frac{{{}}}{{{}}}".format, integers, words.filter(lambda text: not set("{}\\") & set(text)))
texts = st.one_of(integers.map(str), decimals.map(lambda number: f"{number:f}"), st.fractions().map(str), words, latex)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(texts, min_size=1, max_size=8))
def test_any_gold_comes_back_to_the_letter_from_every_format(tmp_path: Path, written: list[str]) -> None:
    rows = [{"question": "q?", "answer": gold} for gold in written]
    for suffix in SUFFIXES:
        path = write(tmp_path / f"x.{suffix}", rows)
        read = [golds(row, GoldRule(field="answer"), "x") for row in read_file(path, FILE, ["answer"])]
        assert read == [[gold] for gold in written], suffix


def plain(number: Decimal | Fraction | int) -> str:
    """Returns a decimal in plain digits, without zeros that say nothing."""
    text = f"{number:f}" if isinstance(number, Decimal) else str(number)
    whole, _, fraction = text.partition(".")
    return ("0" if whole == "-0" and not fraction.strip("0") else whole) if not fraction.strip("0") else text


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(integers | decimals, min_size=1, max_size=8), exponent=st.booleans())
def test_a_number_of_json_is_the_one_that_was_written(
    tmp_path: Path, numbers: list[int | Decimal], exponent: bool
) -> None:
    def written(number: int | Decimal) -> str:
        return f"{number:e}" if exponent and isinstance(number, Decimal) else plain(number)

    text = "\n".join(f'{{"question": "q?", "answer": {written(number)}}}' for number in numbers)
    for name in ("x.jsonl", "x.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        read = [golds(row, GoldRule(field="answer"), "x") for row in read_file(tmp_path / name, FILE, None)]
        assert [Decimal(gold) for (gold,) in read] == numbers
        assert all("e" not in gold.casefold() and not gold.endswith(".0") for (gold,) in read)
        if not exponent:
            assert read == [[plain(number)] for number in numbers]


def test_a_row_with_all_its_columns_is_kept_for_a_reward_of_ones_own(tmp_path: Path) -> None:
    row: dict[str, Any] = {"question": "x", "gold": "1", "level": 3, "share": 0.1, "odd": "\ud83d", "none": None}
    path = write(tmp_path / "x.jsonl", [row | {"none": float("nan")}])
    fields: Row = {"question": "question", "gold": {"field": "gold"}, "judged_by": "function", "columns": True}
    problems, _ = prepared("test", {"file": {"path": str(path)}}, tmp_path / "x.parquet", **fields)
    assert json.loads(problems[0]["columns"]) == row
