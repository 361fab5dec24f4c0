"""A user's reward: a function in a file, called in the reward's worker processes.

The names of its arguments decide which of two forms it has:

    f(answer: str, gold: str) -> bool | float
        `answer` is what the answer format takes out of the text. It is called for each gold, and the best value
        counts. A text without an answer is `unboxed`, and the function is not called.
    f(prompts, completions, **columns) -> list[float]
        TRL's form. Each call gets one answer, so all lists have one entry: no reward depends on its batch, and a
        failure affects one answer alone. `prompts` holds the rendered prompt, `completions` the prefill and the answer.
        The columns hold the problem's values: those of its row, and `question` and `gold` (a list of right answers) if
        the row has no columns of these names. A function without `**columns` gets the columns that it names.

A bool is a verdict: the training reward is `reward_correct` for True, and that of a wrong answer for False. A number is
the training reward itself; from `solved_at` (default 1.0) on, it counts as solved in pass@k and accuracy. None, NaN,
infinity, an exception or a wrong number of values give the status `error`, for that answer alone. Values are
remembered, so a function must give equal answers equal rewards.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from softtok.errors import UserError
from softtok.plugins import Door, Form, Plugin, blaming, number, shown
from softtok.problems.answer_format import AnswerFormat
from softtok.problems.verdict import Answer, Status

SIMPLE = Form(required=("answer", "gold"))
TRL = Form(required=("completions",), optional=("prompts",), open=True)
DOOR = Door("reward", built_in=("math", "math-strict", "exact", "choice"), forms=(SIMPLE, TRL))
EXAMPLE = Answer("", ("4",), prompt="What is 2 + 2?", columns='{"question": "What is 2 + 2?"}')
"""The problem of the dry check, if no problem of the data set is known."""

Outcome = Status | float


@dataclass
class OwnReward:
    """A loaded function and how it is called."""

    plugin: Plugin
    function: Callable[..., Any]
    trl: bool
    columns: frozenset[str] | None = None  # the columns that it names; None: it takes all
    needed: frozenset[str] = field(default_factory=frozenset)  # columns without a default

    @classmethod
    def of(cls, plugin: Plugin) -> OwnReward:
        """Imports the function. Raises UserError if it cannot be a reward."""
        function = plugin.load()
        if not callable(function):
            raise plugin.fault(f"is {type(function).__name__}, not a function; reward takes {DOOR.wanted}")
        try:
            found = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            raise plugin.fault(f"does not tell its arguments; reward takes {DOOR.wanted}") from None
        positional = inspect.Parameter.POSITIONAL_ONLY
        stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = frozenset(p.name for p in found if p.kind not in (positional, *stars))
        needed = frozenset(p.name for p in found if p.kind not in stars and p.default is p.empty)
        any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)
        trl = "completions" in named
        if not trl and not (named >= {"answer", "gold"} >= needed):
            raise plugin.fault(f"takes ({', '.join(p.name for p in found)}); reward takes {DOOR.wanted}")
        return cls(plugin, function, trl, None if any_name else named, needed - {"prompts", "completions"})

    def value(self, text: str, answer: str, golds: Sequence[str], prompt: str, columns: str) -> bool | float:
        """Returns the value of one answer. Raises UserError, with file and line, for any failure."""
        if self.trl:
            return self.values([text], golds, prompt, columns)[0]
        doing = f"for answer={shown(answer)}"
        with blaming(self.plugin, doing):
            values = [self.function(answer=answer, gold=gold) for gold in golds]
        return max((number(self.plugin, value, doing) for value in values), key=float)

    def values(self, texts: list[str], golds: Sequence[str], prompt: str, columns: str) -> list[bool | float]:
        """Returns the values of answers to one problem, in TRL's form. Raises UserError like `value`."""
        given = {"question": "", "gold": list(golds)} | json.loads(columns)
        if missing := sorted(self.needed - set(given)):
            raise self.plugin.fault(f"needs column {missing[0]!r}; the data set has {', '.join(given)}")
        lists = {name: [value] * len(texts) for name, value in given.items()}
        lists |= {"prompts": [prompt] * len(texts), "completions": texts}
        doing = f"for completion {shown(texts[0])}"
        with blaming(self.plugin, doing):
            made = self.function(**{n: v for n, v in lists.items() if self.columns is None or n in self.columns})
            made = made.tolist() if hasattr(made, "tolist") else made
        if not isinstance(made, list | tuple) or len(made) != len(texts):
            count = f"{len(made)} values" if isinstance(made, list | tuple) else shown(made)
            raise self.plugin.fault(f"returns {count} for {len(texts)} completions, not a list of {len(texts)}")
        return [number(self.plugin, value, doing) for value in made]


# ---- run by the workers ----

_loaded: OwnReward | UserError | None = None
_told = False


def install(plugin: Plugin) -> None:
    """Imports the function at a worker's start, before its memory is limited."""
    global _loaded
    try:
        _loaded = OwnReward.of(plugin)
    except UserError as error:  # an error at the start would break the pool without a message
        _loaded = error


def judge(text: str, answer: str, golds: Sequence[str], prompt: str, columns: str) -> Outcome:
    """Returns the outcome of one answer; each worker prints its first fault, with file and line.

    Raises UserError where the function could not be imported.
    """
    global _told
    reward = _installed()
    if not answer and not reward.trl:
        return "unboxed"
    try:
        value = reward.value(text, answer, golds, prompt, columns)
    except UserError as error:
        if not _told:
            print(f"softtok: {error} (such answers have the status `error`; told once)", file=sys.stderr, flush=True)
            _told = True
        return "error"
    return ("correct" if value else "wrong") if isinstance(value, bool) else value


def rehearse(example: Answer, answers: AnswerFormat, built_in: bool) -> str:
    """Runs the dry check: a right and a wrong answer to a problem, together and one by one.

    Raises UserError for a failure. Returns "", or why the function could only be imported: it needs columns of a data
    set that is not prepared yet.
    """
    reward = _installed()
    unknown = sorted(reward.needed - {"question", "gold"})
    if built_in and reward.trl and unknown:
        return f"its column {unknown[0]!r} is known when the data set is prepared"
    given = [example.golds[0], f"{example.golds[0]}1"]
    texts = [answers.written(answer) for answer in given]
    try:
        if reward.trl:
            reward.values(texts, example.golds, example.prompt, example.columns)
        for text, answer in zip(texts, given, strict=True):
            reward.value(text, answers.answer(text) or answer, example.golds, example.prompt, example.columns)
    except UserError as error:
        if built_in and reward.trl and isinstance(error.__cause__, KeyError):
            return f"its column {error.__cause__} is known when the data set is prepared"
        raise
    return ""


def _installed() -> OwnReward:
    if isinstance(_loaded, UserError):
        raise _loaded
    if _loaded is None:
        raise RuntimeError("the worker was started without its reward")
    return _loaded
