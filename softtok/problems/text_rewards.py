r"""Rewards for answers that are no mathematics: `exact` for words, `choice` for a letter.

Both decide at once, without a worker.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from softtok.problems.verdict import Status

_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\{([^{}]*)\}")
_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]+(?:\s.*)?)?", re.DOTALL)
_WORDS = re.compile(r"(?:[^\W\d_]{2,}|[aI])(?:[\s'’-]+[^\W\d_]+)*[.!]?")


def plain_text(text: str) -> str:
    r"""The text in one spelling: NFC, no letter case, single spaces, no `\text{...}` or the like around words."""
    unstyled = _STYLE.sub(r"\1", text)
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", unstyled).casefold().split()))


def exact_status(answer: str, golds: Sequence[str]) -> Status:
    """Whether the answer is the same text as one of the golds (`plain_text`). Punctuation counts."""
    return "correct" if plain_text(answer) in map(plain_text, golds) else "wrong"


def letter(text: str) -> str | None:
    r"""The letter of an option, in upper case, that a text gives; None where it gives none, or not for certain.

    The text is the letter alone, `B`, or starts with a letter that a bracket, dot or colon sets off: `(B)`, `[B]`,
    `B.`, `B: Paris`, `B) because ...`. `$`, `*`, `\text{...}` and letter case do not count. A letter with nothing but a
    space behind it (`A dog`, `B or C`) is a word, and `B, C` is two answers.
    """
    plain = _STYLE.sub(r"\1", text).replace("$", "").replace("*", "").strip()
    found = _LETTER.fullmatch(plain)
    return found[1].upper() if found else None


def choice_status(answer: str, golds: Sequence[str]) -> Status:
    """Whether the answer gives the `letter` of a gold; `unparsed` where it gives none."""
    given = letter(answer)
    if given is None:
        return "unparsed"
    return "correct" if given in map(letter, golds) else "wrong"


def is_words(gold: str) -> bool:
    """Whether a gold is plain words, which Math-Verify would read as products of letters."""
    return _WORDS.fullmatch(gold.strip()) is not None
