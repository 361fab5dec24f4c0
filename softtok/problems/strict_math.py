r"""The comparison of `math-strict` where a gold is mathematics that has to be evaluated; called in the workers.

Math-Verify parses, and compares sets, relations and matrices. Three things differ from its own verdict: decimals are
fractions, so nothing is equal by rounding; only the whole answer is read, never a number inside of it; and numbers, and
expressions with variables that SymPy does not simplify, are compared here.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from softtok.problems.looks import decimals, plain, surface
from softtok.problems.numbers import LEAST_DIGITS, agrees, read_number
from softtok.problems.strict_reward import NAME, right_sides
from softtok.problems.verdict import GoldStatus, Status

if TYPE_CHECKING:
    import sympy

PRECISION = 50  # decimals of Math-Verify's own roundings
CLOSE = Fraction(1, 10**25)  # relative difference of equal values, which are computed to 40 digits
POINTS = (-17, 5, 23, -3, 11, 29, 2, -7, 13, 31, 19, 41)  # sevenths, tenths, ...: where expressions are compared
FEWEST_POINTS = 4

_EQUAL = re.compile(r"(?<![\\<>!:=])=(?!=)")


def compare_strictly(answer: str, golds: tuple[str, ...]) -> Status:
    """Returns the verdict on an answer that `strict_reward.quick_strict` leaves open."""
    for gold in golds:
        try:
            if _says(gold, answer):
                return "correct"
        except MemoryError:
            raise
        except Exception:  # SymPy's, on an answer that it cannot evaluate
            continue
    return "unparsed" if all(isinstance(reading, str) for reading in _read(answer)) else "wrong"


def check_gold_strictly(gold: str) -> GoldStatus:
    """Returns whether a gold equals itself when it is read."""
    readings = _read(gold)
    objects = [reading for reading in readings if not isinstance(reading, str)]
    if objects:
        return "ok" if any(_equal(reading, reading) for reading in objects) else "unparsed"
    return "string" if readings else "unparsed"


@lru_cache(maxsize=256)
def _read(text: str) -> list[Any]:
    """Returns Math-Verify's readings of all of a text: SymPy objects, then text."""
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    normalising = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all")
    way = LatexExtractionConfig(
        boxed_match_priority=0, try_extract_without_anchor=False, normalization_config=normalising
    )
    readings: list[Any] = parse(
        rf"\boxed{{{_written_out(plain(text))}}}", extraction_config=(way,), parsing_timeout=None
    )
    return readings


def _written_out(text: str) -> str:
    r"""Returns a text with exact decimals, both values of one `\pm`, and an i that SymPy sees behind a digit."""
    text = re.sub(r"(?<=\d)i(?![A-Za-z])", " i", decimals(text))
    if text.count(r"\pm") != 1 or re.search(r"[,;=<>]|\\(?:mp|le|ge|in)(?![A-Za-z])", text):
        return text
    return ", ".join(text.replace(r"\pm", sign) for sign in "+-")


def _alternatives(text: str) -> list[Any]:
    """Returns the set that relations with "or" between them describe, as x < -1 or x > 1 does."""
    import sympy

    parts = re.split(r"\s*(?:\\text\s*\{\s*or\s*\}|\\lor(?![A-Za-z])|\bor\b)\s*", surface(text))
    sets = []
    for part in parts if 1 < len(parts) < 6 else []:
        relations = [reading for reading in _read(part) if isinstance(reading, sympy.logic.boolalg.Boolean)]
        if not relations or not re.search(r"[<>]|\\(?:le|ge|lt|gt)", part):
            return []
        sets.append(relations[0].as_set())
    return [sympy.Union(*sets)] if sets else []


def _says(gold: str, answer: str) -> bool:
    expected_text, given_text = right_sides(gold, answer)
    values = [reading for reading in _read(expected_text) if _is_number(reading)]
    if values:
        return _is_value(values[0], given_text)
    if any(_equal(expected, given) for given in _alternatives(answer) for expected in _read(gold)):
        return True
    pairs = {(expected_text, given_text): None, (gold, answer): None}
    return any(_equal(expected, given) for a, b in pairs for expected in _read(a) for given in _read(b))


