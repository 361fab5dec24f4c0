r"""Fuzzed golds and answers: `math` is bare Math-Verify, `math-strict` is reflexive, and neither hangs or crashes.

`SOFTTOK_EXAMPLES=10` tries ten times as many as CI does: 5,000 answers.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from softtok.problems.reward import Grading, Judge
from softtok.problems.verdict import STATUSES, Verdict
from tests.support.answers import bare, box, golds_of_sets
from tests.support.examples import multiplier

pytestmark = pytest.mark.thorough

ANSWERS, COMPARED, REAL = (max(1, round(count * multiplier())) for count in (500, 250, 2000))
REWARDS = ("math", "math-strict")

ATOMS = r"""
    0 1 2 7 12 100 1,234 3.5 .5 -3 x y n a e i \pi \infty 1/2 \frac{1}{2} \frac34 \sqrt{2} \sqrt2 x^2 2^{10}
    10! 5\% 12^{th} \theta \text{cm} \text{ or } \text{no solution} yes Paris A (C) p.m. 45^\circ ½ √3 x² π ≤
    − ３ \$ € ** " ' \, \emptyset \varnothing \mathbb{R} \ldots \binom{5}{2} \sin{x} \log_2 8 |x| \lfloor 2.5
    \rfloor f(x) \sum_{k=1}^{3}k \int_0^1 1011_2 4:30 2:3 6.02e23 \begin{pmatrix}1\\2\end{pmatrix} 18 dollars
