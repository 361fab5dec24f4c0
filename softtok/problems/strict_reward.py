r"""`math-strict`: whether an answer says what the gold says, however it is written, and nothing else.

Math-Verify's verdict (`math_reward.py`) misses right answers because of their looks, and lets wrong ones pass: words
that share their letters, another base, numbers that agree to six decimals. Here both sides are first brought to one
spelling (`looks.py`). Then, by what the gold is:

    a number                   the same value, exactly; a gold without end also takes ten and more right digits
    words                      the same words, or synonyms such as "no solution"
    a letter of an option      the same letter
    a time, a ratio            the same time, a proportional ratio
    a number with a base       the same digits; a missing base is the gold's
    dots, quantifiers          the same text
    other mathematics          Math-Verify's comparison with exact numbers (`compare_strictly`, in a worker)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

from softtok.problems.boxed import normalised
from softtok.problems.looks import plain, split_unit, surface
from softtok.problems.math_reward import too_large
from softtok.problems.numbers import read_number, same_number
from softtok.problems.text_rewards import letter, plain_text
from softtok.problems.units import other_unit
from softtok.problems.verdict import Status

Test = Callable[[str, str], bool | None]

_SYNONYMS = (
    {
        "no solution",
        "no solutions",
        "no real solution",
        "no real solutions",
        "no real root",
        "no real roots",
        "none",
        "there is no solution",
        "there are no solutions",
        "no such solution",
        "no solution exists",
        "no solutions exist",
        "empty set",
        "the empty set",
        r"\emptyset",
        r"\varnothing",
        r"\{\}",
        "{}",
    },
    {"does not exist", "dne", "undefined", "not defined"},
    {"infinitely many", "infinitely many solutions", "infinite", "infinite solutions", "infinite number of solutions"},
    {
        "all real numbers",
        "all reals",
        "any real number",
        r"\mathbb{r}",
        r"(-\infty,\infty)",
        r"(-\infty, \infty)",
    },
)


def quick_strict(answer: str, golds: Sequence[str]) -> Status | None:
    """Returns the status if it is certain without SymPy, else None."""
    verdicts = [_same(gold, answer) for gold in golds]
    if True in verdicts:
        return "correct"
    if None not in verdicts:
        return "wrong"
    large = any(too_large(form(answer), tuple(map(form, golds))) for form in (str, plain))
    return "refused" if large else None


def readable(gold: str) -> bool:
    """Whether a gold can be compared without SymPy: a number, words, a letter, a time and the like."""
    return any(test(gold, gold) for test in TESTS[1:])


@lru_cache(maxsize=4096)
def _same(gold: str, answer: str) -> bool | None:
    """Whether an answer says what a gold says; None if SymPy must tell."""
    for test in TESTS:
        if (verdict := test(gold, answer)) is not None:
            return verdict
    return None


def _text(gold: str, answer: str) -> bool | None:
    """Equal texts are right. Where dots or quantifiers say more than SymPy reads, only these are."""
    pair = [_without_spaces(plain(side)) for side in (gold, answer)]
    if pair[0] == pair[1] and pair[0]:
        return not other_unit(_unit(gold), _unit(answer))
    return False if any(map(_MORE_THAN_READ.search, pair)) else None


_MORE_THAN_READ = re.compile(r"\.\.\.|\\forall|\\exists")
_DOTS = re.compile(r"\\[lcv]?dots[bcmio]?(?![A-Za-z])|\.\s*\.\s*\.")


def _without_spaces(text: str) -> str:
    return normalised(_DOTS.sub("...", text)).replace(" ", "")


def _synonyms(gold: str, answer: str) -> bool | None:
    kinds = [_kind(side) for side in (gold, answer)]
    return None if kinds[0] is None or kinds[1] is None else kinds[0] == kinds[1]


def _kind(text: str) -> int | None:
    looked = plain_text(surface(text)).rstrip(".! ")
    return next((place for place, names in enumerate(_SYNONYMS) if looked in names), None)


def _option(gold: str, answer: str) -> bool | None:
    """A gold that is the letter of an option, (C) or C; or any other letter and a letter."""
    looked = surface(gold)
    expected, given = letter(looked), letter(surface(answer))
    if expected is None or given is None:
        return None
    if re.fullmatch(r"[(\[]?[A-J][)\]]?", looked):
        return expected == given
    return looked == surface(answer) if len(looked) == len(surface(answer)) == 1 else None  # x is not X


_CLOCK = re.compile(r"(\d{1,2})(?::([0-5]\d))?(?::([0-5]\d))?\s*(?:([ap])\.?\s?m\b\.?)?", re.IGNORECASE)


def _clock(gold: str, answer: str) -> bool | None:
    """A time of day: hours and minutes, with `a.m.` or `p.m.` if both say so."""
    expected, given = _time(gold), _time(answer)
    if expected is None or (expected[1] is None and ":" not in gold):
        return None
    if given is None:
        return None if expected[1] is None else False
    moments = [(time + 720 * 60 * (half == "p")) if half else time for time, half in (expected, given)]
    if expected[1] and given[1]:
        return moments[0] == moments[1]
    return expected[0] == given[0] or moments[0] == moments[1]


def _time(text: str) -> tuple[int, str | None] | None:
    """Returns seconds since midnight (or noon, if the half of the day is known), and the half."""
    found = _CLOCK.fullmatch(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", surface(text)).strip())
    if found is None or (found[2] is None and found[4] is None):
        return None
    half = found[4].lower() if found[4] else None
    hours = int(found[1]) % 12 if half else int(found[1])
    return hours * 3600 + int(found[2] or 0) * 60 + int(found[3] or 0), half


def _ratio(gold: str, answer: str) -> bool | None:
    """Proportional parts, as in 2:3 and 4:6."""
    expected, given = _parts(gold), _parts(answer)
    if expected is None or given is None:
        return None
    if len(expected) != len(given) or not any(expected):
        return False
    first = next(place for place, part in enumerate(expected) if part)
    return all(a * given[first] == b * expected[first] for a, b in zip(expected, given, strict=True)) and any(given)


def _parts(text: str) -> list[Fraction] | None:
    parts = re.split(r"\s*(?::|\\text\s*\{\s*to\s*\}|\\colon|(?<=\d)\s+to\s+(?=\d))\s*", surface(text))
    numbers = [read_number(plain(part)) for part in parts]
    return [number.value for number in numbers if number] if len(parts) > 1 and all(numbers) else None


_BASES = "zero one two three four five six seven eight nine ten eleven twelve".split()
_BASED = re.compile(
    r"\(?\s*(?:\\text\s*\{\s*)?([0-9A-Z]+)\s*\}?\s*\)?\s*_\s*(?:(\d)|\{\s*(?:\\text\s*\{)?\s*(\d+|[a-z]+)\s*\}+)"
)


def _base(gold: str, answer: str) -> bool | None:
    """Digits with a base, as in 1011_2: the digits are the same, and so is the base if the answer has one."""
    expected, given = _digits(gold), _digits(answer)
    if expected is None and given is None:
        return None
    if expected is None:
        assert given is not None
        number = read_number(plain(gold))
        return None if number is None else given[1] == 10 and number.value == int(given[0])
    if given is None:
        bare = surface(answer).replace(" ", "")
        return (
            bare.lstrip("0").upper() == expected[0].lstrip("0").upper() if re.fullmatch("[0-9A-Za-z]+", bare) else False
        )
    return (expected[0].lstrip("0").upper(), expected[1]) == (given[0].lstrip("0").upper(), given[1])


def _digits(text: str) -> tuple[str, int] | None:
    """Returns the digits and the base of a number that is written with its base."""
    found = _BASED.fullmatch(surface(text))
    if found is None:
        return None
    base = found[2] or found[3]
    number = int(base) if base.isdigit() else _BASES.index(base) if base in _BASES else 16 if base == "sixteen" else 0
    if not 2 <= number <= 36 or not re.search(r"\d", found[1]):
        return None
    return (found[1], number) if all(int(digit, 36) < number for digit in found[1]) else None


def _number(gold: str, answer: str) -> bool | None:
    """A number in any spelling; where the answer is not written as one number, SymPy must tell."""
    gold, answer = right_sides(gold, answer)
    expected, given = read_number(plain(gold)), read_number(plain(answer))
    if expected is None or given is None:
        return None
    return same_number(expected, given) and not other_unit(_unit(gold), _unit(answer))


def _unit(text: str) -> str | None:
    return split_unit(surface(text))[1]


NAME = re.compile(
    r"\|?\s*(?:\\(?:angle|triangle|overline|text)\s*)?(?:\{[^{}]*\}|\\?[A-Za-z]+'?)"
    r"(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?'?\s*(?:\([^()]*\))?\s*\|?"
)


def right_sides(gold: str, answer: str) -> tuple[str, str]:
    """Returns what a name is said to equal (`x = 18`) in the place of the whole, unless the sides have other names."""
    sides = [surface(side).partition("=") for side in (gold, answer)]
    names = [
        left.strip() if sign and "=" not in right and NAME.fullmatch(left.strip()) else ""
        for left, sign, right in sides
    ]
    if names[0] and names[1] and names[0].replace(" ", "") != names[1].replace(" ", ""):
        return gold, answer
    expected, given = (
        right if name else text for name, (_, _, right), text in zip(names, sides, (gold, answer), strict=True)
    )
    return expected, given


_WORDS = re.compile(r"[^\W\d_]+(?:[\s,'’.&-]+[^\W\d_]+)*[.!]?")


def _words(gold: str, answer: str) -> bool | None:
    """A gold of words; two short bare ones, which may be products (xy), are compared with each other as words."""
    expected, given = (plain_text(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", surface(side))) for side in (gold, answer))
    if not _WORDS.fullmatch(expected) or len(expected) == 1:
        return None
    if expected.rstrip(".! ") == given.rstrip(".! "):
        return True
    longest = max(map(len, re.findall(r"[^\W\d_]+", expected)))
    if longest > 3 or r"\text" in gold or re.fullmatch(r"[^\W\d_]+", given):
        return False if longest > 1 else None
    return None


TESTS: tuple[Test, ...] = (_text, _synonyms, _option, _clock, _base, _number, _ratio, _words)
