r"""Reads the rows of local files, one by one and as they are written: JSON lines, JSON, CSV, TSV and Parquet.

No types are guessed. A row of JSON keeps integers of any length, and decimals with their text (`Written`). Cells of CSV
are texts. So a row is read alike wherever it stands, and whatever stands in other rows or fields. NaN and infinity
are null. Files may be compressed (gzip, bzip2, xz) and start with a byte order mark. A file that cannot be read is a
UserError, one line that says where it stops and what to do.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from softtok.errors import UserError
from softtok.problems.spec import FileRows

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
"""The formats by the ending of a file's name."""
COMPRESSED: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    ".gz": (rb"\x1f\x8b", gzip.GzipFile),
    ".bz2": (rb"BZh[1-9]1AY&SY", bz2.BZ2File),
    ".xz": (rb"\xfd7zXZ\0", lzma.LZMAFile),
}
"""By the ending: a pattern of the first bytes of a compressed file, and what opens it."""
UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
LONGEST_INTEGER = 4_000
"""Digits of the longest integer that Python turns into text and back; a longer one is read as a text."""
BATCH = 1_000


class Written(float):
    """A decimal number of JSON, and its `text` in the file."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Written:
        """Returns the number that a text stands for."""
        number = super().__new__(cls, text)
        number.text = text
        return number


class Unreadable:
    """A value that has no one meaning; it matters only if the field is used."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __str__(self) -> str:
        return f"({self.why})"


TWICE = Unreadable("stands more than once in the row")


def ending(path: Path) -> str:
    """Returns the ending of a file's name, such as ".jsonl", that of a compression left out."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower()


def format_of(path: Path) -> str | None:
    """Returns the format that the ending of a file's name stands for, or None."""
    return FORMATS.get(ending(path))


def read_file(path: Path, source: FileRows, names: Collection[str] | None) -> Iterator[Row]:
    """Yields the rows of one file. Raises UserError.

    `names` are the mapped fields, or paths to them; Parquet files are read in no other columns. None stands for all.
    """
    if not path.stat().st_size:
        raise UserError(f"data set {path}: the file is empty")
    found = source.format or format_of(path)
    with _explained(path, found or "rows"):
        if found == "parquet":
            yield from _parquet(path, names)
        elif found == "csv":
            separator = source.separator or ("\t" if ending(path) == ".tsv" else ",")
            yield from _csv(path, source.columns, separator)
        else:
            yield from _json(path, source.rows)


@contextmanager
def _explained(path: Path, format: str) -> Iterator[None]:
    """Turns what libraries raise about a file into a UserError."""
    try:
        yield
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        likely = "WINDOWS-1252" if 0x80 <= byte < 0xA0 else "LATIN1"  # there Latin-1 has control characters
        what = f"is not UTF-8 (byte 0x{byte:02x} in {_around(error)})"
        _refuse(path, f"{what}; if it is {likely}, {_conversion(path, likely)}")
    except RecursionError:
        _refuse(path, "is nested too deeply to be read")
    except OSError as error:
        _refuse(path, f"cannot be read as {format}: {error.strerror or error}")
    except (ValueError, NotImplementedError, csv.Error, EOFError, zlib.error, lzma.LZMAError) as error:
        _refuse(path, f"cannot be read as {format}: {' '.join(str(error).split())}")


def _refuse(path: Path, what: str) -> NoReturn:
    raise UserError(f"data set {path}: {what}") from None


def _around(error: UnicodeDecodeError) -> str:
    text = error.object[max(0, error.start - 20) : error.start + 20].decode("ascii", errors="replace")
    return repr(" ".join(text.split()))


def _conversion(path: Path, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}"


def _open(path: Path) -> IO[bytes]:
    """Returns the bytes of a file, decompressed."""
    with open(path, "rb") as file:
        start = file.read(10)
    for magic, opener in COMPRESSED.values():
        if re.match(magic, start):
            return cast("IO[bytes]", opener(path))
    return open(path, "rb")


