"""The reward on the golds of every real set is neither blind nor loose.

Golds rewritten as a model might write them are right, golds perturbed or exchanged are wrong, and the verdict is always
bare Math-Verify's. Counts are printed, a line
per set (`pytest -s`).
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from softtok.problems.boxed import last_boxed
from softtok.problems.reward import Judge
from tests.support.answers import bare, box

pytestmark = pytest.mark.slow

CASES_PER_KIND = 40  # of a set's golds that a rewriting or perturbation applies to
EXCHANGES_PER_SET = 60
Rewriting = Callable[[str], str | None]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def golds_of(folder: Path, name: str) -> list[str]:
    """All golds of a set as published, one for each problem (of several allowed ones the first)."""
    match name:
        case "gsm8k-train" | "gsm8k-test":
            return [row["answer"].split("####")[1].strip() for row in rows(folder / f"gsm8k/{name[6:]}.jsonl")]
        case "math":
            both = rows(folder / "math/train.jsonl") + rows(folder / "math/test.jsonl")
            return [gold for row in both if (gold := last_boxed(row["solution"])) is not None]
        case "deepscaler":
            return [str(row["answer"]) for row in rows(folder / "deepscaler/deepscaler_preview_partial.jsonl")]
        case "math500":
            return [row["answer"] for row in rows(folder / "math500/test.jsonl")]
    return [row["final_answer"][0] for row in rows(folder / "olympiadbench/test.jsonl")]


SETS = ["gsm8k-train", "gsm8k-test", "math", "deepscaler", "math500", "olympiadbench"]

# What a gold is, read without SymPy: only where that is plain does a rewriting or a perturbation apply.

NUMBER = re.compile(r"-?\d+(\.\d+)?")
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
WORDS = re.compile(r"\\text|\\mbox|\\mathrm|\\begin|\$|[A-Za-z]{3,} ")
BRACKETS = {"(": ")", "[": "]"}


def number(gold: str) -> str | None:
    """A plain number without the commas of its thousands."""
    bare_digits = re.sub(r"(?<=\d),(?:\\!)?(?=\d{3}(?!\d))", "", gold.strip())
    return bare_digits if NUMBER.fullmatch(bare_digits) else None


def value(gold: str) -> Fraction | None:
    """The exact value of a plain number or fraction."""
    if (plain := number(gold)) is not None:
        return Fraction(plain)
    if (match := FRACTION.fullmatch(gold.strip())) and int(match[3]):
        return Fraction(int(match[1] + match[2]), int(match[3]))
    return None


def parts(text: str) -> list[str]:
    """The pieces between commas outside of brackets."""
    depth, pieces = 0, [""]
    for character in text:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces]


def bracketed(gold: str) -> tuple[str, list[str], str] | None:
    """Opening, coordinates and closing of a pair or an interval of plain numbers."""
    text = re.sub(r"\\(left|right)\s*", "", gold.strip())
    if len(text) < 3 or text[0] not in BRACKETS or text[-1] not in ")]":
        return None
    inner = parts(text[1:-1])
    return (text[0], inner, text[-1]) if len(inner) > 1 and all(value(piece) is not None for piece in inner) else None


def listed(gold: str) -> list[str] | None:
    r"""The elements, all plain and different, of `1, 2` or `\{1, 2\}`."""
    text = gold.strip()
    if number(text) is not None:
        return None
    inner = parts(text[2:-2] if text.startswith(r"\{") and text.endswith(r"\}") else text)
    values = [value(piece) for piece in inner]
    return inner if len(inner) > 1 and None not in values and len(set(values)) == len(values) else None


# Rewritings: the same answer. None where one does not apply.


def spaced(gold: str) -> str | None:
    return None if WORDS.search(gold) else re.sub(r"\s*([+=]|(?<=\d)\))\s*", r"  \1 ", gold)


def unspaced(gold: str) -> str | None:
    return None if WORDS.search(gold) else re.sub(r"\s*([-+=(){}\[\]^_])\s*", r"\1", gold)


def dfrac(gold: str) -> str | None:
    return re.sub(r"\\[dt]?frac(?![A-Za-z])", r"\\dfrac", gold) if "frac" in gold else None


def tfrac(gold: str) -> str | None:
    return re.sub(r"\\[dt]?frac(?![A-Za-z])", r"\\tfrac", gold) if "frac" in gold else None


def left_right(gold: str) -> str | None:
    """Round brackets that stretch; taken away where they do already."""
    if r"\left" in gold:
        return None if re.search(r"\\(left|right)[^([\])]", gold) else re.sub(r"\\(left|right)", "", gold)
    if WORDS.search(gold) or "(" not in gold or gold.count("(") != gold.count(")"):
        return None
    return gold.replace("(", r"\left(").replace(")", r"\right)")


def reordered(gold: str) -> str | None:
    if (elements := listed(gold)) is None:
        return None
    turned = ", ".join(reversed(elements))
    return rf"\{{{turned}\}}" if gold.strip().startswith(r"\{") else turned


def slashed(gold: str) -> str | None:
    return "{}{}/{}".format(*match.groups()) if (match := FRACTION.fullmatch(gold.strip())) else None


def with_unit(gold: str) -> str | None:
    return rf"{gold} \text{{ cm}}" if number(gold) else None


def with_degrees(gold: str) -> str | None:
    return rf"{gold}^\circ" if number(gold) else None


def in_dollars(gold: str) -> str | None:
    return rf"\${gold}" if number(gold) else None


def assigned(gold: str) -> str | None:
    return f"x = {gold}" if value(gold) is not None else None


def decimal(gold: str) -> str | None:
    plain = number(gold)
    return None if plain is None else plain + ("0" if "." in plain else ".0")


def grouped(gold: str) -> str | None:
    plain = number(gold)
    return f"{int(plain):,}" if plain and "." not in plain and abs(int(plain)) > 999 else None


RIGHT: dict[str, Rewriting] = {
    rewriting.__name__: rewriting
    for rewriting in (
        spaced, unspaced, dfrac, tfrac, left_right, reordered, slashed, with_unit, with_degrees, in_dollars, assigned,
        decimal, grouped,
    )
}  # fmt: skip

# Perturbations: certainly another answer.


def one_more(gold: str) -> str | None:
    plain = number(gold)
    return None if plain is None else str(int(plain) + 1) if "." not in plain else f"{plain}1"


def tenfold(gold: str) -> str | None:
    plain = number(gold)
    return f"{plain}0" if plain and "." not in plain and int(plain) else None


def negated(gold: str) -> str | None:
    return None if not value(gold) else gold.strip()[1:] if gold.strip().startswith("-") else f"-{gold.strip()}"


def other_numerator(gold: str) -> str | None:
    match = FRACTION.fullmatch(gold.strip())
    return rf"{match[1]}\frac{{{int(match[2]) + 1}}}{{{match[3]}}}" if match else None


def inverted(gold: str) -> str | None:
    match = FRACTION.fullmatch(gold.strip())
    return rf"{match[1]}\frac{{{match[3]}}}{{{match[2]}}}" if match and match[2] != match[3] and int(match[2]) else None


def swapped(gold: str) -> str | None:
    """The coordinates of a point the other way round."""
    found = bracketed(gold)
    if found is None or found[0] != "(" or found[2] != ")" or value(found[1][0]) == value(found[1][-1]):
        return None
    return f"({', '.join(reversed(found[1]))})"


def one_less(gold: str) -> str | None:
    return ", ".join(elements[1:]) if (elements := listed(gold)) else None


def another_element(gold: str) -> str | None:
    return ", ".join([*elements, "98765"]) if (elements := listed(gold)) else None


def last_digit(gold: str) -> str | None:
    """Any gold with a number in it (not in a name): its last digit raised by one."""
    if value(gold) is not None or WORDS.search(gold) or listed(gold) or not (found := list(re.finditer(r"\d", gold))):
        return None
    at = found[-1].start()
    return gold[:at] + str((int(gold[at]) + 1) % 10) + gold[at + 1 :]


WRONG: dict[str, Rewriting] = {
    perturbation.__name__: perturbation
    for perturbation in (
        one_more, tenfold, negated, other_numerator, inverted, swapped, one_less, another_element, last_digit,
    )
}  # fmt: skip


def exchanges(golds: list[str], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yields golds of two problems whose plain values differ.

    Or only one of them has a plain value, and the other a variable.
    """
    found = 0
    while found < EXCHANGES_PER_SET:
        gold, other = rng.sample(golds, 2)
        a, b = value(gold), value(other)
        with_variable = re.search(r"(?<![A-Za-z\\])[a-z](?![A-Za-z])", other)
        if (a is not None and b is not None and a != b) or (a is not None and b is None and with_variable):
            found += 1
            yield gold, other


