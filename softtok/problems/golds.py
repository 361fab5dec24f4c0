r"""Judges golds: which the reward cannot use, and which a model would write in another way.

A gold in an odd form is noted by the name of the form. It is flagged if the reward would call the plain form wrong,
which is what a model writes: "9" where the gold is "9 (apples)".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from softtok.problems.spec import JudgedBy
from softtok.problems.text_rewards import is_words

if TYPE_CHECKING:
    from softtok.problems.reward import BuiltIn, Judge

Row = dict[str, Any]
GOLD_TIMEOUT_S = 30.0
GOLD_FAULTS = {
    "string": "parses only as a string, so nothing but the same text is right",
    "unparsed": "does not parse",
    "timeout": "takes too long to parse",
    "error": "breaks the parser",
}


class Form(NamedTuple):
    """A way to write a gold that a model may not follow: its name, and the gold without it (None: only as it is)."""

    name: str
    plain: str | None


_NUMBER = r"[-+−]?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)"
_GLUED = r"(?:[cmkd]m|[km]?g|m[lL]|ft|lbs?|oz|hrs?|mph|kph|[ap]m|st|nd|rd|th|[^\W\d_]{4,})(?![^\W\d_])"  # no 2xy
_SPACED = r"[^\W\d_]{2,}"
_LATEX_UNIT = r"\\(?:text|mathrm|textrm|mbox)\s*\{[^{}]*\}|\^\s*\{?\s*\\circ\s*\}?|\\?%|\\?\$|[€£¥°]"
_TAIL = r"(?:[^0-9+=<>,;]|\^\s*\{?[0-9]\}?)*"  # cm^2 and m per s, but neither a second number nor a sum
_UNITS = re.compile(
    rf"\\?[$€£¥]\s*(?P<after>{_NUMBER})(?:\s{_TAIL})?"
    rf"|(?P<before>{_NUMBER})(?:{_GLUED}|(?:\\[,;! ]|~|\s)+{_SPACED}|(?:\\[,;! ]|~|\s)*(?:{_LATEX_UNIT})){_TAIL}"
)
# Words in the parentheses, as in 9 (apples); those of \left(\frac{1}{2}\right) and 5(ab + c) are no words.
_PARENTHESES = re.compile(
    r"(?P<before>[^()]*(?:[0-9}\]%°]|(?<![\\A-Za-z])[A-Za-z]+(?=\s)))"
    r"(?:\s+\([^()+=^\\*_]*[^\W\d_]{2}|\([^()+=^\\*_]*[^\W\d_]{4})[^()+=^\\*_]*\)\.?"
)
_LISTED = re.compile(r"""\[\s*(['"])([^'"]*)\1\s*\]""")  # ['5'], as pandas writes a list
_SHORT_WORDS = {"no", "on", "up", "in"}
_E_NOTATION = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?[eE][-+]?[0-9]{1,3}")
_THOUSANDS = re.compile(
    r"[-+]?[1-9][0-9]{0,2}(?:(?:,|\\,|\{,\}|\\!|,\\!|[ '’\u00a0\u2009\u202f])[0-9]{3})+(?:\.[0-9]+)?"
)
_NOT_DIGITS = re.compile(r"[^0-9.+-]")
_NOTHING = {"nan", "null", "none", "n/a", "?", "-", "--"}


_SHAPES: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    ("a list in a text", _LISTED, lambda found: found[2]),
    ("parentheses", _PARENTHESES, lambda found: found["before"].strip()),
    ("e-notation", _E_NOTATION, lambda found: format(Decimal(found[0]), "f")),
    ("thousands separators", _THOUSANDS, lambda found: _NOT_DIGITS.sub("", found[0])),
    ("units", _UNITS, lambda found: found["after"] or found["before"]),
)
"""The names of odd forms, what they look like, and the gold without them; the first that fits counts."""


def forms(gold: str) -> list[Form]:
    """Returns the odd forms of a gold: its control characters, and the first other one."""
    controls = any(unicodedata.category(character) == "Cc" for character in gold if character not in "\n\t")
    return [Form("control characters", None)] * controls + ([form] if (form := _form(gold)) else [])


def _form(gold: str) -> Form | None:
    if gold.casefold() in _NOTHING:
        return Form("no value", None)
    vowel = len(gold) > 2 and re.search("[aeiouyAEIOUY]", gold)
    if is_words(gold) and (vowel or gold.casefold() in _SHORT_WORDS):
        return Form("words", None)
    found = ((name, plain, form.fullmatch(gold)) for name, form, plain in _SHAPES)
    return next((Form(name, plain(match)) for name, plain, match in found if match), None)


class Reason(NamedTuple):
    """Why a problem is dropped or flagged: what kind of reason it is, for counts, and the reason in full."""

    kind: str
    text: str


class Judged(NamedTuple):
    """A problem and what is odd about it: with `faults` a train set drops it, with `notes` it is flagged."""

    problem: Row
    faults: list[Reason]
    notes: list[Reason]


class GoldJudge:
    """Judges the golds of a set under its reward; counts their forms. A context manager, as it has worker processes."""

    def __init__(self, judged_by: JudgedBy) -> None:
        from softtok.problems.reward import Grading, Judge

        # A user's function may take any gold, like `exact`.
        reward: BuiltIn = "exact" if judged_by == "function" else judged_by
        self.judged_by = judged_by
        self.judge: Judge = Judge(timeout_s=GOLD_TIMEOUT_S, grading=Grading(reward=reward))
        self.statuses: dict[str, str] = {}
        self.notes: dict[str, list[Reason]] = {}
        self.forms: Counter[str] = Counter()

    def __enter__(self) -> GoldJudge:
        return self

    def __exit__(self, *_: object) -> None:
        self.judge.close()

    def __call__(self, problems: Iterator[Row], block: int) -> Iterator[Judged]:
        """Yields each problem with what is odd about it; the adapter has left out a problem without a row.

        Golds are judged `block` problems at a time, so that with a small limit not all of a large set is judged.
        """
        while some := list(islice(problems, block)):
            texts = list(dict.fromkeys(g for problem in some for g in problem["gold"] if g not in self.statuses))
            self.statuses |= zip(texts, self.judge.check_golds(texts), strict=True)
            self._look(texts)
            for problem in some:
                yield self._judged(problem)

    def _judged(self, problem: Row) -> Judged:
        if problem["row"] is None:
            return Judged(problem, [plain_reason("the adapter returned None")], [])
        golds: list[str] = problem["gold"]
        faults = [plain_reason(f"no {part}") for part in ("question", "gold") if not problem[part]]
        for gold in golds:
            if (status := self.statuses[gold]) != "ok":
                why = GOLD_FAULTS[status]
                faults.append(Reason(f"a gold that {why.partition(',')[0]}", f"gold {gold!r}: {why}"))
        return Judged(problem, faults, [note for gold in golds for note in self.notes.get(gold, [])])

    def count(self, golds: Sequence[str]) -> None:
        """Counts the forms of the golds of a problem that is kept, each once."""
        if self.judged_by in MATHEMATICS:
            self.forms.update({form.name for gold in golds for form in forms(gold)})

    def _look(self, golds: Sequence[str]) -> None:
        """Notes golds whose plain form is not right under the reward."""
        if self.judged_by not in MATHEMATICS:
            found = {gold: [Form("no value", None)] for gold in golds if gold.casefold() in _NOTHING}
        else:
            found = {gold: forms(gold) for gold in golds}
        asked = [(gold, form) for gold, them in found.items() for form in them]
        plain = [(rf" \boxed{{{form.plain}}}", (gold,)) for gold, form in asked if form.plain is not None]
        verdicts = iter(self.judge.grade(plain))
        for gold, form in asked:
            if form.plain is None:
                odd, why = form.name != "words" or self.judged_by == "math", ""
            else:
                odd, why = not next(verdicts).correct, f", the answer {form.plain!r} is wrong"
            if odd:
                self.notes.setdefault(gold, []).append(Reason(form.name, f"gold {gold!r}: {form.name}{why}"))


MATHEMATICS: tuple[str, ...] = ("math", "math-strict")


def plain_reason(text: str) -> Reason:
    """Returns a reason that names no gold."""
    return Reason(text, text)


def counted(kinds: Counter[str]) -> str:
    """Returns the number of each kind, the most frequent first: "no gold 3, units 2"."""
    return ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())


def words_warning(problems: Sequence[Row], judged_by: JudgedBy) -> list[str]:
    """Returns a warning if most golds are words and the reward is one of mathematics."""
    if judged_by not in MATHEMATICS:
        return []
    words = [problem["gold"][0] for problem in problems if problem["gold"] and all(map(is_words, problem["gold"]))]
    if 2 * len(words) <= len(problems):
        return []
    found = f"{len(words)} of {len(problems)} golds are words, such as {words[0]!r}."
    if judged_by == "math-strict":
        return [f"{found} reward: math-strict is for mathematics; set reward: exact, which compares words alone"]
    return [
        f"{found} reward: math reads a word as a product of its letters, so that {words[0][::-1]!r} is right too;"
        " set reward: exact"
    ]
