"""Answers and verdicts, which all rewards share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Status = Literal["correct", "wrong", "unparsed", "refused", "timeout", "error", "unboxed", "too_long"]
GoldStatus = Literal["ok", "string", "unparsed", "timeout", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)
UNJUDGED: tuple[Status, ...] = ("timeout", "error")
"""Statuses that say nothing about the answer."""


class Answer(NamedTuple):
    """One answer to be graded.

    `text` starts with the prefilled words; any one of `golds` is right. `prompt` and `columns` (a JSON object with the
    problem's other columns) are for users' rewards.
    """

    text: str
    golds: Sequence[str]
    prompt: str = ""
    columns: str = "{}"


@dataclass(frozen=True)
class Verdict:
    """What one answer is worth, and why.

    `boxed` is the answer extracted from the text, such as the content of its box; None if `unboxed` or `too_long`. The
    status is one of: correct; wrong; unparsed (wrong: no mathematics, or no letter, in the answer); refused (wrong: too
    large to evaluate); timeout or error (no verdict: the reward did not end, failed, crashed or ran out of memory);
    unboxed (no answer, or no closed box); too_long. Without a verdict the reward is NaN, so that no mean takes it for
    that of a wrong answer.
    """

    reward: float
    correct: bool
    boxed: str | None
    status: Status

    @property
    def judged(self) -> bool:
        """Whether there is a verdict on the answer."""
        return self.status not in UNJUDGED
