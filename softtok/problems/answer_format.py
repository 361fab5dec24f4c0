r"""How a data set's answers are asked for and read: the stop phrase, the prefill, and which part of the text counts.

A trajectory reads `prompt + CoT + prefill + answer` (`prompt.py`). The paper's format is the default: the CoT ends with
"The final answer is:", ` \boxed{` is prefilled, and the last box holds the answer. Tasks without a box take another.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from softtok.problems.boxed import closes_box, last_boxed
from softtok.storage.records import Record

STOP_PHRASE = "The final answer is:"
BOX = r" \boxed{"
LINE = "\n"
"""A prefill for answers without a box. It must not be empty, as the tokens after a CoT must belong to the answer."""
OPEN_BOX = re.compile(r"\\boxed\s*\{\s*$")

Extract = Literal["boxed", "first_line", "last_line", "all"]


class AnswerFormat(Record):
    r"""What surrounds an answer, and which part of the generated text is the answer.

    `extract` names this part, which also decides when the answer ends:

    boxed       the content of the last closed box; the answer ends when the prefilled box closes
    first_line  the first line that is not blank; the answer ends with that line
    last_line   the last line that is not blank; the answer ends at EOS or at its cap
    all         the whole text; the answer ends at EOS or at its cap

    EOS always ends an answer. White space around it is ignored.
    """

    stop_phrase: str = Field(default=STOP_PHRASE, description="ends a CoT, and comes before the prefill of a cut one")
    extract: Extract = Field(default="boxed", description="which part of the generated text is the answer")
    prefill: str = Field(
        default=BOX,
        min_length=1,
        description="what each answer starts with; none given: an open box, or a line break where none is read",
    )

    @model_validator(mode="before")
    @classmethod
    def _prefill_follows(cls, given: Any) -> Any:
        if isinstance(given, dict) and "prefill" not in given and given.get("extract", "boxed") != "boxed":
            return given | {"prefill": LINE}
        return given

    @model_validator(mode="after")
    def _sensible(self) -> AnswerFormat:
        if not self.stop_phrase or self.stop_phrase != self.stop_phrase.strip():
            raise ValueError(f"stop_phrase: {self.stop_phrase!r} is empty, or has white space at an end")
        if (self.extract == "boxed") != bool(OPEN_BOX.search(self.prefill)):
            needs = "needs a prefill that ends with" if self.extract == "boxed" else "does not read the prefilled"
            raise ValueError(rf"prefill: extract: {self.extract} {needs} \boxed{{, and this one is {self.prefill!r}")
        return self

    @property
    def prefill_after_stop(self) -> str:
        """Prefilled when the CoT ended with the stop phrase."""
        return self.prefill

    @property
    def prefill_after_cut(self) -> str:
        """Prefilled when the CoT ended otherwise (cap or EOS); it starts with a space, as a word may come before it."""
        return f" {self.stop_phrase}{self.prefill}"

    def ends(self, answer: str) -> bool:
        """Whether the generated text, without the prefill, is a complete answer."""
        if self.extract == "boxed":
            return closes_box(answer) is not None
        return self.extract == "first_line" and "\n" in answer.lstrip()

    def ends_with(self, text: str) -> bool:
        """Whether a token with this text can complete an answer; after other tokens `ends` need not be called."""
        return {"boxed": "}", "first_line": "\n"}.get(self.extract, "\0") in text

    def answer(self, text: str) -> str:
        """Returns the answer in the prefilled and generated text; empty if there is none."""
        if self.extract == "boxed":
            return (last_boxed(text) or "").strip()
        written = self._without_prefill(text).strip()
        if self.extract == "all":
            return written
        lines = written.split("\n")
        return lines[0 if self.extract == "first_line" else -1].strip()

    def _without_prefill(self, text: str) -> str:
        """Returns the generated text; tokenizers may drop the space that a prefill starts with."""
        rest = text.lstrip()
        for words in (self.stop_phrase, self.prefill.strip()):
            rest = rest.removeprefix(words).lstrip()
        return rest

    def written(self, answer: str) -> str:
        """Returns the text that a model writes to give this answer, with the prefill."""
        return f"{self.prefill_after_stop}{answer}" + ("}." if self.extract == "boxed" else "")


PAPER_FORMAT = AnswerFormat()