""".split()
SIGNS = [
    *"+-*/^_=<>,;:!|%&~()[]{}.",
    " ",
    " ",
    "",
    "",
    r"\cdot",
    r"\times",
    r"\pm",
    r"\cup",
    r"\in",
    r"\le",
    r"\to",
    "\\",
    "\n",
    "\t",
    r"\left(",
    r"\right)",
]
LETTERS = "0123456789abcxyzXYZ \\{}()[]^_+-=*/|<>.,:;!?%$&~'\"éß字😀\u200b\u0301"


GOLDS = [
    "42",
    "-3",
    "0.5",
    "1,234",
    r"\frac{3}{4}",
    r"2\sqrt{3}",
    r"\pi",
    "(1, 2)",
    "[0, 1)",
    r"(-\infty, 3)",
    "1, 2, 3",
    "x^2 + 1",
    r"\frac{x+2}{7}",
    r"\text{even}",
    "Paris",
    r"\text{(C)}",
    "y = 2x + 1",
    r"1 \pm \sqrt{2}",
    r"50\%",
    r"45^\circ",
    "1011_2",
    "2:3",
    r"\{1, 2\}",
    r"\frac{1}{12}",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    "3 + 4i",
    "x > 2",
    r"10^{-7}",
    "2^{100}",
    r"\emptyset",
    "18 dollars",
    r"\sqrt[3]{2}",
    "12:00",
    r"1,2,\ldots,n",
]


def fuzzed(rng: random.Random) -> str:
    """An answer of pieces of mathematics and of accidents, which may repeat."""
    kind = rng.random()
    if kind < 0.6:
        pieces = [rng.choice(ATOMS) + rng.choice(SIGNS) for _ in range(rng.randint(1, 8))]
        return "".join(pieces)
    if kind < 0.75:
        piece: str = rng.choice(ATOMS + SIGNS)
        return piece * rng.randint(2, 60)
    if kind < 0.9:
        return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 60)))
    opening, closing = rng.choice(
        [(r"\frac{", "}{2}"), (r"\sqrt{", "}"), ("(", ")"), ("{", "}"), ("x^{", "}"), ("|", "|")]
    )
    depth = rng.randint(1, 30)
    return opening * depth + rng.choice(ATOMS) + closing * depth


@pytest.fixture(scope="module")
def judges() -> Iterator[dict[str, Judge]]:
    with Judge(workers=2) as math, Judge(workers=2, grading=Grading(reward="math-strict")) as strict:
        yield {"math": math, "math-strict": strict}


@pytest.mark.slow
@pytest.mark.parametrize("reward", REWARDS)
def test_fuzzed_answers_neither_hang_nor_crash(reward: str, judges: dict[str, Judge]) -> None:
    rng = random.Random(14)
    items = [(box(fuzzed(rng)), [rng.choice(GOLDS)]) for _ in range(ANSWERS)]
    items += [(box(f"{gold}."), [gold]) for gold in GOLDS]
    started = time.monotonic()
    verdicts = judges[reward].grade(items)
    counts = Counter(verdict.status for verdict in verdicts)
    print(f"{reward}: {dict(counts)} in {time.monotonic() - started:.0f} s")
    assert not counts["error"], [
        item for item, verdict in zip(items, verdicts, strict=True) if verdict.status == "error"
    ]
    assert counts["timeout"] < 0.1 * len(items), "bounded by CPU time, and rare"
    assert set(counts) <= set(STATUSES) and counts["correct"]


def compared(golds: list[str], rng: random.Random) -> list[tuple[str, str]]:
    """Real golds with fuzzed answers, with each other, with edits of themselves; and fuzzed golds."""
    pairs = []
    for _ in range(COMPARED):
        gold = rng.choice(golds) if rng.random() < 0.8 else fuzzed(rng)
        kind, place = rng.random(), rng.randrange(max(len(gold), 1))
        if kind < 0.3:
            answer = fuzzed(rng)
        elif kind < 0.6:
            answer = rng.choice(golds)
        elif kind < 0.8:
            answer = gold[:place] + rng.choice(ATOMS + SIGNS) + gold[place + 1 :]
        else:
            answer = rng.choice(
                [gold + ".", gold.replace("frac", "dfrac"), f"x = {gold}", gold + r" \text{ cm}", f"({gold})"]
            )
        pairs.append((gold, answer))
    return pairs


def test_math_is_bare_math_verify(judges: dict[str, Judge]) -> None:
    """Whatever the shortcuts and the workers do; only what they give up on is not compared."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    real = golds_of_sets(os.environ.get("SOFTTOK_TEST_DATA"))
    pairs = compared([*GOLDS, *random.Random(1).sample(real, min(len(real), 2000))], random.Random(2))
    verdicts = judges["math"].grade([(box(answer), [gold]) for gold, answer in pairs])
    compared_pairs = 0
    for (gold, answer), verdict in zip(pairs, verdicts, strict=True):
        if not verdict.judged or verdict.status == "refused" or not seen_alike(answer, verdict):
            continue
        compared_pairs += 1
        assert verdict.correct == bare(gold, answer), (gold, answer, verdict.status)
    assert compared_pairs > 0.8 * len(pairs)


def seen_alike(answer: str, verdict: Verdict) -> bool:
    """Whether all of an answer reached the reward: a brace too many ends the box before."""
    return verdict.boxed == answer.strip() and bool(answer.strip())


def test_a_gold_is_right_for_itself(judges: dict[str, Judge]) -> None:
    real = golds_of_sets(os.environ.get("SOFTTOK_TEST_DATA"))
    golds = [*GOLDS, *random.Random(3).sample(real, min(len(real), 500))]
    for judge in judges.values():
        verdicts = judge.grade([(box(gold), [gold]) for gold in golds])
        assert [gold for gold, verdict in zip(golds, verdicts, strict=True) if not verdict.correct] == []


@pytest.mark.slow
@pytest.mark.parametrize("reward", REWARDS)
def test_no_right_answer_of_a_real_set_is_lost(reward: str, real_data: Path) -> None:
    """Each gold, written in another way so that no shortcut knows it, within the limits of a worker."""
    golds = golds_of_sets(str(real_data))
    step = max(1, len(golds) // REAL)
    chosen = golds[::step]
    with Judge(workers=2, grading=Grading.model_validate({"reward": reward})) as judge:
        statuses = judge.check_golds(chosen)
    lost = [gold for gold, status in zip(chosen, statuses, strict=True) if status in ("timeout", "error")]
    print(f"{reward}: {Counter(statuses)} of {len(golds)} golds")
    assert lost == []
