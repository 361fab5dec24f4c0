r"""The outcome reward: what an answer is worth, behind a wall of time, memory and crash limits.

A data set's `Grading` names the reward and how an answer is taken out of the text:

    math     Math-Verify (`math_reward.py`), the paper's
    exact    the same text as a gold, whatever its case and spaces (`text_rewards.py`): for words
    choice   the letter of an option (`text_rewards.py`)
    a `Reference` to a function of the user's own (`own_reward.py`)

The `Judge` decides what it can at once and asks its workers (`workers.py`) for the rest.
"""

from __future__ import annotations

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
from softtok.problems.text_rewards import choice_status, exact_status, letter
from softtok.problems.verdict import Answer, GoldStatus, Status, Verdict
from softtok.problems.workers import Case, Workers
from softtok.storage.records import Record

__all__ = ["MATH", "Answer", "Grading", "Judge", "Status", "Verdict"]

MAX_CHARS = 10_000  # of an answer's text; 32 tokens are about 100
KNOWN_CASES = 100_000  # outcomes remembered
IMPORT_S, IMPORT_MB = 60.0, 65_536  # what a user's file may take to be imported

BuiltIn = Literal["math", "exact", "choice"]


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
    """Grades answers. A context manager: its workers, started when first needed, live until `close`.

    `timeout_s` and `memory_mb` are the limits of one answer (`workers.Workers`, which tells what a script needs). To be
    used from one thread at a time, whichever.
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
        """Reads the file of a user's reward. Raises UserError where it is gone or has changed."""
        self.reward_correct = reward_correct
        self.reward_boxed = reward_boxed
        self.grading = grading
        self.plugin = plugins.read(grading.reward) if isinstance(grading.reward, Reference) else None
        prepare = partial(own_reward.install, self.plugin) if self.plugin else None
        self._workers = Workers(workers, timeout_s, memory_mb, prepare)
        self._known: dict[Case, Outcome] = {}

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the workers, stuck ones included; a later `grade` starts new ones."""
        self._workers.close()

    def grade(self, items: Sequence[Answer | tuple[str, Sequence[str]]]) -> list[Verdict]:
        r"""One verdict per answer; see `Answer` and `Verdict`.

        An answer that hangs, crashes or starves its worker gets its own status and touches no other. Raises ValueError
        for an item without golds, RuntimeError when workers cannot be started at all.
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
        """How the reward takes each gold.

        ok: it parses, and equals itself; string: only its text is understood; unparsed: nothing is, or it does not
        equal itself; timeout; error. Only Math-Verify can fail on a text; `choice` wants a letter.
        """
        if self.grading.reward == "choice":
            return ["ok" if letter(gold) else "unparsed" for gold in golds]
        if self.grading.reward != "math":
            return ["ok"] * len(golds)
        answers = self._workers.ask(check_gold, dict.fromkeys((gold,) for gold in golds if plain_number(gold) is None))
        return [answers.get((gold,), "ok") for gold in golds]

    def dry_check(self, example: Answer | None = None) -> str:
        """Calls a user's reward on a right and a wrong answer, behind the wall.

        `example`: a problem of the data set, by default a built-in one. Returns "", or why the function could only be
        imported. Raises UserError, one line, for whatever is wrong.
        """
        if self.plugin is None:
            return ""
        # The import alone first, as a task: one that hangs or ends its process breaks no pool.
        importing = Workers(1, IMPORT_S, IMPORT_MB, None)
        try:
            self._expect(importing, own_reward.install, (self.plugin,), "while it is imported")
        finally:
            importing.close()
        shown = example or EXAMPLE
        case = (shown._replace(golds=tuple(shown.golds)), self.grading.answer_format, example is None)
        return self._expect(self._workers, own_reward.rehearse, case, "on an example") or ""

    def _expect(self, workers: Workers, function: Callable[..., str | None], case: Case, doing: str) -> str | None:
        """What one call of a user's code returns. Raises UserError where it does not end, or ends its process."""
        answer: str | None = workers.ask(function, [case])[case]
        assert self.plugin is not None
        if answer == "timeout":
            raise self.plugin.fault(f"takes more than {workers.timeout_s:g} s, or ends its process, {doing}")
        if answer == "error":
            raise self.plugin.fault(f"ends its process, or takes more than {workers.memory_mb} MB, {doing}")
        return answer

    def _look(self, answer: Answer) -> tuple[str, Outcome | None]:
        """(the answer taken out of the text, its outcome where it takes no worker)."""
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
            case "exact":
                return exact_status(found, golds)
            case "choice":
                return choice_status(found, golds)
            case _:
                return None

    @property
    def _question(self) -> Callable[..., Outcome]:
        """What the workers are asked, of a `_case`."""
        return compare if self.plugin is None else own_reward.judge

    def _case(self, answer: Answer, found: str) -> Case:
        """All that the workers' outcome depends on."""
        if self.plugin is None:
            return found, tuple(answer.golds)
        return answer.text, found, tuple(answer.golds), answer.prompt, answer.columns

    def _verdict(self, found: str | None, outcome: Outcome) -> Verdict:
        if not isinstance(outcome, str):
            solved = outcome >= self.grading.solved_at
            return Verdict(outcome, solved, found, "correct" if solved else "wrong")
        reward = self.reward_correct if outcome == "correct" else 0.0 if found is None else self.reward_boxed
        return Verdict(reward, outcome == "correct", found, outcome)

    def _remember(self, answers: dict[Case, Outcome]) -> None:
        """Keeps outcomes for later calls: also timeouts, or a policy fond of one pays for it at every step.

        Errors are not kept: they may be the machine's.
        """
        if len(self._known) + len(answers) > KNOWN_CASES:
            self._known.clear()
        self._known.update((case, outcome) for case, outcome in answers.items() if outcome != "error")