@contextmanager
def _text(path: Path, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """Opens a text file in UTF-8, with or without a byte order mark; refuses UTF-16 and UTF-32."""
    with _open(path) as file:
        start = file.read(4)
        if start.startswith(UTF_16_OR_32) or b"\0" in start:
            wide = start.startswith((b"\xff\xfe\0\0", b"\0\0")) or start.count(b"\0") == 3
            encoding = "UTF-32" if wide else "UTF-16"
            if not start.startswith(UTF_16_OR_32):
                encoding += "BE" if start[0] == 0 else "LE"
            _refuse(path, f"is {encoding}, not UTF-8; {_conversion(path, encoding)}")
        file.seek(0)
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text:
            yield text


# JSON


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        row |= {name: TWICE for name, count in counts.items() if count > 1}
    return row


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= LONGEST_INTEGER else text


JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=Written, parse_int=_integer, parse_constant=lambda name: None
)


def _json(path: Path, key: str | None) -> Iterator[Row]:
    """Yields the rows of JSON lines, of a list, of an object of columns, or of a list inside an object (at `key`)."""
    with _text(path) as file:
        numbered = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        number, first = next(numbered, (0, ""))
        if not number:
            raise ValueError("the file holds no rows")
        if key is None and first.lstrip().startswith("{") and _complete(first):
            second = next(numbered, None)
            if second is not None:  # JSON lines, which need not be in memory as a whole
                yield from _lines(chain([(number, first), second], numbered))
                return
            rest = ""
        else:
            rest = file.read()
    for place, row in enumerate(_values("\n" * (number - 1) + first + rest, path, key)):
        yield _checked(row, f"row {place}")


def _complete(line: str) -> bool:
    try:
        JSON.decode(line)
    except ValueError:
        return False
    return True