def _is_value(value: sympy.Expr, answer: str) -> bool:
    """Whether an answer is this number: alone, or the end of equations whose other sides are names or this number."""
    *others, last = _EQUAL.split(surface(answer))
    number = read_number(plain(last))
    if number is not None and number.digits >= LEAST_DIGITS and not value.is_rational:
        approximate = Fraction(Decimal(str(value.evalf(number.digits + 20))))
        return not others and agrees(approximate, number)
    return _is_just(value, last) and all(NAME.fullmatch(side.strip()) or _is_just(value, side) for side in others)


def _is_just(value: sympy.Expr, text: str) -> bool:
    import sympy

    for reading in _read(text) if not text.strip().startswith("[") else ():  # a list of one is no number
        one = reading.args[0] if isinstance(reading, sympy.FiniteSet) and len(reading.args) == 1 else reading
        if _is_number(one) and _same_value(value, one):
            return True
    return False


def _is_number(reading: Any) -> bool:
    import sympy

    return isinstance(reading, sympy.Expr) and not reading.free_symbols and bool(reading.is_number)


def _same_value(a: sympy.Expr, b: sympy.Expr) -> bool:
    a, b = a.doit(), b.doit()
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    return _close(a, b)


def _close(a: sympy.Expr, b: sympy.Expr) -> bool:
    """Whether two numbers are the same to many digits, however small they are; False for what is no finite number."""
    scale = abs(a.evalf(40)) + abs(b.evalf(40))
    gap = abs((a - b).evalf(40, maxn=200))
    if not (scale.is_Float or scale.is_Rational) or not scale.is_finite or not gap.is_number:
        return False
    return bool(gap <= scale * CLOSE.numerator / CLOSE.denominator)


def _equal(gold: Any, answer: Any) -> bool:
    """Whether two readings are equal: by Math-Verify without its roundings, or at many points."""
    import sympy
    from math_verify import verify

    if _is_number(gold) and _is_number(answer):
        return _same_value(gold, answer)
    if isinstance(gold, str) or isinstance(answer, str):
        return bool(gold == answer)
    if gold == answer and gold not in (sympy.nan, sympy.zoo):
        return True
    options = {"float_rounding": PRECISION, "numeric_precision": PRECISION, "timeout_seconds": None}
    if verify([gold], [answer], allow_set_relation_comp=True, **options):
        return _same_equation(gold, answer)
    return _agree(gold, answer)


def _same_equation(gold: Any, answer: Any) -> bool:
    """Whether what Math-Verify calls equal is: to it, equations that SymPy finds no solution of are all alike."""
    import sympy

    sides = [(one.lhs, one.rhs) for one in (gold, answer) if isinstance(one, sympy.Eq)]
    if len(sides) < 2 or not all(isinstance(side, sympy.Expr) for pair in sides for side in pair):
        return True
    ratio = sympy.simplify((sides[0][0] - sides[0][1]) / (sides[1][0] - sides[1][1]))
    return bool(ratio.is_number and ratio.is_nonzero) or bool(sympy.solve(gold))


def _agree(gold: Any, answer: Any) -> bool:
    """Whether two expressions with the same variables are equal at many points; where one is not real, neither is."""
    import sympy

    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    names = sorted(gold.free_symbols, key=str)
    if not names or gold.free_symbols != answer.free_symbols:
        return False
    seen = 0
    for start in range(len(POINTS)):
        at = {
            name: sympy.Rational(POINTS[(start + 5 * place) % len(POINTS)], 7 + place)
            for place, name in enumerate(names)
        }
        values = [side.subs(at).evalf(40) for side in (gold, answer)]
        real = [bool(value.is_Float or value.is_Rational) for value in values]
        if real[0] != real[1] or (real[0] and not _close(*values)):
            return False
        seen += real[0]
    return seen >= FEWEST_POINTS
