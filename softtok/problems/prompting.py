r"""How a question is asked: a template, worked examples in front of it, an instruction, or a model's chat template.

A data set's keys go before the model's, key by key, and these before the defaults (`Prompting.over`). Without a chat
template, a prompt is one text: the instruction (`system`), the worked examples (`shots`) and the question, with an
empty line between them. With one, the instruction is the system message, each example is two turns of the chat, and
`prompt` is the template of the user's turns. An example is written by the same template as the question, and ends as
the reward wants it:

    <question in the template> <worked text> The final answer is: \boxed{42}.

The model's CoT stands where the worked text of an example stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from softtok.errors import UserError
from softtok.problems.answer_format import PAPER_FORMAT, AnswerFormat
from softtok.problems.prompt import FIELD, PROMPT, TURN, normalise, render
from softtok.problems.rows import Row
from softtok.problems.spec import DataSpec
from softtok.storage.files import content_hash, read_columns
from softtok.storage.records import Record, is_none

BETWEEN = "\n\n"
"""What stands between an instruction, the examples and the question in a prompt without a chat template."""
LONGEST = 60
"""Characters of a question that messages show."""


class Shot(Record):
    """A worked example: a question, the text that leads to its answer (which may be missing), and the answer."""

    question: str = Field(min_length=1)
    worked: str = Field(default="", description="what leads to the answer, without the stop phrase")
    answer: str = Field(min_length=1)


class Prompting(Record):
    """How questions are asked, as a model or a data set says; what is null is left to others.

    `shots` are examples, or the train set that they are: all of its problems. No examples ([]) is not null.
    """

    prompt: str | None = Field(default=None, exclude_if=is_none)
    shots: list[Shot] | DataSpec | None = Field(default=None, exclude_if=is_none)
    system: str | None = Field(default=None, exclude_if=is_none)
    chat_template: bool | None = Field(default=None, exclude_if=is_none)

    def over(self, other: Prompting) -> Prompting:
        """Returns these settings, and those of `other` where these are null."""
        mine = {name: value for name in Prompting.model_fields if (value := getattr(self, name)) is not None}
        return other.model_copy(update=mine)


def of_model(template: str, further: Prompting | None) -> Prompting:
    """Returns how a model's questions are asked; the paper's prompt counts as none given, as it is the default."""
    return Prompting(prompt=None if template == PROMPT else template).over(further or Prompting())


@dataclass(frozen=True)
class Asking:
    """How questions are asked, resolved: everything that decides the text of a prompt but the chat template itself."""

    template: str = PROMPT
    system: str | None = None
    shots: tuple[Shot, ...] = ()
    chat: bool = False
    answers: AnswerFormat = PAPER_FORMAT

    def mark(self, template: str) -> dict[str, str]:
        """Returns what identifies results with these prompts; nothing if they are the template alone, as before."""
        if self == Asking(template, answers=self.answers):
            return {}
        shots = [shot.model_dump() for shot in self.shots]
        told = {"template": self.template, "system": self.system, "shots": shots, "chat": self.chat}
        return {"asked": content_hash(told, 64)}

    def text(self, question: str) -> str:
        """Returns the prompt of a question, without a chat template."""
        asked = render(self.template, question)
        shown = (self._with_solution(render(self.template, shot.question), self.solution(shot)) for shot in self.shots)
        return BETWEEN.join([*([self.system] if self.system else []), *shown, asked])

    def messages(self, question: str) -> list[dict[str, str]]:
        """Returns the messages of a chat that ends with the question."""
        turns = [("system", self.system)] if self.system else []
        for shot in self.shots:
            turns += [("user", render(self.template, shot.question)), ("assistant", self.solution(shot))]
        turns.append(("user", render(self.template, question)))
        return [{"role": role, "content": content} for role, content in turns]

    def solution(self, shot: Shot) -> str:
        """Returns what a model would write behind an example's question: worked text, stop phrase, answer."""
        ending = f"{self.answers.stop_phrase}{self.answers.written(shot.answer)}"
        return f"{shot.worked.strip()} {ending}".lstrip()

    @staticmethod
    def _with_solution(asked: str, solution: str) -> str:
        return f"{asked}{'' if asked[-1:].isspace() else ' '}{solution}"


def asking(of_set: Prompting | None, of_model: Prompting, answers: AnswerFormat, shots: Path | None = None) -> Asking:
    """Returns how the questions of a data set are asked; `shots` is the prepared train set of examples, if any.

    Raises UserError if there is no such file, or if an example does not end as the reward wants it.
    """
    prompting = (of_set or Prompting()).over(of_model)
    shown = _examples(prompting, shots)
    chat = bool(prompting.chat_template)
    # Instruction and format line of the paper's prompt would be written again and again, or into a user's turn.
    usual = FIELD if chat else TURN if shown or prompting.system else PROMPT
    for shot in shown:
        _refuse_misleading(shot, answers)
    return Asking(prompting.prompt or usual, prompting.system, shown, chat, answers)


def _examples(prompting: Prompting, path: Path | None) -> tuple[Shot, ...]:
    if not isinstance(prompting.shots, DataSpec):
        return tuple(prompting.shots or ())
    if path is None:
        raise UserError("--shots: the spec takes worked examples from a train set; name its prepared file")
    return read_shots(path)


def read_shots(path: Path) -> tuple[Shot, ...]:
    """Returns the problems of a prepared train set as worked examples."""
    return shots_of(read_columns(path, ["question", "gold", "worked"]).to_pylist())


def shots_of(problems: Sequence[Row]) -> tuple[Shot, ...]:
    """Returns problems with worked text as examples; of several golds the first is shown."""
    return tuple(Shot(question=row["question"], worked=row["worked"], answer=row["gold"][0]) for row in problems)


def _refuse_misleading(shot: Shot, answers: AnswerFormat) -> None:
    """Raises UserError for an example whose answer would not be found, or that would end a CoT too early."""
    asked = f"the example {_short(shot.question)!r}"
    if answers.stop_phrase in shot.worked:
        raise UserError(
            f"shots: {asked}: its worked text holds the stop phrase {answers.stop_phrase!r}, which is written behind"
            " it; take it out (in a train set: `worked: {field: ..., before: ...}`)"
        )
    if answers.answer(answers.written(shot.answer)) != shot.answer.strip():
        raise UserError(f"shots: {asked}: the answer {shot.answer!r} could not be read back from what is written")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def refuse_tested(shots: Sequence[Shot], questions: Iterable[str], where: str) -> None:
    """Raises UserError if a worked example is a question of the test set."""
    tested = set(map(normalise, questions))
    for shot in shots:
        if normalise(shot.question) in tested:
            raise UserError(
                f"shots: the example {_short(shot.question)!r} is a question of {where}; give another, or name the test"
                " set under `exclude:` of the train set that it is from"
            )


def without_shots(shots: Sequence[Shot], questions: Sequence[str]) -> list[int]:
    """Returns the places of the questions that are no worked examples."""
    shown = {normalise(shot.question) for shot in shots}
    return [place for place, question in enumerate(questions) if normalise(question) not in shown]
