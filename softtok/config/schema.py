"""The pydantic models of `config.yaml`.

Imports are few (no torch), because the Snakefile reads the configuration at every start of every job. `load.py`
validates, checks every cross-reference (`checks.py`) and reports an error in one line (`messages.py`). `grid.py` turns
the configuration into jobs and their specs. `workflow/schemas/config.schema.json` is generated from these classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from softtok.config.parts import PROMPT_FIELD, Asks, Fields, Part, Template, exactly_one
from softtok.config.settings import (
    ChoiceFormat,
    EvaluationSettings,
    GenerationSettings,
    RuntimeSettings,
    SampledMode,
    Settings,
    TokenMode,
    ToySettings,
    TrainingSettings,
)
from softtok.config.values import Name, Real, Samples, Seed, Whole
from softtok.errors import UserError
from softtok.problems.answer_format import AnswerFormat
from softtok.problems.fields import numbered
from softtok.problems.local_files import local_files
from softtok.problems.rows import FORMATS, format_of
from softtok.problems.spec import Kind

DATA_SECTIONS: dict[Kind, str] = {"train": "train_sets", "test": "test_sets", "choice": "choice_sets"}

# Named entries. One with `like` starts from another entry of its kind (`inherit.py`), so the JSON schema does not
# require the keys that it may inherit.


def _optional_when_like(schema: dict[str, Any]) -> None:
    if required := schema.pop("required", None):
        schema["anyOf"] = [{"required": required}, {"required": ["like"]}]


class Entry(Settings):
    model_config = ConfigDict(json_schema_extra=_optional_when_like)

    like: Name | None = Field(
        default=None, description="entry of the same kind to start from; null drops an inherited key"
    )
    paper: str | None = Field(
        default=None, description="the name it has in the paper's results (not inherited through `like`)"
    )


class ToyModel(ToySettings):
    """A toy model, and the name of the train set that it learns."""

    text: Name | None = Field(
        default=None, description="train set whose text the bpe tokenizer and the body learn; none: the toy problems"
    )

    @model_validator(mode="after")
    def _can_read_its_text(self) -> ToyModel:
        if self.text is not None and self.tokenizer == "words":
            raise ValueError(
                "tokenizer: 'words' knows the words of the toy problems only; for other text set tokenizer: bpe"
            )
        return self


def _or_text(schema: dict[str, Any]) -> None:
    whole = dict(schema)
    schema.clear()
    schema["anyOf"] = [whole, {"type": "string"}]


class Gguf(Part):
    """A GGUF file, or the one in an installed package; `gguf: FILE` is short for `gguf: {file: FILE}`."""

    model_config = ConfigDict(json_schema_extra=_or_text)

    file: str | None = None
    package: Name | None = Field(default=None, description="installed package with one GGUF file")

    @model_validator(mode="before")
    @classmethod
    def _only_a_file(cls, given: Any) -> Any:
        return {"file": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_place(self) -> Gguf:
        exactly_one(self, "file", "package")
        return self


class Model(Entry, Asks):
    """A base model: exactly one of `toy`, `hub`, `path` and `gguf`."""

    toy: ToyModel | None = Field(default=None, description="trained here, from scratch")
    hub: str | None = Field(default=None, description="Hugging Face id")
    path: str | None = Field(default=None, description="Hugging Face folder")
    gguf: Gguf | None = Field(default=None, description="GGUF file, converted here once, or a package that holds one")
    revision: str | None = Field(
        default=None, description="of a hub model; none: the newest, locked when it is fetched"
    )
    prompt: Template | None = Field(default=None, description=PROMPT_FIELD)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        exactly_one(self, "toy", "hub", "path", "gguf")
        if self.revision is not None and self.hub is None:
            raise ValueError(f"revision: {self.revision!r} is only for a model with `hub:`")
        if self.toy is not None and self.chat_template:
            raise ValueError("chat_template: a toy has none; leave it out")
        return self


class ToyData(Part):
    """Generated problems; train sets come from one side of the generator, test and choice sets from the other."""

    task: Literal["sums", "choice"]
    problems: Whole = Field(ge=1)
    steps: Annotated[list[Whole], Field(min_length=2, max_length=2)] = Field(
        default=[2, 4], description="fewest and most steps of a sum"
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _range(self) -> ToyData:
        if not 1 <= self.steps[0] <= self.steps[1]:
            raise ValueError(f"steps: {self.steps} is not a range [fewest, most] of at least 1 step")
        return self


class Hub(Fields):
    path: str
    name: str | None = None
    split: str
    revision: str | None = Field(default=None, description="none: the newest, locked when it is fetched")


class Files(Fields):
    path: str | list[str] = Field(description="file, pattern or list of these, below `data_root` where that is given")
    format: Literal["json", "csv", "parquet"] | None = Field(default=None, description="none: from the name's ending")
    columns: list[str] | None = Field(default=None, description="names for a csv file without a header line")
    separator: str | None = Field(default=None, description='of a csv file; none: ",", or "\t" for .tsv')
    rows: str | None = Field(default=None, description="key of the rows, in a file that is one JSON object")
    comparable: bool = Field(
        default=True, description="false: these are not the paper's problems, so its numbers are not shown"
    )

    @field_validator("separator")
    @classmethod
    def _one_character(cls, separator: str | None) -> str | None:
        if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
            hint = '; a tab is "\\t", in double quotes' if separator == "\\t" else ""
            raise ValueError(f"{separator!r} is not one character that can stand between cells{hint}")
        return separator

    def found(self, root: str | None) -> list[Path]:
        """Returns the files, sorted. Raises UserError if a pattern matches none or an ending names no format."""
        paths = local_files(self.path, root)
        for path in paths:
            if self.format is None and format_of(path) is None:
                raise UserError(f"{path.name!r} ends in none of {', '.join(FORMATS)}; set `format:`")
        return paths


class DataSet(Entry, Fields):
    """Problems from one source: `toy`, `hub` or `file`.

    With both `hub` and `file`, `data_root` decides which is read. Each may have its own fields if the two differ.
    """

    toy: ToyData | None = None
    hub: Hub | None = None
    file: Files | None = None
    ids: list[str] | None = Field(
        default=None, min_length=2, max_length=2, description="first and last id, by the number at their end; needs id"
    )
    limit: Whole | None = Field(default=None, ge=1, description="at most so many problems, the first ones")
    adapter: str | None = Field(
        default=None, description="FILE.py:NAME, a function row -> question, gold and other columns, in place of fields"
    )

    @field_validator("ids")
    @classmethod
    def _a_range(cls, ids: list[str] | None) -> list[str] | None:
        if ids is not None:
            (start, first), (end, last) = map(numbered, ids)
            if start != end or not 0 <= first <= last:
                raise ValueError(f"{ids} are not a first and a last id, such as [chal-1, chal-700]")
        return ids

    @model_validator(mode="after")
    def _one_source(self) -> DataSet:
        given = [name for name in ("toy", "hub", "file") if getattr(self, name) is not None]
        if given not in (["toy"], ["hub"], ["file"], ["hub", "file"]):
            raise ValueError(
                "needs one source: toy, hub or file, or hub with file for `data_root`;"
                f" it has {' and '.join(given) or 'none'}"
            )
        return self

    def source(self, data_root: str | None) -> Literal["toy", "hub", "file"]:
        if self.toy is not None:
            return "toy"
        return "file" if self.file is not None and (data_root is not None or self.hub is None) else "hub"

    def fields(self, source: Literal["toy", "hub", "file"]) -> dict[str, Any]:
        """Returns which field means what in that source; the source's own fields override the entry's."""
        merged = {name: value for name in Fields.model_fields if (value := getattr(self, name)) is not None}
        for name in Fields.model_fields:
            if source != "toy" and (value := getattr(getattr(self, source), name)) is not None:
                merged[name] = value
        return merged


class OpenSet(DataSet, Asks):
    """A data set whose problems have free answers, and how these are judged."""

    reward: str = Field(
        default="math-strict",
        description=(
            "math-strict, math (bare Math-Verify, the paper's; the default with `paper:`), exact (words),"
            " choice (a letter), or a function of your own: FILE.py:NAME"
        ),
    )
    solved_at: Real | None = Field(
        default=None,
        description="from this number on, an answer counts as solved, if the reward is a function; none: 1.0",
    )
    prompt: Template | None = Field(default=None, description=PROMPT_FIELD)
    answer_format: AnswerFormat = Field(default=AnswerFormat(), description="stop phrase, prefill, what is the answer")

    @model_validator(mode="before")
    @classmethod
    def _papers_reward(cls, given: Any) -> Any:
        """A set that is compared with the paper's numbers has the paper's reward."""
        return {"reward": "math"} | given if isinstance(given, dict) and given.get("paper") else given


class TrainSet(OpenSet):
    exclude: list[Name] = Field(default=[], description="test sets whose problems it must not hold")
    training: TrainingSettings = Field(default_factory=TrainingSettings)


class TestSet(OpenSet):
    __test__ = False  # no test of pytest's

    samples: Samples | None = Field(
        default=None, ge=1, description="the most samples per problem of any inference mode; none: as the modes say"
    )
    evaluation: GenerationSettings = Field(default_factory=GenerationSettings)


class ChoiceSet(DataSet):
    choice_format: ChoiceFormat | None = Field(default=None, description="none: that of `evaluation`")


class TrainingMode(Entry, TokenMode):
    training: TrainingSettings = Field(default_factory=TrainingSettings)


class InferenceMode(Entry, SampledMode):
    @model_validator(mode="after")
    def _worth_sampling(self) -> InferenceMode:
        if self.samples > 1 and self.deterministic:
            raise ValueError(
                f"samples: {self.samples} of a deterministic mode are all the same;"
                " set samples: 1, or a temperature or noise"
            )
        return self


class Block(Settings):
    """Lists whose product is a set of runs and of what is evaluated on each."""

    models: list[Name] | None = None
    train_sets: list[Name] | None = None
    training_modes: list[Name] | None = None
    seeds: list[Seed] | None = None
    test_sets: list[Name] | None = None
    choice_sets: list[Name] | None = None
    inference_sets: list[Name] | None = None


class Study(Block):
    """One report: the union of its grid blocks, and the untouched base of every model.

    A block takes the study's own lists for those that it lacks.
    """

    title: str | None = None
    k: list[Annotated[Whole, Field(ge=1)]] | None = Field(
        default=None, min_length=1, description="of pass@k; none: powers of two up to the samples"
    )
    paper: dict[Name, str] = Field(
        default={},
        description="the paper's names of training modes in this study, if they differ from those of the modes",
    )
    figures: list[str] = Field(
        default=[], description="figures of your own, FILE.py:NAME: functions of metrics and training curves"
    )
    grid: list[Block] | None = Field(default=None, min_length=1)

    def blocks(self) -> list[Block]:
        """Returns the grid blocks, completed from the study."""
        return [
            Block(
                **{name: getattr(self if getattr(block, name) is None else block, name) for name in Block.model_fields}
            )
            for block in self.grid or [Block()]
        ]


class Config(Settings):
    """All of config.yaml."""

    run: list[Name] = Field(min_length=1, description="studies that a bare `snakemake` builds")
    data_root: str | None = Field(default=None, description="folder from which every data set with `file:` is read")
    models: dict[Name, Model] = Field(min_length=1)
    train_sets: dict[Name, TrainSet] = Field(default_factory=dict)
    test_sets: dict[Name, TestSet] = Field(default_factory=dict)
    choice_sets: dict[Name, ChoiceSet] = Field(default_factory=dict)
    training_modes: dict[Name, TrainingMode] = Field(default_factory=dict)
    inference_modes: dict[Name, InferenceMode] = Field(default_factory=dict)
    inference_sets: dict[Name, Annotated[list[Name], Field(min_length=1)]] = Field(default_factory=dict)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    studies: dict[Name, Study] = Field(min_length=1)

    _folders: tuple[Path, ...] = (Path(),)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where `FILE.py:NAME` starts: the folders of the configuration's files, the last one first."""
        return self._folders

    def training_of(self, model: str, train_set: str, mode: str) -> TrainingSettings:
        """Returns the resolved settings of a run: defaults < `training:` < model < train set < mode."""
        layers = (self, self.models[model], self.train_sets[train_set], self.training_modes[mode])
        return TrainingSettings(**{key: value for layer in layers for key, value in layer.training.given().items()})

    def evaluation_of(self, test_set: str) -> GenerationSettings:
        """Returns the resolved settings of a test set: defaults < `evaluation:` < test set."""
        layers = (self.evaluation, self.test_sets[test_set].evaluation)
        given = {key: value for layer in layers for key, value in layer.given().items()}
        return GenerationSettings(
            **{key: value for key, value in given.items() if key in GenerationSettings.model_fields}
        )

    def runtime_of(self, model: str) -> RuntimeSettings:
        """Returns the machine settings of a model's jobs: defaults < `runtime:` < model."""
        return RuntimeSettings(**(self.runtime.given() | self.models[model].runtime.given()))
