"""Files are read as they are written: whatever their size, layout, and the order of their rows."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softtok.errors import UserError
from softtok.problems.rows import read_file
from softtok.problems.spec import FileRows
from tests.support.data_files import Row, from_text

QA: Row = {"question": "question", "gold": {"field": "answer"}}
LIST = '[{"question": "q1?", "answer": "1"}, {"question": "q2?", "answer": "2"}]'
TWO = '{"question": "q1?", "answer": "1"}\n{"question": "q2?", "answer": "2"}\n'


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def golds(name: str, text: str | bytes, file: Row | None = None, **fields: Any) -> list[str]:
    """Returns the first gold of each problem."""
    return [problem["gold"][0] for problem in from_text("train", name, text, file, **QA | fields)]


def refused(name: str, text: str | bytes, file: Row | None = None, **fields: Any) -> str:
    """Returns the one line with which a file is refused."""
    with pytest.raises(UserError) as caught:
        from_text("train", name, text, file, **QA | fields)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    return message


class TestNumbers:
    @pytest.mark.parametrize(
        ("written", "gold"),
        [
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("-" + "7" * 5000, "-" + "7" * 5000),
            ("0.1", "0.1"),
            ("1e-07", "0.0000001"),
            ("1E+22", "10000000000000000000000"),
            ("123456789.123", "123456789.123"),
            ("0.12345678901234567890123456789", "0.12345678901234567890123456789"),
            ("1.50", "1.50"),
            ("1.0", "1"),
            ("-3.000", "-3"),
            ("2.5e1", "25"),
            ("-0.0", "0"),
            ("0e-5000", "0"),
            ('"007"', "007"),
            ('"1.50"', "1.50"),
            ('"1e-07"', "1e-07"),
            ('"2024-01-01"', "2024-01-01"),
            ("true", "true"),
        ],
    )
    @pytest.mark.parametrize("layout", ["{}\n", "[{}]", "{}\n" + TWO])
    def test_of_json_stay_as_written_in_plain_digits(self, written: str, gold: str, layout: str) -> None:
        row = f'{{"question": "q?", "answer": {written}}}'
        # The reward of words: whether mathematics can read a gold of 5,000 digits is another matter.
        problems = from_text("test", "x.json", layout.replace("{}", row), judged_by="exact", **QA)
        assert problems[0]["gold"] == [gold]

    @pytest.mark.parametrize("nothing", ["null", "NaN", "Infinity", "-Infinity", '""', '" "', "[]", "[null]"])
    def test_null_and_nan_are_no_gold(self, nothing: str) -> None:
        row = f'{{"question": "q0?", "answer": {nothing}}}\n'
        assert golds("x.jsonl", row + TWO) == ["1", "2"]
        with pytest.raises(UserError, match="row0 has no gold by the rule"):
            from_text("test", "x.jsonl", row + TWO, **QA)

    @pytest.mark.parametrize("written", ["1e5000", "1e-5000", "1e99999999999999999999999"])
    def test_a_number_that_fills_the_memory_is_refused(self, written: str) -> None:
        assert "has over 1,000 digits" in refused("x.jsonl", f'{{"question": "q?", "answer": {written}}}\n')

    @pytest.mark.parametrize(
        ("column", "gold"),
        [
            (pa.array([0.1], pa.float32()), "0.1"),
            (pa.array([1e-7], pa.float64()), "0.0000001"),
            (pa.array([1e22], pa.float64()), "10000000000000000000000"),
            (pa.array([3.0], pa.float16()), "3"),
            (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615"),
            (pa.array([Decimal("0.10")], pa.decimal128(38, 20)), "0.1"),
            (
                pa.array([Decimal("12345678901234567890123456789012345678")], pa.decimal128(38, 0)),
                "12345678901234567890123456789012345678",
            ),
            (pa.array([Decimal("5")], pa.decimal256(60, 10)), "5"),
            (pa.array([[0.3]], pa.list_(pa.float32())), "0.3"),
            (pa.array([b"x+1"], pa.binary()), "x+1"),
            (pa.array(["a"], pa.dictionary(pa.int8(), pa.string())), "a"),
            (pa.array([19723], pa.date32()), "2024-01-01"),
            (pa.array([True]), "true"),
        ],
    )
    def test_of_parquet(self, column: pa.Array, gold: str) -> None:
        file = io.BytesIO()
        pq.write_table(pa.table({"question": ["q?"], "answer": column}), file)
        problems = from_text("test", "x.parquet", file.getvalue(), judged_by="exact", **QA)
        assert [problem["gold"] for problem in problems] == [[gold]]


class TestLayouts:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("x.jsonl", TWO),
            ("x.ndjson", TWO),
            ("x.json", TWO),
            ("x.JSONL", TWO),
            ("x.jsonl", "\n\n" + TWO.replace("\n", "\r\n\r\n")),
            ("x.jsonl", TWO.rstrip()),
            ("x.json", LIST),
            ("x.json", json.dumps(json.loads(LIST), indent=2)),
            ("x.json", TWO.replace("{", "{\n")),  # objects over several lines, one behind the other
            ("x.json", '{"question": ["q1?", "q2?"], "answer": ["1", 2]}'),
            ("x.jsonl", '{"question": ["q1?", "q2?"], "answer": ["1", 2]}\n'),
            ("x.json", '{"question": {"0": "q1?", "1": "q2?"}, "answer": {"0": 1, "1": 2}}'),
            ("x.json", '{"0": {"question": "q1?", "answer": 1}, "1": {"question": "q2?", "answer": 2}}'),
            ("x.json", '{"data": [{"question": "q1?", "answer": 1}, {"question": "q2?", "answer": 2}]}'),
            ("x.json", '{"version": 1, "rows": [{"question": "q1?", "answer": 1}, {"question": "q2?", "answer": 2}]}'),
            ("x.csv", "question,answer\nq1?,1\nq2?,2\n"),
            ("x.csv", "question,answer\r\nq1?,1\r\n\r\nq2?,2"),
            ("x.csv", 'answer,"question",more\n1,"q1?","a ""b"", c"\n2,q2?,\n'),
            ("x.csv", "question,answer,,\nq1?,1,,\nq2?,2\n"),
            ("x.json", '{"version": {"n": 1}, "data": {"test": LIST}}'.replace("LIST", LIST)),
            ("x.tsv", "question\tanswer\nq1?\t1\nq2?\t2\n"),
        ],
    )
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    def test_each_is_read_with_and_without_a_byte_order_mark(self, name: str, text: str, mark: bytes) -> None:
        problems = from_text("test", name, mark + text.encode(), **QA)
        assert [(problem["question"], problem["gold"]) for problem in problems] == [("q1?", ["1"]), ("q2?", ["2"])]

    @pytest.mark.parametrize(
        ("name", "text", "file"),
        [
            ("x.csv", "question;answer\nq1?;1\nq2?;2\n", {"separator": ";"}),
            ("x.txt", "question\tanswer\nq1?\t1\nq2?\t2\n", {"separator": "\t", "format": "csv"}),
            ("x.csv", "q1?|1\nq2?|2\n", {"separator": "|", "columns": ["question", "answer"]}),
            ("x.json", '{"train": [{}], "test": LIST}', {"rows": "test"}),
            ("x.json", '{"a": {"b": LIST}, "c": 1}', {"rows": "a.b"}),
            ("x.jsonl", '{"a.b": {"question": ["q1?", "q2?"], "answer": [1, 2]}}', {"rows": "a.b"}),
        ],
    )
    def test_keys_that_say_how_a_file_is_read(self, name: str, text: str, file: Row) -> None:
        assert golds(name, text.replace("LIST", LIST), file) == ["1", "2"]

    @pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
    def test_a_compressed_file(self, compress: Callable[[bytes], bytes]) -> None:
        ending = {gzip.compress: "gz", bz2.compress: "bz2", lzma.compress: "xz"}[compress]
        assert golds(f"x.jsonl.{ending}", compress(TWO.encode())) == ["1", "2"]
        assert golds(f"x.tsv.{ending}", compress(b"question\tanswer\nq?\t1\n")) == ["1"]
        assert golds("x.jsonl", compress(TWO.encode())) == ["1", "2"]
        assert "cannot be read" in refused(f"x.jsonl.{ending}", compress(TWO.encode() * 9)[:-9])

    def test_one_chat_in_json_lines_is_a_row(self) -> None:
        chat = '{"prompt": [{"role": "user", "content": "q?"}], "answer": 3}\n'
        assert golds("x.jsonl", chat, question="prompt.0.content") == ["3"]


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "text", "told"),
        [
            ("x.jsonl", TWO + '{"question":"What is', ["line 3", "Unterminated string"]),
            ("x.jsonl", TWO + "[1, 2]\n", ["line 3 is a list, not an object"]),
            ("x.jsonl", TWO + "7\n", ["line 3 is a number"]),
            ("x.json", '[{"question": "q?", "answer": 1}, "x"]', ["row 1 is a text"]),
            ("x.json", '[{"question": "q?", "answer": 1}', ["Expecting ',' or ']'", "line 1"]),
            ("x.json", '[{"question": "q?", "answer": 1}] x', ["More text behind the list"]),
            ("x.json", "[" * 100_000, ["nested too deeply"]),
            ("x.json", " \n", ["no rows"]),
            ("x.json", '{"question": ["a", "b"], "answer": ["1"]}', ["question 2, answer 1"]),
            ("x.json", '{"train": [{"a": 1}], "test": [{"a": 1}]}', ["set `rows:` to one of train, test"]),
            ("x.jsonl", '{"data": [{"question": "q?", "answer": 1}]}\n', ["no field 'question'", "`rows: data`"]),
            ("x.jsonl", '{"data": {"rows": [{"question": "q?"}]}}\n', ["no field 'question'", "`rows: data.rows`"]),
            (
                "x.csv",
                "question,answer\n\"[{'role': 'user'}]\",4\n",
                ["holds a list of messages"],
            ),
            ("x.jsonl", '{"question": "q?", "answer": 1, "answer": 2}\n', ["'answer' stands more than once"]),
            (
                "x.jsonl",
                '{"question": "bad \\ud83d emoji?", "answer": "4"}\n',
                ["'question' holds half of a character"],
            ),
            ("x.csv", "question;answer\nq?;4\n", ['`separator: ";"`']),
            ("x.csv", "question,answer\nq, or not?,4\n", ["line 2 has 3 cells, the header 2"]),
            ("x.csv", 'question,answer\n"q?,4\n', ["unexpected end of data"]),
            ("x.csv", 'question,answer\n"a"b,4\n', ["line 2"]),
            ("x.csv", "question,answer,answer\nq?,4,5\n", ["'answer' stands more than once"]),
            ("x.parquet", "PAR1", ["parquet"]),
        ],
    )
    def test_in_one_line_that_says_where(self, name: str, text: str, told: list[str]) -> None:
        message = refused(name, text)
        assert all(part in message for part in told), message

    @pytest.mark.parametrize(
        ("name", "text"),
        [("x.jsonl", '{"question":"Das Maß?","answer":"4"}\n'), ("x.csv", "question,answer\nMaß?,4\n")],
    )
    @pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
    def test_another_encoding_with_the_way_out(self, name: str, text: str, encoding: str) -> None:
        message = refused(name, text.encode(encoding))
        names = {"latin-1": "LATIN1", "utf-16": "UTF-16", "utf-32": "UTF-32"}
        named = names.get(encoding) or encoding.upper().replace("-B", "B").replace("-L", "L")
        assert f"iconv -f {named} -t UTF-8 {name}" in message
        assert "not UTF-8" in message

    def test_what_is_not_mapped_never_matters(self) -> None:
        odd = '"\\ud83d", "dates": [1, {"a": 2}], "twice": 1, "twice": NaN, "huge": 1e99999'
        assert golds("x.jsonl", f'{{"question": "q?", "answer": 1, "odd": {odd}}}\n' + TWO) == ["1", "1", "2"]
        assert golds("x.csv", "question,answer,x,x\nq?,1,2,3\n") == ["1"]
        columns = {
            "question": ["q?"],
            "answer": [1],
            "time": pa.array([1], pa.timestamp("ns")),
            "text": pa.array([b"\xff"], pa.binary()).view(pa.string()),
            "span": pa.array([1], pa.duration("ns")),
        }
        file = io.BytesIO()
        pq.write_table(pa.table(columns), file)
        assert golds("x.parquet", file.getvalue()) == ["1"]

    def test_what_cannot_be_text_names_the_field_below_it(self) -> None:
        chat = [{"role": "system", "content": "Be good."}, {"role": "user", "content": "q?"}]
        rows = [{"prompt": chat, "reward_model": {"style": "rule", "ground_truth": "7"}}]
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file)
        for name, text in (("x.jsonl", json.dumps(rows[0]) + "\n"), ("x.parquet", file.getvalue())):
            right: Row = {"question": "prompt.-1.content", "gold": {"field": "reward_model.ground_truth"}}
            message = refused(name, text, **right | {"question": "prompt"})
            assert "'prompt' is a list" in message and "prompt.0.content" in message and "prompt.-1.content" in message
            message = refused(name, text, **right | {"gold": {"field": "reward_model"}})
            assert "'reward_model' is an object" in message and "reward_model.ground_truth" in message
            message = refused(name, text, **right | {"question": "prompt.2.content"})
            assert "there is a list of 2" in message
            problems = from_text("test", name, text, **right)
            assert [(problem["question"], problem["gold"]) for problem in problems] == [("q?", ["7"])]


MANY = 50_000
LATE: dict[str, tuple[Any, Any]] = {
    "a late decimal": (5, 0.5),
    "LaTeX behind integers": (5, r"\frac{1}{2}"),
    "text behind nulls": (None, "x"),
    "a list behind integers": (5, ["1", "2"]),
    "a long integer behind integers": (5, 10**40),
}


@pytest.mark.parametrize("story", LATE)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_value_of_another_type_behind_many_rows(story: str, suffix: str) -> None:
    """Over 10 MB, where readers that guess types have forgotten the first block, or already fixed its type."""
    usual, late = LATE[story]
    row = {"question": "q" * 200, "answer": usual, "unused": usual}
    lines = [json.dumps(row)] * MANY + [json.dumps(row | {"answer": late, "unused": late})]
    text = "\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]"
    assert len(text) > 10_000_000
    Path(f"x.{suffix}").write_text(text, encoding="utf-8")
    source = FileRows(path="x", format=None, columns=None, sha256=None)
    *_, last = read_file(Path(f"x.{suffix}"), source, None)
    assert last["answer"] == last["unused"] == late


def test_a_train_set_may_start_with_50_000_rows_without_a_gold() -> None:
    rows = ['{"question": "q?", "answer": null}'] * MANY + [r'{"question": "q?", "answer": "\\frac{1}{2}"}']
    assert golds("x.jsonl", "\n".join(rows)) == [r"\frac{1}{2}"]
