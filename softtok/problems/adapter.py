"""A user's data adapter, `adapter:` of a data set: a function that turns a source row into a problem.

    adapt(row: dict) -> dict | None

The returned row has `question` (a text) and `gold` (a text, or a list of texts of which any one is right). In a choice
set it has `question`, `choices` (a list of texts) and `answer` (an index, a letter or a label). Its other columns are
passed to a user's reward; one of them may be the data set's `id:`. None leaves the row out of a train set. A test or
choice set keeps every row.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from softtok import plugins
from softtok.errors import UserError
from softtok.plugins import Door, Form, Reference, blaming, shown
from softtok.problems.spec import Kind

DOOR = Door("adapter", forms=(Form(("row",)),))
Row = dict[str, Any]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_gold(value: object) -> bool:
    return isinstance(value, str) or _is_texts(value)


def _is_answer(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


OPEN_COLUMNS = {"question": (_is_text, "a text"), "gold": (_is_gold, "a text or a list of texts")}
CHOICE_COLUMNS = {
    "question": (_is_text, "a text"),
    "choices": (_is_texts, "a list of texts"),
    "answer": (_is_answer, "an index, a letter or a label"),
}


class Adapter:
    """A loaded adapter of a data set of one kind. Raises UserError, with file, line and row, for any failure."""

    def __init__(self, reference: Reference, kind: Kind) -> None:
        self.kind = kind
        self.plugin = plugins.read(reference)
        self.function: Callable[..., Any] = self.plugin.load()
        if not callable(self.function):
            raise self.plugin.fault(f"is {type(self.function).__name__}, not a function; adapter takes {DOOR.wanted}")

    def __call__(self, row: Row, where: str) -> Row | None:
        """Returns the adapted row, or None if it is left out; `where` names the row in messages."""
        with blaming(self.plugin, f"for {where}"):
            made = self.function(row=dict(row))
        if made is None:
            if self.kind != "train":
                raise self._fault("returns None", where, f"a {self.kind} set keeps every row")
            return None
        if not isinstance(made, dict) or not all(isinstance(name, str) for name in made):
            raise self._fault(f"returns {shown(made)}", where, "give a dictionary of columns")
        wanted = CHOICE_COLUMNS if self.kind == "choice" else OPEN_COLUMNS
        for name, (fits, words) in wanted.items():
            if name not in made:
                raise self._fault(f"returns no {name!r}", where, f"it returns {', '.join(made) or 'nothing'}")
            if not fits(made[name]):
                raise self._fault(f"returns {name!r}: {shown(made[name])}", where, f"{words} is wanted")
        with blaming(self.plugin, f"for {where}: its columns are not JSON"):
            json.dumps(made)
        return made

    def _fault(self, what: str, where: str, hint: str) -> UserError:
        return self.plugin.fault(f"{what} for {where}; {hint}")
