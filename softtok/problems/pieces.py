"""What each token adds to a text, as the text grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softtok.problems.prompt import decode

UNFINISHED = "\ufffd"
"""What a part of a character is decoded as."""


class Pieces:
    """Decodes ids one by one; together the pieces are the text of all ids.

    Some tokenizers leave out the space in front of a text's first token, and a character may be several tokens. So an
    id is decoded behind the ids before it, and a character belongs to the last of its tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.before: list[int] = []  # ids that were shown, for the next ones to follow
        self.waiting: list[int] = []  # ids of a character that is not complete

    def add(self, i: int) -> str:
        """Returns the text that an id adds; nothing while a character is not complete."""
        self.waiting.append(i)
        text = self._text()
        if text.endswith(UNFINISHED):
            return ""
        self.before, self.waiting = self.waiting, []
        return text

    def rest(self) -> str:
        """Returns what is left at the end: a character that was never completed."""
        return self._text() if self.waiting else ""

    def _text(self) -> str:
        return decode(self.tokenizer, self.before + self.waiting)[len(decode(self.tokenizer, self.before)) :]


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Returns what each id adds to the text of all."""
    growing = Pieces(tokenizer)
    found = [growing.add(i) for i in ids]
    return [*found[:-1], found[-1] + growing.rest()] if found else []
