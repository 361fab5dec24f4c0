"""Finds golds that the reward cannot use, and golds for which another reward is better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from softtok.problems.spec import JudgedBy
from softtok.problems.text_rewards import is_words

if TYPE_CHECKING:
    from softtok.problems.reward import BuiltIn

Row = dict[str, Any]
GOLD_TIMEOUT_S = 30.0
GOLD_FAULTS = {
    "string": "parses only as a string, so nothing but the same text is right",
    "unparsed": "does not parse",
    "timeout": f"takes more than {GOLD_TIMEOUT_S:.0f} s to parse",
    "error": "breaks the parser",
}
JUDGES: dict[JudgedBy, BuiltIn] = {
    "math": "math",
    "math-strict": "math-strict",
    "exact": "exact",
    "choice": "choice",
    "function": "exact",
}


def checked(problems: Iterator[Row], block: int, judged_by: JudgedBy = "math") -> Iterator[tuple[Row, list[str]]]:
    """Yields each problem with its faults; the adapter has left out a problem without a row.

    Golds are judged `block` problems at a time, so that with a small limit not all of a large set is judged.
    """
    from softtok.problems.reward import Grading, Judge

    statuses: dict[str, str] = {}
    # A user's function may take any gold, like `exact`.
    with Judge(timeout_s=GOLD_TIMEOUT_S, grading=Grading(reward=JUDGES[judged_by])) as judge:
        while some := list(islice(problems, block)):
            texts = list(dict.fromkeys(g for problem in some for g in problem["gold"] if g not in statuses))
            statuses |= zip(texts, judge.check_golds(texts), strict=True)
            for problem in some:
                if problem["row"] is None:
                    yield problem, ["the adapter returned None"]
                    continue
                faults = ["no question"] * (not problem["question"]) + ["no gold"] * (not problem["gold"])
                faults += [
                    f"gold {gold!r}: {GOLD_FAULTS[statuses[gold]]}"
                    for gold in problem["gold"]
                    if statuses[gold] != "ok"
                ]
                yield problem, faults


def words_warning(problems: Sequence[Row]) -> list[str]:
    """Returns a warning if most golds are words, which Math-Verify reads as products of letters."""
    words = [problem["gold"][0] for problem in problems if problem["gold"] and all(map(is_words, problem["gold"]))]
    if 2 * len(words) <= len(problems):
        return []
    return [
        f"{len(words)} of {len(problems)} golds are words, such as {words[0]!r}. reward: math reads a word as a product"
        f" of its letters, so that {words[0][::-1]!r} is right too; set reward: exact"
    ]
