r"""Whether an answer equals a gold as mathematics: cheap certain verdicts, then Math-Verify.

An answer is judged by the cheapest test that is certain: comparison of plain numbers, exact match after a light
normalisation, refusal of expressions that are too large to evaluate (`quick_status`), and only then Math-Verify
(`compare`, in a worker process of `workers.py`). Most answers never reach a worker, and SymPy is not imported until one
does.

Math-Verify's own timeouts (`signal.alarm`) are off: they turn a timeout into "not equal", do not interrupt one long
call of C code (as with gmpy2's integers), and raise outside of the main thread.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate
from typing import Any

from softtok.problems.boxed import normalised
from softtok.problems.verdict import GoldStatus, Status

MAX_COMMAS = 200  # golds of MATH, DeepScaleR and OlympiadBench have up to 47; a list of 1,000 takes 0.5 s
MAX_BARS, MAX_RELATIONS, MAX_UNIONS, MAX_COMMANDS = 20, 30, 20, 100  # those golds have up to 4, 7, 4 and 16
MAX_DEPTH = 40  # of brackets; a depth of 100 takes 1.5 s, to fail
MAX_EXPONENT = 10_000


def quick_status(boxed: str, golds: tuple[str, ...]) -> Status | None:
    """Returns the status if it is certain without Math-Verify, else None."""
    same = [_same_number(boxed, gold) for gold in golds]
    if True in same:
        return "correct"
    if None not in same:
        return "wrong"
    if normalised(boxed) in map(normalised, golds):
        return "correct"
    return "refused" if too_large(boxed, golds) else None


def too_large(answer: str, golds: tuple[str, ...]) -> bool:
    """Whether an answer is larger than a right one can be.

    If a gold is as large, the expression may have to be evaluated; then only the worker's limits protect.
    """
    return _blows_up(answer) and not any(map(_blows_up, golds))


_NUMBER = re.compile(r"-?(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?")


@lru_cache(maxsize=4096)
def plain_number(text: str) -> Decimal | None:
    """Returns the exact value of a plain integer or decimal, with or without commas; None for anything else."""
    text = text.strip()
    return Decimal(text.replace(",", "")) if _NUMBER.fullmatch(text) else None


def _same_number(boxed: str, gold: str) -> bool | None:
    """Whether two plain numbers are equal; None if one is not plain, or if Math-Verify's rounding decides."""
    a, b = plain_number(boxed), plain_number(gold)
    if a is None or b is None:
        return None
    if a == b:
        return True
    (_, a_digits, a_exponent), (_, b_digits, b_exponent) = a.as_tuple(), b.as_tuple()
    if a_exponent == b_exponent == 0:
        return False
    # Math-Verify rounds to 6 decimals. Up to 15 digits its Floats, and the difference here, are exact.
    certain = max(len(a_digits), len(b_digits)) <= 15 and abs(a - b) > Decimal("2e-6")
    return False if certain else None


_INTO = r"[\s{(]*"  # what may stand between an operator and its number
_HUGE = re.compile(
    rf"\^{_INTO}[+-]?[0-9]{{5}}"  # (x+1)^{20000}
    r"|[0-9]{5}\s*!"  # 10000!
    rf"|\^{_INTO}[0-9]+\s*\^{_INTO}[0-9]+\s*\^"  # 2^{2^{2^5}}
)
_POWER = re.compile(
    rf"\^{_INTO}(?=([0-9]+)\s*\^{_INTO}([0-9]+))"  # 9^9 in 2^{9^9}
    rf"|(?<![0-9])([0-9]+)\s*\^{_INTO}([0-9]+)[\s}}]*\)[\s)}}]*!"  # and in (9^9)!
)
_COUNTED = (
    (re.compile(r"\|"), MAX_BARS),
    (re.compile(r"[=<>]|\\(?:le|ge|lt|gt|ne)q?(?![A-Za-z])"), MAX_RELATIONS),
    (re.compile(r"\\(?:cup|cap)(?![A-Za-z])"), MAX_UNIONS),
    (re.compile(r"\\[A-Za-z]+"), MAX_COMMANDS),
)
_BRACKET = re.compile(r"[][(){}]")


@lru_cache(maxsize=4096)
def _blows_up(latex: str) -> bool:
    """Whether evaluating this would waste a worker: huge powers and factorials, towers, long lists, deep nesting.

    So would long chains of relations, unions, bars or commands. This only saves time: what it misses is stopped by the
    limits of the worker.
    """
    if latex.count(",") > MAX_COMMAS or _HUGE.search(latex):
        return True
    if any(len(sign.findall(latex)) > most for sign, most in _COUNTED):
        return True
    for power in _POWER.finditer(latex):
        base, exponent = (float(number) for number in power.groups() if number is not None)
        if base > 1 and exponent * math.log10(base) >= math.log10(MAX_EXPONENT):
            return True
    depths = accumulate(1 if bracket in "{([" else -1 for bracket in _BRACKET.findall(latex))
    return max(depths, default=0) > MAX_DEPTH


# ---- run by the workers ----


def _parse(latex: str) -> list[Any]:
    r"""Returns Math-Verify's readings of an answer or gold: SymPy objects, then text.

    Golds are boxed like answers: bare ones are often not found, and in `$...$` the time `4:40 a.m.` is read as 4.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    ways = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    readings: list[Any] = parse(rf"\boxed{{{latex}}}", extraction_config=ways, parsing_timeout=None)
    return readings


_parse_gold = lru_cache(maxsize=256)(_parse)


def compare(boxed: str, golds: tuple[str, ...]) -> Status:
    """Returns Math-Verify's verdict; the gold comes first, as its comparison is not symmetric.

    An exception of SymPy (as with 1/0) is "not equal" to Math-Verify, and so it is here.
    """
    from math_verify import verify

    answer = _parse(boxed)
    if any(verify(_parse_gold(gold), answer, timeout_seconds=None) for gold in golds):
        return "correct"
    return "unparsed" if all(isinstance(reading, str) for reading in answer) else "wrong"


def check_gold(gold: str) -> GoldStatus:
    from math_verify import verify

    readings = _parse(gold)
    objects = [reading for reading in readings if not isinstance(reading, str)]
    if objects:
        return "ok" if verify(objects, objects, timeout_seconds=None) else "unparsed"
    return "string" if readings else "unparsed"
