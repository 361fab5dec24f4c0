r"""Rewards for answers that are not mathematics: `exact` for words, `choice` for a letter.

Both need no worker.
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
    r"""Returns the text in NFC, without case, with single spaces, and without `\text{...}` and the like."""
    unstyled = _STYLE.sub(r"\1", text)
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", unstyled).casefold().split()))


def exact_status(answer: str, golds: Sequence[str]) -> Status:
    """Returns whether the answer has the same `plain_text` as a gold; punctuation matters."""
    return "correct" if plain_text(answer) in map(plain_text, golds) else "wrong"


def letter(text: str) -> str | None:
    r"""Returns the letter of an option that a text gives, in upper case; None if it gives none, or is ambiguous.

    The text is the letter alone, `B`, or starts with a letter and a bracket, dot or colon: `(B)`, `[B]`, `B.`,
    `B: Paris`, `B) because ...`. `$`, `*`, `\text{...}` and case are ignored. A letter before a space (`A dog`,
    `B or C`) is a word, and `B, C` is two answers.
    """
    plain = _STYLE.sub(r"\1", text).replace("$", "").replace("*", "").strip()
    found = _LETTER.fullmatch(plain)
    return found[1].upper() if found else None


def choice_status(answer: str, golds: Sequence[str]) -> Status:
    """Returns whether the answer gives the `letter` of a gold; `unparsed` if it gives none."""
    given = letter(answer)
    if given is None:
        return "unparsed"
    return "correct" if given in map(letter, golds) else "wrong"


def is_words(gold: str) -> bool:
    """Whether a gold is plain words, which Math-Verify would read as products of letters."""
    return _WORDS.fullmatch(gold.strip()) is not None
