"""What jobs make, each with its spec and its path.

The path contains the first 8 digits of the spec's hash. So "the file exists" means "exactly this is done". Results of
an edited default never mix with older ones, going back to old settings finds the old results, and studies share results
with equal specs. Imports are few, because the Snakefile reads this module at every start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar

from softtok.config.schema import Config
from softtok.config.schema import Study as StudySettings
from softtok.config.specs import ChoicesSpec, EvaluationSpec, ModelSpec, RunSpec, ToySource
from softtok.problems.prompting import Prompting
from softtok.problems.spec import DataSpec, Kind
from softtok.storage.files import text_hash
from softtok.storage.records import Record

# Paths of results. `spec` is the hash of a data set, model or run, `cell_spec` that of an evaluation or choice set.
DATA = "results/data/{kind}/{name}-{spec}"
MODEL = "results/models/{model}-{spec}"
RUN = "results/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}"
BASE = RUN.format(model="{model}", train_set="none", mode="base", seed=0, spec="{spec}")
EVALUATION = "eval/{test_set}/{inference_set}-{cell_spec}"
CHOICES = "choices/{choice_set}-{cell_spec}"
REPORT = "results/reports/{study}"
REPORT_SPEC = "results/specs/{study}-{report_spec}.json"

ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
R_co = TypeVar("R_co", bound=Record, covariant=True)


def for_pages(text: str) -> str:
    """Returns JSON of the same value in which no text can be taken for a tag or the end of a script.

    `snakemake --report` writes params into the scripts of its page.
    """
    return text.translate(ESCAPES)


@dataclass(frozen=True, eq=False)
class Made(Generic[R_co]):
    """A result of a job: its name, and the spec that decides its content."""

    name: str
    spec: R_co

    @cached_property
    def json(self) -> str:
        return for_pages(self.spec.as_json())

    @cached_property
    def hash(self) -> str:
        return text_hash(self.spec.as_json())


@dataclass(frozen=True, eq=False)
class Data(Made[DataSpec]):
    """A prepared data set; `exclude` are the test sets that a train set must not overlap."""

    exclude: tuple[Data, ...]

    @property
    def kind(self) -> Kind:
        return self.spec.kind

    @cached_property
    def stem(self) -> str:
        return DATA.format(kind=self.kind, name=self.name, spec=self.hash)

    @property
    def path(self) -> str:
        return f"{self.stem}.parquet"

    @property
    def exclude_paths(self) -> list[str]:
        return [test_set.path for test_set in self.exclude]


def shots_path(of_set: Prompting | None, own: Data | None, model: Model) -> list[str]:
    """Returns the prepared examples of a data set's prompts, if any: its own, or else those of the model."""
    shots = own if of_set is not None and of_set.shots is not None else model.shots
    return [] if shots is None else [shots.path]


@dataclass(frozen=True, eq=False)
class Model(Made[ModelSpec]):
    """A base model; `text` is the train set that a toy model learns, `shots` the one in its prompts, if any."""

    text: Data | None
    shots: Data | None = None

    @property
    def text_paths(self) -> list[str]:
        return [self.text.path] if self.text else []

    @property
    def threads(self) -> int:
        """CPU threads of the job that makes it. A toy's settings fix them, as they decide how sums are rounded."""
        return self.spec.source.toy.threads if isinstance(self.spec.source, ToySource) else 1

    @cached_property
    def folder(self) -> str:
        return MODEL.format(model=self.name, spec=self.hash)


@dataclass(frozen=True, eq=False)
class Run(Made[RunSpec]):
    """A trained checkpoint, named by its training mode, or an untouched base model.

    The latter has the mode `base`, no train set and seed 0.
    """

    model: Model
    train_set: Data | None
    shots: Data | None = None

    @property
    def shots_path(self) -> list[str]:
        return shots_path(self.spec.prompting, self.shots, self.model)

    @property
    def seed(self) -> int:
        return self.spec.seed

    @property
    def train_set_name(self) -> str:
        return self.train_set.name if self.train_set else "none"

    @cached_property
    def folder(self) -> str:
        names = {"model": self.model.name, "train_set": self.train_set_name, "mode": self.name}
        return RUN.format(**names, seed=self.seed, spec=self.hash)

    @property
    def untouched_model(self) -> list[str]:
        """The model's folder, if the checkpoint holds no weights and refers to the model."""
        return [] if self.train_set else [self.model.folder]


@dataclass(frozen=True, eq=False)
class Evaluation(Made[EvaluationSpec]):
    """All modes of an inference set, after which it is named, on one test set; made once per run."""

    data: Data
    shots: Data | None = None

    def shots_path(self, model: Model) -> list[str]:
        return shots_path(self.spec.prompting, self.shots, model)

    @cached_property
    def stem(self) -> str:
        return EVALUATION.format(test_set=self.data.name, inference_set=self.name, cell_spec=self.hash)


@dataclass(frozen=True, eq=False)
class Choices(Made[ChoicesSpec]):
    """A multiple-choice set; made once per run."""

    data: Data

    @cached_property
    def stem(self) -> str:
        return CHOICES.format(choice_set=self.data.name, cell_spec=self.hash)


@dataclass
class Plan:
    """The jobs of a study: runs by folder, and the evaluations and choice sets of each by stem."""

    name: str
    settings: StudySettings
    config: Config
    runs: dict[str, Run] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    choices: dict[str, dict[str, Choices]] = field(default_factory=dict)

    def run_files(self, name: str) -> list[str]:
        return [f"{folder}/{name}" for folder in self.runs]

    def evaluation_files(self, suffix: str) -> list[str]:
        return [f"{folder}/{stem}{suffix}" for folder, stems in self.evaluations.items() for stem in stems]

    def choice_files(self, suffix: str) -> list[str]:
        return [f"{folder}/{stem}{suffix}" for folder, stems in self.choices.items() for stem in stems]
