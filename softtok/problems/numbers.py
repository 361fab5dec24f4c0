r"""Numbers as they are written, read exactly: 1.5, 3/4, 2\frac{1}{2}, 6.02 \times 10^{23}, 0.\overline{3}, 50\%.

Values are fractions, so that 10^{-7} is not 0 and integers have all their digits. `looks.py` brings other spellings
(1,234; 6.02e23; ½; 18 dollars) to these.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

MAX_EXPONENT = 10_000  # of ten; beyond, a number is not read
LEAST_DIGITS = 10  # significant ones of a decimal that may stand for a number without end

DECIMAL = r"(?:\d+(?:\.\d+)?|\.\d+)"
_POWER = r"10\s*\^\s*(?:\{\s*(?P<up%s>[+-]?\s*\d+)\s*\}|(?P<up_bare%s>[+-]?\d+))"
NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)\s*(?:
    (?:(?P<whole>\d+)\s*)?\\frac\s*(?:\{{\s*(?P<top>[+-]?\s*{DECIMAL})\s*\}}|(?P<top_bare>\d))
        \s*(?:\{{\s*(?P<bottom>[+-]?\s*{DECIMAL})\s*\}}|(?P<bottom_bare>\d))
    |(?P<over>{DECIMAL})\s*/\s*(?P<under>{DECIMAL})
    |(?P<lead>\d+\.\d*)\\overline\s*\{{(?P<period>\d+)\}}
    |{_POWER % ("_alone", "_alone")}
    |(?P<mantissa>{DECIMAL})(?:\s*(?:\\times|\\cdot)\s*{_POWER % ("", "")})?
    )""",
    re.VERBOSE | re.ASCII,
)
_PERCENT = re.compile(r"\s*\\?%")


@dataclass(frozen=True)
class Number:
    r"""A number and how it was written.

    `places` counts the digits behind the point (negative for 6.02 \times 10^{23}) and `digits` the significant ones;
    both are None for a fraction. `percent` is whether a percent sign follows, which `value` does not count.
    """

    value: Fraction
    places: int | None = None
    digits: int = 0
    percent: bool = False


@lru_cache(maxsize=4096)
def read_number(text: str) -> Number | None:
    """Returns the number that is all of the text, or None."""
    found = NUMBER.match(text.strip())
    if found is None:
        return None
    rest = text.strip()[found.end() :]
    percent = bool(_PERCENT.fullmatch(rest))
    if rest and not percent:
        return None
    number = _value(found)
    return None if number is None else Number(number.value, number.places, number.digits, percent)


def _value(found: re.Match[str]) -> Number | None:
    sign = -1 if found["sign"] == "-" else 1
    if found["over"] is not None:
        return _quotient(sign, None, found["over"], found["under"])
    if (top := found["top"] or found["top_bare"]) is not None:
        return _quotient(sign, found["whole"], top, found["bottom"] or found["bottom_bare"])
    if found["lead"] is not None:
        return Number(sign * _repeating(found["lead"], found["period"]))
    up = next((up for name in ("up", "up_bare", "up_alone", "up_bare_alone") if (up := found[name])), "0")
    exponent = int(up.replace(" ", "")) if len(up) < 10 else MAX_EXPONENT + 1
    if abs(exponent) > MAX_EXPONENT:
        return None
    mantissa = found["mantissa"] or "1"
    _, digits, scale = Decimal(mantissa).as_tuple()
    assert isinstance(scale, int)  # no NaN
    significant = len(digits) if Decimal(mantissa) else 0
    return Number(sign * Fraction(Decimal(mantissa)) * Fraction(10) ** exponent, -scale - exponent, significant)


def _quotient(sign: int, whole: str | None, top: str, bottom: str) -> Number | None:
    """Returns a fraction, or a mixed number, whose fraction must be a proper one."""
    above, below = (Fraction(Decimal(part.replace(" ", ""))) for part in (top, bottom))
    if not below or (whole is not None and not 0 <= above < below):
        return None
    return Number(sign * (Fraction(Decimal(whole or 0)) + above / below))


def _repeating(lead: str, period: str) -> Fraction:
    nines, places = int("9" * len(period)), len(lead.partition(".")[2])
    return Fraction(Decimal(lead)) + Fraction(Decimal(period)) / (nines * Fraction(10) ** places)


def same_number(gold: Number, answer: Number) -> bool:
    r"""Whether an answer is the gold: exactly, or a decimal with all its digits right if the gold has no end.

    28 and 28\% are one, and so are 0.5 and 50\%; but a bare 50 is no 0.5.
    """
    if _values(gold, answer) & _values(answer, gold):
        return True
    if gold.places is not None or not _endless(gold.value) or answer.places is None:
        return False
    return agrees(gold.value, answer)


def _values(number: Number, other: Number) -> set[Fraction]:
    return {number.value} | ({number.value / 100} if number.percent and not other.percent else set())


def _endless(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest > 1


def agrees(value: Fraction, decimal: Number) -> bool:
    """Whether a decimal of enough digits is this value, rounded or cut off at its last digit."""
    if decimal.digits < LEAST_DIGITS or decimal.places is None:
        return False
    scaled, shown = abs(value) * Fraction(10) ** decimal.places, abs(decimal.value) * Fraction(10) ** decimal.places
    cut = scaled.numerator // scaled.denominator
    rounded = (2 * scaled + 1).numerator // (2 * scaled + 1).denominator // 2
    return (value < 0) == (decimal.value < 0) and shown in (cut, rounded)
