r"""Units behind a number, so that 18 dollars, 18\text{ miles per hour}, 5\text{ cm}^2 and 45 degrees are numbers.

A unit is words without a digit. Words that make another answer of a number are no unit: "18 or so", "18 million".
"""

from __future__ import annotations

import re
from fractions import Fraction

SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_NO_UNITS = frozenset(
    """or and to not no nor than more less least most fewer greater plus minus times over mod modulo between from about
    if when where while for is are was were be but except unless since because so thus hence therefore with without
    approximately around roughly almost nearly maybe half halves third thirds quarter quarters fourth fourths fifth
    fifths tenth tenths squared cubed factorial am pm noon midnight base percent percentage pi then only either
    both""".split()
)
_SHORT = frozenset(
    """mm cm dm km ft yd mi mg kg lb lbs oz ml dl cl hr hrs min sec ms mph kph km/h rpm hz khz mhz kw kwh mw ha kj mj pa
    kpa mpa mol ev kev mev nm db sq cu in deg rad gb mb kb tb usd eur gbp rs cc pt qt gal""".split()
)
_LETTERS = frozenset("m s g h l".split())  # `18 m`; without the space it is a product
_SAME = [
    {"cm", "centimeter", "centimetre"},
    {"mm", "millimeter", "millimetre"},
    {"m", "meter", "metre"},
    {"km", "kilometer", "kilometre"},
    {"in", "inch", "inche"},
    {"ft", "foot", "feet"},
    {"yd", "yard"},
    {"mi", "mile"},
    {"g", "gram"},
    {"kg", "kilogram"},
    {"mg", "milligram"},
    {"lb", "pound"},
    {"oz", "ounce"},
    {"s", "sec", "second"},
    {"min", "minute"},
    {"h", "hr", "hour"},
    {"day"},
    {"week"},
    {"month"},
    {"year"},
    {"$", "dollar", "usd"},
    {"€", "euro", "eur"},
    {"cent"},
    {"degree", "deg"},
    {"radian", "rad"},
    {"mph", "miles per hour", "mile per hour"},
    {"km/h", "kph", "kilometers per hour", "kilometer per hour"},
]
_DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![A-Za-z])")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_POWER = re.compile(r"\^\s*\{?\s*-?[1-9]\s*\}?")
_WORDS = re.compile(r"(?:[A-Za-z]+(?:[.'-](?=[A-Za-z]))?\.?(?:\s*/\s*|\s+|$))+|[$€£¥]")


def plain_unit(tail: str) -> str | None:
    r"""Returns the unit in what follows a number, without LaTeX, exponents, plural and case; None if it is no unit."""
    bare = not _TEXT.search(tail)
    text = _DEGREE.sub(" degrees ", tail)
    text = _FRACTION.sub(r"\1/\2", _TEXT.sub(r" \1 ", text))
    text = _TEXT.sub(r" \1 ", _POWER.sub(" ", text)).replace(r"\cdot", " ").replace("{", "").replace("}", "").strip()
    text = text.removeprefix("(").removesuffix(")").strip() if text.startswith("(") and text.endswith(")") else text
    if not _WORDS.fullmatch(text):
        return None
    words = re.findall(r"[a-z]+|[$€£¥]", text.lower())
    if not words or (_NO_UNITS | SCALES.keys()) & set(words) or re.search(r"\b[ap]\.\s?m\b", text.lower()):
        return None
    name = " ".join(text.lower().split())
    # `18x` and `18 xy` are products; in \text{...} one letter may be a unit.
    if bare and name in _LETTERS and tail[:1].isspace():
        return name
    if bare and len(words[0]) < 3 and words[0].isalpha() and name not in _SHORT and words[0] not in _SHORT:
        return None
    return name


def split_scale(tail: str) -> tuple[int, str]:
    """Returns the factor that a word such as "million" stands for (or 1), and what follows it."""
    text = tail.replace(r"\text{", "{")
    found = re.fullmatch(rf"\s*\{{?\s*({'|'.join(SCALES)})s?\b\s*([^{{}}]*)\}}?(.*)", text, re.IGNORECASE | re.DOTALL)
    if found is None:
        return 1, tail
    rest = (found[2] + " " + found[3]).strip()
    return SCALES[found[1].lower()], rf"\text{{ {rest}}}" if rest else ""


def scaled(value: Fraction, factor: int) -> str:
    """Returns a number times the factor of a word, in LaTeX."""
    product = value * factor
    return str(product) if product.denominator == 1 else rf"\frac{{{product.numerator}}}{{{product.denominator}}}"


def other_unit(gold: str | None, answer: str | None) -> bool:
    """Whether two units are both well known and differ: 5 cm is not 5 inches, whereas 5 apples may be 5 fruits."""
    kinds = [_kind(unit) for unit in (gold, answer)]
    return None not in kinds and kinds[0] != kinds[1]


def _kind(unit: str | None) -> int | None:
    if unit is None:
        return None
    singular = unit.rstrip(".").removesuffix("s") if len(unit) > 2 else unit
    return next((place for place, names in enumerate(_SAME) if {unit, unit.rstrip("."), singular} & names), None)