# Where Math-Verify itself is blind or loose, and so is the reward: the base of a number is not read, six decimals
# count, and the commas of thousands are known on bare numbers only.
BASE = re.compile(r"\d_\{?\d+\}?$")


def known_false_accept(gold: str, answer: str) -> bool:
    a, b = (re.fullmatch(r"-?\.\d+", text) for text in (gold, answer))
    tiny = bool(a and b) and abs(Fraction(gold) - Fraction(answer)) < Fraction(1, 10**6)
    factorial = "{" in gold and "!" in gold  # 1/2004! is 0 in six decimals
    return bool(BASE.search(gold)) or tiny or factorial


def known_false_reject(gold: str, answer: str) -> bool:
    return bool(re.search(r"\d,(\\!)?\d{3}", gold)) and answer.startswith("x = ") | answer.endswith(r"^\circ")


def cases(golds: list[str], rng: random.Random) -> Iterator[tuple[str, bool, str, str]]:
    """(kind, whether it is right, gold as published, answer). An answer stands in a box, without the gold's dollars."""
    some = rng.sample(golds, min(len(golds), 3000))
    for kind, change in [*RIGHT.items(), *WRONG.items()]:
        changed = ((gold, change(gold.strip("$"))) for gold in some)
        different = [(gold, answer) for gold, answer in changed if answer is not None and answer != gold]
        yield from ((kind, kind in RIGHT, gold, answer) for gold, answer in different[:CASES_PER_KIND])
    yield from (("exchanged", False, gold, other) for gold, other in exchanges(golds, rng))


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1, timeout_s=30) as judge:  # enough on a slow machine
        yield judge


