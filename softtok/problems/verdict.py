"""What an answer is and what it is worth: the words that all rewards share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Status = Literal["correct", "wrong", "unparsed", "refused", "timeout", "error", "unboxed", "too_long"]
GoldStatus = Literal["ok", "string", "unparsed", "timeout", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)


class Answer(NamedTuple):
    """One answer to be graded.

    `text` starts with the prefilled words; any one of `golds` is right. `prompt` and `columns` (a JSON object: the
    problem's other columns) are for rewards of the user's own.
    """

    text: str
    golds: Sequence[str]
    prompt: str = ""
    columns: str = "{}"


@dataclass(frozen=True)
class Verdict:
    """What one answer is worth, and why.

    `boxed` is the answer taken out of the text, such as what its box holds (None: `unboxed` or `too_long`). Status:
    correct; wrong; unparsed: wrong, and no mathematics (or no letter) in the answer; refused: wrong, as it would blow
    up when evaluated; timeout, error: counted as wrong, as the reward did not end, failed, crashed or ran out of
    memory; unboxed: no answer, or no closed box; too_long.
    """

    reward: float
    correct: bool
    boxed: str | None
    status: Status