def _lines(numbered: Iterable[tuple[int, str]]) -> Iterator[Row]:
    for number, line in numbered:
        try:
            row = JSON.decode(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None
        yield _checked(row, f"line {number}")


def _checked(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {kind_of(row)}, not an object with fields")
    return row


def kind_of(value: Any) -> str:
    """Returns what a value of JSON or Parquet is, in words."""
    named = {list: "a list", dict: "an object", str: "a text", bytes: "binary data", bool: "true or false"}
    return "null" if value is None else named.get(type(value), "a number")


def _values(text: str, path: Path, key: str | None) -> Iterator[Any]:
    """Yields the rows in a JSON text that is not read line by line."""
    place = _skip(text, 0)
    if text[place] == "[" and key is None:
        yield from _elements(text, place + 1)
        return
    value, place = JSON.raw_decode(text, place)
    place = _skip(text, place)
    if place == len(text):
        yield from _inside(value, path, key)
        return
    if key is not None:
        raise ValueError("`rows:` is for a file that is one JSON object; this one goes on behind it")
    yield value
    while place < len(text):
        value, place = JSON.raw_decode(text, place)
        yield value
        place = _skip(text, place)


def _elements(text: str, place: int) -> Iterator[Any]:
    """Yields the elements of a list one by one; the text goes on behind its opening bracket."""
    place = _skip(text, place)
    more = text[place : place + 1] != "]"
    while more:
        value, place = JSON.raw_decode(text, place)
        yield value
        place = _skip(text, place)
        more = text[place : place + 1] == ","
        if more:
            place = _skip(text, place + 1)
    if text[place : place + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
    if (place := _skip(text, place + 1)) < len(text):
        raise json.JSONDecodeError("More text behind the list", text, place)


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip(text: str, place: int) -> int:
    """Returns the place of the next character that is not white space."""
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _inside(value: Any, path: Path, key: str | None) -> Iterable[Any]:
    """Returns the rows that the only value of a file holds."""
    if key is not None:
        value = _at(value, key)
        if isinstance(value, list):
            return value
    if not isinstance(value, dict) or not value:
        return [value]
    held = lists_of_rows(value)
    if not held or (len(held) < len(value) and all(isinstance(column, list) for column in value.values())):
        return _columns(value) or [value]
    if key is None and ending(path) in (".jsonl", ".ndjson"):
        return [value]  # a line with a list of objects is a row, such as a chat
    if len(held) > 1:
        raise ValueError(f"it is an object with several lists of rows; set `rows:` to one of {', '.join(held)}")
    return cast("list[Any]", _at(value, held[0]))


def lists_of_rows(value: Row) -> list[str]:
    """Returns the keys of an object, or paths of keys, behind which there is a list of objects."""
    found = []
    for name, rows in value.items():
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            found.append(name)
        elif isinstance(rows, dict):
            found += [f"{name}.{key}" for key in lists_of_rows(rows)]
    return found


def _columns(value: Row) -> list[Row] | None:
    """Returns the rows of an object of columns, which are lists or objects by row number; None for another object."""
    columns = list(value.values())
    if all(isinstance(column, dict) for column in columns):
        if all(name.isdecimal() for name in value):
            return columns  # an object of rows
        if not all(column.keys() == columns[0].keys() and all(map(str.isdecimal, column)) for column in columns):
            return None
        columns = [list(column.values()) for column in columns]
    if not all(isinstance(column, list) for column in columns):
        return None
    lengths = {name: len(column) for name, column in zip(value, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"it is an object of columns of different lengths: {listed}")
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _at(value: Any, key: str) -> Any:
    """Returns what an object holds at a key, or at a path of keys."""
    for name in [key] if isinstance(value, dict) and key in value else key.split("."):
        if not isinstance(value, dict) or name not in value:
            known = ", ".join(value) if isinstance(value, dict) else kind_of(value)
            raise ValueError(f"rows: there is no key {name!r}; there is {known}")
        value = value[name]
    return value


# CSV and Parquet


def _csv(path: Path, columns: list[str] | None, separator: str) -> Iterator[Row]:
    """Yields the rows of a CSV file; all cells are texts, and a cell that a short row lacks is null."""
    csv.field_size_limit(2**31 - 1)
    with _text(path, newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            names = columns or next(reader, [])
            twice = {name: TWICE for name, count in Counter(names).items() if count > 1}
            for cells in reader:
                if not cells:
                    continue
                if any(cells[len(names) :]):
                    raise ValueError(_too_many(reader.line_num, len(cells), len(names)))
                yield dict(zip_longest(names, cells[: len(names)])) | twice
        except csv.Error as error:
            raise ValueError(
                f"line {reader.line_num}: {error}; a cell with quotes or {separator!r} is quoted, its quotes doubled"
            ) from None


def _too_many(line: int, cells: int, names: int) -> str:
    hint = "put cells that hold it in quotes, or set `separator:`"
    return f"line {line} has {cells} cells, the header {names}: the separator stands in a cell; {hint}"


def _parquet(path: Path, names: Collection[str] | None) -> Iterator[Row]:
    """Yields the rows of a Parquet file, batch by batch, with the columns that hold `names`."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        columns = _needed(schema.names, names)
        if twice := next((name for name in columns or schema.names if schema.names.count(name) > 1), None):
            raise ValueError(f"column {twice!r} stands in it more than once")
        for batch in file.iter_batches(BATCH, columns=columns):
            shorten = {field.name: shorter for field in batch.schema if (shorter := _shortest(field.type))}
            for row in batch.to_pylist():
                for name, shorter in shorten.items():
                    row[name] = shorter(row[name])
                yield row


def _needed(columns: list[str], names: Collection[str] | None) -> list[str] | None:
    """Returns the columns that hold the mapped fields; None for all, also if a field is in none of them."""
    if names is None:
        return None
    found = [next((part for part in (name, name.split(".")[0]) if part in columns), None) for name in names]
    return None if None in found else [name for name in columns if name in found]


def _shortest(kind: pyarrow.DataType) -> Callable[[Any], Any] | None:
    """Returns what makes of a 32-bit number, also in lists and objects, the shortest decimal that means it."""
    import pyarrow.types as types

    if types.is_float32(kind) or types.is_float16(kind):
        import numpy as np

        narrow = np.float32 if types.is_float32(kind) else np.float16
        return lambda value: None if value is None else float(str(narrow(value)))
    if types.is_list(kind) or types.is_large_list(kind):
        inner = _shortest(kind.value_type)
        return inner and (lambda values: values and [inner(value) for value in values])
    if types.is_struct(kind):
        inners = {field.name: inner for field in kind if (inner := _shortest(field.type))}
        return (lambda row: row and row | {name: inners[name](row[name]) for name in inners}) if inners else None
    return None
