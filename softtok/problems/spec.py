"""The spec of a data set: where its rows are, and which of their fields mean what.

The configuration builds a `DataSpec`, and the job that prepares the set reads it. It is defined in this room, because
`prepare.py` needs it and may not import the configuration.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from softtok.plugins import Reference
from softtok.problems.toy import Split
from softtok.storage.records import Record, is_none

Kind = Literal["train", "test", "choice"]
JudgedBy = Literal["math", "math-strict", "exact", "choice", "function"]
"""How golds are checked: for `math` they must parse, for `math-strict` parse or be words, for `choice` be letters.

A user's function takes any text.
"""


class GoldRule(Record):
    """Where the right answer is: a field with a text, a number, or a list of which any one is right.

    The answer is all of it; or the text after the last `after` in it, and before the first `before` in that; or, if
    `boxed`, the content of its last balanced box. Of this text it may be the first match of `pattern` (a regular
    expression, or its group). A text without the `after`, a box or a match has no answer.
    """

    field: str
    after: str | None = None
    boxed: bool = False
    before: str | None = None
    pattern: str | None = None


class WorkedRule(Record):
    """Where a solution is written out: in `field`, the text before the last `before` in it.

    What matches `remove`, a regular expression, is left out.
    """

    field: str
    before: str | None = None
    remove: str | None = None


class OptionsRule(Record):
    """Where the options of a multiple-choice question are: in one `field` with a list, or in one of `fields` each.

    `labels` is the field with their labels, if these are not A, B, ... Options that bring their own letters or numbers
    ("A)5"), and an object of options by label, need no `labels`.
    """

    field: str | None = None
    fields: list[str] | None = None
    labels: str | None = None


class OpenFields(Record):
    """The fields of train and test problems; without `id`, the row's number names a problem.

    Dots lead into nested values ("prompt.0.content", and "prompt.-1.content" from the end). `question` is a field, or
    a text with fields in braces ("{Body} {Question}"). `story` is a field with what variations of a problem share.
    `worked` is only there where the problems are made for prompts.
    """

    kind: Literal["open"] = "open"
    id: str | None
    question: str
    gold: GoldRule
    story: str | None = Field(default=None, exclude_if=is_none)
    worked: WorkedRule | None = Field(default=None, exclude_if=is_none)


class ChoiceFields(Record):
    """The fields of multiple-choice questions; `answer` holds an index, a letter, or one of the labels."""

    kind: Literal["choices"] = "choices"
    id: str | None
    question: str
    choices: OptionsRule
    answer: str


class ToyRows(Record):
    """Problems of one split of the toy generator."""

    kind: Literal["toy"] = "toy"
    task: Literal["sums", "choice"]
    split: Split
    problems: int
    steps: list[int]
    seed: int


class HubRows(Record):
    """A data set of the hub, or a local folder with the same layout."""

    kind: Literal["hub"] = "hub"
    path: str
    name: str | None
    split: str
    revision: str | None


class FileRows(Record):
    """Local files; `path` may be a list or a pattern, `columns` names those of a csv file without a header line.

    `separator` stands between the cells of a csv file (None: a comma, or a tab if the file's name ends in .tsv). `rows`
    is the key of the rows in a file that is one JSON object (None: the only list of rows in it). `sha256` holds the
    digests of the files, as their content may change. It is None if they were missing when the configuration was read.
    """

    kind: Literal["file"] = "file"
    path: str | list[str]
    format: Literal["json", "csv", "parquet"] | None
    columns: list[str] | None
    sha256: list[str] | None
    separator: str | None = None
    rows: str | None = None


ADAPTED = OpenFields(id=None, question="question", gold=GoldRule(field="gold"))
ADAPTED_CHOICES = ChoiceFields(id=None, question="question", choices=OptionsRule(field="choices"), answer="answer")
TOY_SUMS = OpenFields(id="id", question="question", gold=GoldRule(field="gold"))
TOY_CHOICES = ChoiceFields(id="id", question="question", choices=OptionsRule(field="choices"), answer="answer")


class DataSpec(Record):
    """A prepared data set.

    `ids` are the first and the last id of its problems. `limit` is the most problems that it may have; the first ones
    are kept. `exclude` are test sets, by name, whose questions and stories a train set must not contain. `adapter`
    makes the rows that `fields` refer to. `columns` keeps all columns of a row, for a user's reward. The reward itself
    belongs to the specs of runs and evaluations.
    """

    kind: Kind
    source: ToyRows | HubRows | FileRows = Field(discriminator="kind")
    fields: OpenFields | ChoiceFields = Field(discriminator="kind")
    ids: list[str] | None = Field(default=None, exclude_if=is_none)
    limit: int | None
    exclude: dict[str, DataSpec]
    adapter: Reference | None
    judged_by: JudgedBy
    columns: bool
    version: int

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> DataSpec:
        if (self.kind == "choice") != isinstance(self.fields, ChoiceFields):
            raise ValueError(f"fields: a {self.kind} set needs {'choices' if self.kind == 'choice' else 'gold'}")
        return self

    @property
    def shown(self) -> bool:
        """Whether it is made of worked examples for prompts."""
        return isinstance(self.fields, OpenFields) and self.fields.worked is not None

    @property
    def unknown(self) -> bool:
        """Whether it depends on local files that were missing when the configuration was read."""
        files = isinstance(self.source, FileRows) and self.source.sha256 is None
        return files or any(data.unknown for data in self.exclude.values())
