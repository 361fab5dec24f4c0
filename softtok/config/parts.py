"""Parts of the entries of config.yaml: which fields of a row mean what, and how questions are asked."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from softtok.config.settings import Settings
from softtok.config.values import Name, Whole
from softtok.problems.prompt import FIELD
from softtok.problems.prompting import Shot
from softtok.problems.spec import GoldRule, OptionsRule, WorkedRule


def _optional(schema: dict[str, Any]) -> None:
    schema.pop("required", None)


class Part(Settings):
    """A block inside an entry; keys that it lacks may be inherited."""

    model_config = ConfigDict(json_schema_extra=_optional)


class Gold(Part, GoldRule):
    """Where the right answer is: a field, the text after or before a marker in it, its last box, a pattern in these."""

    before: str | None = Field(default=None, min_length=1, description="the text before the first such marker")
    after: str | None = Field(default=None, min_length=1, description="the text after the last such marker")
    pattern: str | None = Field(default=None, description="regular expression: its first match, or the group in it")

    @model_validator(mode="after")
    def _one_rule(self) -> Gold:
        if self.boxed and (self.after is not None or self.before is not None):
            raise ValueError("gold is either `after` or `before` a marker or `boxed`, not both")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern: {self.pattern!r} is not a regular expression: {error}") from None
            if groups > 1:
                raise ValueError(
                    f"pattern: {self.pattern!r} has {groups} groups; one can be the gold, make others (?:...)"
                )
        return self


class Worked(Part, WorkedRule):
    """Where a solution is written out, for examples in prompts."""

    before: str | None = Field(default=None, min_length=1, description="the text before the last such marker")
    remove: str | None = Field(default=None, description="regular expression: what is left out")

    @field_validator("remove")
    @classmethod
    def _an_expression(cls, remove: str | None) -> str | None:
        try:
            re.compile(remove or "")
        except re.error as error:
            raise ValueError(f"{remove!r} is not a regular expression: {error}") from None
        return remove


class Options(Part, OptionsRule):
    """Where the options of a multiple-choice question are: one field with a list, or one field each."""

    fields: list[str] | None = Field(default=None, min_length=2)
    labels: str | None = Field(default=None, description="field with the options' labels, if they are not A, B, ...")

    @model_validator(mode="after")
    def _one_place(self) -> Options:
        exactly_one(self, "field", "fields")
        return self


class Fields(Part):
    """Which fields of a row mean what; dots lead into nested values."""

    id: str | None = Field(default=None, description="field that names a problem; none: the row's number")
    question: str | None = Field(default=None, description='field, or a text with fields: "{Body} {Question}"')
    gold: Gold | None = Field(default=None, description="train and test sets")
    story: str | None = Field(
        default=None,
        description="train and test sets: field with what variations of a problem share; a train set leaves out the"
        " stories of test sets that it excludes, whatever the numbers in them",
    )
    worked: Worked | None = Field(
        default=None, description="train sets: the solution for `shots:`; none: what the gold is taken from"
    )
    choices: Options | None = Field(default=None, description="choice sets")
    answer: str | None = Field(default=None, description="choice sets: an index, a letter or a label")


class Example(Settings, Shot):
    """A worked example that is written out."""


class ShotsOf(Settings):
    """Worked examples that are the first problems of a train set."""

    train_set: Name
    k: Whole = Field(ge=1, description="how many")


Shots = Annotated[
    Annotated[list[Example], Tag("list")] | Annotated[ShotsOf, Tag("ShotsOf")],
    Discriminator(lambda given: "list" if isinstance(given, list) else "ShotsOf"),
]


def _with_question(template: str) -> str:
    if template.count(FIELD) != 1:
        raise ValueError(f"the template must hold {FIELD} exactly once")
    return template


Template = Annotated[str, AfterValidator(_with_question)]
PROMPT_FIELD = (
    "template with {question}; none: the paper's, its last line with shots or system, or the question alone with"
    " chat_template"
)


class Asks(Settings):
    """How questions are asked; a data set's keys go before the model's, key by key (`problems/prompting.py`).

    A template `prompt` belongs to it; its place among the other keys is that of earlier versions.
    """

    shots: Shots | None = Field(
        default=None, description="worked examples: a list, or {train_set: NAME, k: K}; []: not those of the model"
    )
    system: str | None = Field(
        default=None, description="instruction: the system message of a chat template, or the text in front"
    )
    chat_template: bool | None = Field(
        default=None, description="true: the prompt is the tokenizer's own chat with its generation prompt"
    )


def exactly_one(entry: BaseModel, *names: str) -> None:
    given = [name for name in names if getattr(entry, name) is not None]
    if len(given) != 1:
        raise ValueError(
            f"needs exactly one of {', '.join(names)}; it has {' and '.join(given) or 'none'}"
            " (null drops an inherited one)"
        )
