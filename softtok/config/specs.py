"""The specs of jobs, one record for each kind of job.

The grid builds a spec and the job parses it; between them it is JSON (`as_json` and `parse`). A spec holds everything
that decides a result, and no machine setting. Names of runs and paths of results are in the report's spec alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from softtok.config.messages import explain
from softtok.config.settings import (
    ChoiceFormat,
    GenerationSettings,
    SampledMode,
    Settings,
    TokenMode,
    ToySettings,
    TrainingSettings,
)
from softtok.errors import UserError
from softtok.plugins import Reference
from softtok.problems.prompting import Prompting, of_model
from softtok.problems.reward import Grading
from softtok.problems.spec import DataSpec
from softtok.storage.records import Record, is_none

R = TypeVar("R", bound=Record)


class ToySource(Settings):
    """A toy model, trained in the workflow; `text` is the train set that it learns, if not the toy problems."""

    kind: Literal["toy"] = "toy"
    toy: ToySettings
    text: DataSpec | None


class HubSource(Settings):
    """A model of the hub; without a revision it is the newest, which is locked when it is fetched."""

    kind: Literal["hub"] = "hub"
    hub: str
    revision: str | None


class FolderSource(Settings):
    """A local Hugging Face folder."""

    kind: Literal["path"] = "path"
    path: str


class GgufSource(Settings):
    """A GGUF file, or the one in an installed package; it is converted into a folder of float32 weights.

    So the working precision is no part of it. `sha256` is that of the file, None if it was not there to be hashed.
    """

    kind: Literal["gguf"] = "gguf"
    file: str | None
    package: str | None
    sha256: str | None


class ModelSpec(Record):
    """A base model and the template of its prompts; `prompting` has what else the model says of them."""

    source: ToySource | HubSource | FolderSource | GgufSource = Field(discriminator="kind")
    prompt: str
    prompting: Prompting | None = Field(default=None, exclude_if=is_none)
    version: int

    @property
    def asks(self) -> Prompting:
        """How the model's questions are asked, if a data set says nothing else."""
        return of_model(self.prompt, self.prompting)


class RunSpec(Record):
    """A training run, or the run of an untouched model: then train set, grading, mode and settings are None.

    `prompting` is what the train set says of its prompts.
    """

    model: ModelSpec
    train_set: DataSpec | None
    grading: Grading | None
    prompting: Prompting | None = Field(default=None, exclude_if=is_none)
    mode: TokenMode | None
    training: TrainingSettings | None
    seed: int
    version: int

    @model_validator(mode="after")
    def _trained_or_untouched(self) -> RunSpec:
        if len({part is None for part in (self.train_set, self.grading, self.mode, self.training)}) > 1:
            raise ValueError(
                "mode: train_set, grading, mode and training are given together, or all null (untouched model)"
            )
        return self


class EvaluationSpec(Record):
    """Inference modes by name on one test set; `prompting` is what the test set says of its prompts."""

    test_set: DataSpec
    grading: Grading
    prompting: Prompting | None = Field(default=None, exclude_if=is_none)
    inference_modes: dict[str, SampledMode]
    evaluation: GenerationSettings
    version: int


class ChoicesSpec(Record):
    """A multiple-choice set and how it is scored."""

    choice_set: DataSpec
    choice_format: ChoiceFormat
    version: int


class ReportRun(Record):
    """A run of a report: its names, its folder and its resolved settings (None for an untouched model).

    `tests` has the hashes of its evaluations by test set and inference set, `choices` those of its choice sets.
    """

    model: str
    train_set: str
    training_mode: str
    seed: int
    path: str
    mode: TokenMode | None
    training: TrainingSettings | None
    tests: dict[str, dict[str, str]]
    choices: dict[str, str]


class ReportSpec(Record):
    """A study's report: its runs, and everything in the order in which it is shown.

    `k` lists the k of pass@k (None: powers of two). `samples` has the most samples per problem of test sets that limit
    them. `order` has the entries of each section as the study lists them,
    `paper` their names in the paper's results, `data` the prepared train and test sets by kind and name. `config` is
    the part of the configuration that the report shows.
    """

    study: str
    title: str
    k: list[int] | None
    runs: list[ReportRun]
    data: dict[Literal["train", "test"], dict[str, str]]
    inference_modes: dict[str, SampledMode]
    inference_sets: dict[str, list[str]]
    samples: dict[str, int] = Field(default={}, exclude_if=lambda most: not most)
    order: dict[str, list[str]]
    paper: dict[str, dict[str, str]]
    figures: list[Reference]
    config: dict[str, Any]
    version: int

    def as_json(self) -> str:
        """Returns one line of JSON in the order of the study's lists, because this order decides what is made."""
        return self.model_dump_json()


def part(kind: type[R], entry: BaseModel) -> R:
    """Returns the part of a configuration entry that a spec of this kind holds."""
    return kind(**entry.model_dump(include=set(kind.model_fields)))


def parse(kind: type[R], given: str, option: str = "spec") -> R:
    """Returns the record in a command's option: JSON if the text starts with `{`, else a file. Raises UserError."""
    where, text = f"--{option}", given
    if not given.lstrip().startswith("{"):
        where = given
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"--{option} {given}: cannot be read ({why}); give a file or JSON") from None
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise explain(error, kind, where) from None