@pytest.mark.parametrize("name", SETS)
def test_rewritten_golds_are_right_and_perturbed_ones_wrong(name: str, judge: Judge, real_data: Path) -> None:
    tried = list(cases(golds_of(real_data, name), random.Random(name)))
    verdicts = judge.grade([(box(answer), [gold]) for _, _, gold, answer in tried])
    counts = Counter((right, verdict.correct) for (_, right, _, _), verdict in zip(tried, verdicts, strict=True))
    rejects, accepts = counts[True, False], counts[False, True]
    print(
        f"{name}: {rejects} false rejects of {rejects + counts[True, True]} rewritten golds, {accepts} false accepts"
        f" of {accepts + counts[False, False]} perturbed or exchanged ones"
    )
    for (kind, right, gold, answer), verdict in zip(tried, verdicts, strict=True):
        case = (kind, gold, answer, verdict.status)
        assert verdict.correct == bare(gold, answer), case
        known = known_false_reject if right else known_false_accept
        assert verdict.correct == right or known(gold, answer), case
    kinds = Counter(kind for kind, *_ in tried)
    assert sum(kinds[kind] for kind in RIGHT) > 80 and sum(kinds[kind] for kind in WRONG) > 40
    assert kinds["exchanged"] == EXCHANGES_PER_SET
    if not name.startswith("gsm8k"):
        assert not (RIGHT.keys() | WRONG.keys()) - kinds.keys(), "every change applies to some golds"
