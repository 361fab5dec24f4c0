r"""The outcome reward: what an answer is worth, with limits on time, memory and crashes.

A data set's `Grading` says how an answer is extracted from the text, and names the reward:

    math         Math-Verify (`math_reward.py`), the paper's
    math-strict  what the gold says, however it is written, and nothing else (`strict_reward.py`)
    exact        the same text as a gold, except for case and spaces (`text_rewards.py`): for words
    choice       the letter of an option (`text_rewards.py`)
    a `Reference` to a user's function (`own_reward.py`)

The `Judge` decides what it can itself, and asks its workers (`workers.py`) for the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from softtok import plugins
from softtok.plugins import Reference
from softtok.problems import own_reward
from softtok.problems.answer_format import AnswerFormat
from softtok.problems.math_reward import check_gold, compare, plain_number, quick_status
from softtok.problems.own_reward import EXAMPLE, Outcome
from softtok.problems.strict_math import check_gold_strictly, compare_strictly
from softtok.problems.strict_reward import quick_strict, readable
from softtok.problems.text_rewards import choice_status, exact_status, letter
from softtok.problems.verdict import UNJUDGED, Answer, GoldStatus, Status, Verdict
from softtok.problems.workers import Case, Workers
from softtok.storage.records import Record

__all__ = ["MATH", "Answer", "Grading", "Judge", "Status", "Verdict"]

MAX_CHARS = 10_000  # of an answer's text; 32 tokens are about 100
KNOWN_CASES = 100_000  # outcomes remembered
CPU_S = 0.5  # of a worker, on one answer to mathematics; golds of the real sets take up to 0.2 s
IMPORT_S, IMPORT_MB = 60.0, 65_536  # limits on the import of a user's file

BuiltIn = Literal["math", "math-strict", "exact", "choice"]
OTHER: dict[BuiltIn | Reference, BuiltIn] = {"math": "math-strict", "math-strict": "math"}
"""The reward whose verdict is told beside that of a reward."""


class Grading(Record):
    """How the answers of a data set are judged; part of the specs of its runs and evaluations."""

    reward: BuiltIn | Reference = "math"
    solved_at: float = Field(default=1.0, description="a number that a user's function returns is solved from here on")
    answer_format: AnswerFormat = AnswerFormat()

    @property
    def wants_columns(self) -> bool:
        """Whether the reward may read columns of the data set other than question and gold."""
        return isinstance(self.reward, Reference)


MATH = Grading()


class Judge:
    """Grades answers; a context manager, whose workers start when first needed and live until `close`.

    `timeout_s` and `memory_mb` are the limits of one answer. Mathematics may take a tenth of the time as CPU time, and
    `CPU_S` at least. Only one thread at a time may use a judge. `Workers` says what the running script needs.
    """

    def __init__(
        self,
        workers: int = 1,
        timeout_s: float = 5.0,
        memory_mb: int = 1024,
        reward_correct: float = 100.0,
        reward_boxed: float = 10.0,
        grading: Grading = MATH,
    ) -> None:
        """Reads the file of a user's reward. Raises UserError if it is missing or has changed."""
        self.reward_correct = reward_correct
        self.reward_boxed = reward_boxed
        self.grading = grading
        self.plugin = plugins.read(grading.reward) if isinstance(grading.reward, Reference) else None
        prepare = partial(own_reward.install, self.plugin) if self.plugin else None
        cpu_s = None if self.plugin else max(CPU_S, timeout_s / 10)
        self._workers = Workers(workers, timeout_s, memory_mb, prepare, cpu_s)
        self._known: dict[Case, Outcome] = {}
        self._other: Judge | None = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the workers, stuck ones included; a later `grade` starts new ones."""
        self._workers.close()

    @property
    def other(self) -> Judge | None:
        """A judge of the `OTHER` reward with the same workers, if there is one."""
        if self.grading.reward not in OTHER:
            return None
        if self._other is None:
            self._other = copy.copy(self)
            self._other.grading = self.grading.model_copy(update={"reward": OTHER[self.grading.reward]})
            self._other._known = {}
        return self._other

    def grade(self, items: Sequence[Answer | tuple[str, Sequence[str]]]) -> list[Verdict]:
        """Returns one verdict per answer; see `Answer` and `Verdict`.

        An answer that hangs, crashes or needs too much memory gets its own status and does not affect others. Raises
        ValueError for an item without golds, RuntimeError if workers cannot be started at all.
        """
        asked = [Answer(*item) for item in items]
        seen = [self._look(answer) for answer in asked]
        cases = [self._case(answer, found) for answer, (found, _) in zip(asked, seen, strict=True)]
        undecided = [case for case, (_, outcome) in zip(cases, seen, strict=True) if outcome is None]
        answers: dict[Case, Outcome] = self._workers.ask(self._question, dict.fromkeys(undecided))
        self._remember(answers)
        return [
            self._verdict(found or None, answers[case] if outcome is None else outcome)
            for case, (found, outcome) in zip(cases, seen, strict=True)
        ]

    def check_golds(self, golds: Sequence[str]) -> list[GoldStatus]:
        """Returns whether the reward can use each gold.

        ok: it parses and equals itself; string: it parses only as text; unparsed: it does not parse, or does not equal
        itself; timeout; error. `math-strict` also accepts words, `exact` any text, `choice` needs a letter.
        """
        if self.grading.reward == "choice":
            return ["ok" if letter(gold) else "unparsed" for gold in golds]
        if self.grading.reward not in OTHER:
            return ["ok"] * len(golds)
        strict = self.grading.reward == "math-strict"
        check = check_gold_strictly if strict else check_gold
        known = readable if strict else lambda gold: plain_number(gold) is not None
        answers = self._workers.ask(check, dict.fromkeys((gold,) for gold in golds if not known(gold)))
        return [answers.get((gold,), "ok") for gold in golds]

    def dry_check(self, example: Answer | None = None) -> str:
        """Calls a user's reward on a right and a wrong answer, within the limits.

        `example` is a problem of the data set; without it, a built-in one is used. Returns "", or why the function
        could only be imported. Raises UserError for any failure.
        """
        if self.plugin is None:
            return ""
        # The import comes first and alone, as a task: if it hangs or ends its process, the pool is not broken.
        importing = Workers(1, IMPORT_S, IMPORT_MB, None)
        try:
            self._expect(importing, own_reward.install, (self.plugin,), "while it is imported")
        finally:
            importing.close()
        shown = example or EXAMPLE
        case = (shown._replace(golds=tuple(shown.golds)), self.grading.answer_format, example is None)
        return self._expect(self._workers, own_reward.rehearse, case, "on an example") or ""

    def _expect(self, workers: Workers, function: Callable[..., str | None], case: Case, doing: str) -> str | None:
        """Returns what one call of a user's code returns. Raises UserError if it does not end, or ends its process."""
        answer: str | None = workers.ask(function, [case])[case]
        assert self.plugin is not None
        if answer == "timeout":
            raise self.plugin.fault(f"takes more than {workers.timeout_s:g} s, or ends its process, {doing}")
        if answer == "error":
            raise self.plugin.fault(f"ends its process, or takes more than {workers.memory_mb} MB, {doing}")
        return answer

    def _look(self, answer: Answer) -> tuple[str, Outcome | None]:
        """Returns the answer extracted from the text, and its outcome if no worker is needed."""
        if not answer.golds:
            raise ValueError("an answer cannot be graded without a gold answer")
        if len(answer.text) > MAX_CHARS:
            return "", "too_long"
        found = self.grading.answer_format.answer(answer.text)
        if not found and self.plugin is None:
            return "", "unboxed"
        return found, self._at_once(found, answer.golds) or self._known.get(self._case(answer, found))

    def _at_once(self, found: str, golds: Sequence[str]) -> Status | None:
        match self.grading.reward:
            case "math":
                return quick_status(found, tuple(golds))
            case "math-strict":
                return quick_strict(found, tuple(golds))
            case "exact":
                return exact_status(found, golds)
            case "choice":
                return choice_status(found, golds)
            case _:
                return None

    @property
    def _question(self) -> Callable[..., Outcome]:
        """The function that workers call on a `_case`."""
        if self.plugin is not None:
            return own_reward.judge
        return compare_strictly if self.grading.reward == "math-strict" else compare

    def _case(self, answer: Answer, found: str) -> Case:
        """Returns everything that the workers' outcome depends on."""
        if self.plugin is None:
            return found, tuple(answer.golds)
        return answer.text, found, tuple(answer.golds), answer.prompt, answer.columns

    def _verdict(self, found: str | None, outcome: Outcome) -> Verdict:
        if not isinstance(outcome, str):
            solved = outcome >= self.grading.solved_at
            return Verdict(outcome, solved, found, "correct" if solved else "wrong")
        if outcome in UNJUDGED:
            return Verdict(math.nan, False, found, outcome)
        reward = self.reward_correct if outcome == "correct" else 0.0 if found is None else self.reward_boxed
        return Verdict(reward, outcome == "correct", found, outcome)

    def _remember(self, answers: dict[Case, Outcome]) -> None:
        """Keeps outcomes for later calls, except errors, which may come from the machine.

        Timeouts are kept too: a policy that often gives such an answer would cause one at every step.
        """
        if len(self._known) + len(answers) > KNOWN_CASES:
            self._known.clear()
        self._known.update((case, outcome) for case, outcome in answers.items() if outcome != "error")
