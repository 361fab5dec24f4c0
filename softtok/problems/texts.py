"""Values of rows as texts: plain digits for numbers, nothing for null, and an error for what is no text."""

from __future__ import annotations

import math
from datetime import date, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from softtok.errors import UserError
from softtok.problems.rows import Unreadable, Written, kind_of

MOST_DIGITS = 1_000
TEXT_KEYS = ("content", "text", "value", "ground_truth", "answer", "question", "problem")
"""Names of fields that usually hold a text, for hints."""


def text_of(value: Any, name: str, where: str) -> str:
    """Returns a value as stripped text; null, NaN and infinity give "". Raises UserError for what is no text.

    Numbers are written in plain digits, as they stand in the file: 1e-07 gives "0.0000001", 1.50 "1.50", and 1.0 gives
    "1". `name` is the field.
    """
    match value:
        case str():
            text = value.strip()
        case None:
            text = ""
        case bool():
            text = str(value).lower()
        case int():
            text = str(value)
        case float() | Decimal():
            text = _decimal(value, name, where)
        case bytes():
            text = _decoded(value, name, where).strip()
        case date() | time() | timedelta():
            text = str(value)
        case Unreadable():
            raise UserError(f"{where}: field {name!r} {value.why}")
        case _:
            raise UserError(f"{where}: field {name!r} is {kind_of(value)}, not a text; {below(value, name)}")
    if not text.isascii() and (half := next((c for c in text if "\ud800" <= c <= "\udfff"), None)):
        raise UserError(
            f"{where}: field {name!r} holds half of a character (\\u{ord(half):04x}), which is no text; repair it"
        )
    return text


def _decimal(value: float | Decimal, name: str, where: str) -> str:
    if not math.isfinite(value) and not isinstance(value, Written):
        return ""
    written = value.text if isinstance(value, Written) else str(value)
    try:
        number = Decimal(written)
    except InvalidOperation:  # its exponent has more than 18 digits
        number = Decimal("1e999999")
    if not number:
        return "0"
    if abs(number.adjusted()) > MOST_DIGITS:
        raise UserError(f"{where}: field {name!r}: {written} has over {MOST_DIGITS:,} digits; write it as a text")
    plain = format(number, "f")
    whole, _, fraction = plain.partition(".")
    if isinstance(value, Decimal):  # zeros at its end are those of the column's type
        fraction = fraction.rstrip("0")
        return f"{whole}.{fraction}" if fraction else whole
    return plain if fraction.strip("0") else whole


def _decoded(value: bytes, name: str, where: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UserError(f"{where}: field {name!r} is binary data, not a text; map another field") from None


def below(value: Any, name: str) -> str:
    """Says which fields below a list or an object hold a text, for the hint of an error."""
    path = _path(value)
    if not path:
        return "it holds no text; map another field"
    here = f"give the field below it, such as {'.'.join([name, *path])}"
    if path[0] == "0" and len(path) > 1:
        here += f" (of the last element: {'.'.join([name, '-1', *path[1:]])})"
    return " ".join(here.split())


def _path(value: Any) -> list[str]:
    """Returns the way to the first text below a value; empty if there is none."""
    inner: dict[Any, Any] = value if isinstance(value, dict) else {}
    if isinstance(value, list):
        inner = dict(enumerate(value[:1]))
    named = [key for key in TEXT_KEYS if key in inner]
    for key in [*named, *inner]:
        if not isinstance(inner[key], list | dict) and inner[key] is not None:
            return [str(key)]
        if way := _path(inner[key]):
            return [str(key), *way]
    return []
