"""From studies to jobs: every run, evaluation and report of a `Config`, as pure functions.

A spec cannot show a change of the code; the version numbers below do. Imports are few, because the Snakefile expands
the grid at every start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from softtok import plugins
from softtok.config import doors
from softtok.config.gguf_files import gguf_sha256
from softtok.config.jobs import REPORT_SPEC, Choices, Data, Evaluation, Model, Plan, Run, for_pages
from softtok.config.parts import Asks, ShotsOf
from softtok.config.reports import report_spec
from softtok.config.schema import DATA_SECTIONS, Config, DataSet, Files, Gguf, OpenSet, TrainSet
from softtok.config.schema import Study as StudySettings
from softtok.config.settings import ToySettings
from softtok.config.specs import (
    ChoicesSpec,
    EvaluationSpec,
    FolderSource,
    GgufSource,
    HubSource,
    ModelSpec,
    ReportSpec,
    RunSpec,
    ToySource,
    part,
)
from softtok.errors import UserError
from softtok.problems import adapter, own_reward
from softtok.problems.prompt import PROMPT
from softtok.problems.prompting import Prompting
from softtok.problems.reward import Grading
from softtok.problems.spec import (
    ADAPTED,
    ADAPTED_CHOICES,
    TOY_CHOICES,
    TOY_SUMS,
    ChoiceFields,
    DataSpec,
    FileRows,
    GoldRule,
    HubRows,
    JudgedBy,
    Kind,
    OpenFields,
    OptionsRule,
    ToyRows,
    WorkedRule,
)
from softtok.storage.files import file_sha256, text_hash

# Raise one of these by hand when the code changes what it makes from the same settings.
DATA_VERSION = 4
MODEL_VERSION = 3
TRAIN_VERSION = 3
EVAL_VERSION = 4
CHOICES_VERSION = 2
REPORT_VERSION = 5

ASKED_ONLY = {"judged_by": "math", "columns": False}
"""A train set excludes the questions of a test set, no matter how their answers are judged."""

T = TypeVar("T")


class Study(Plan):
    """A study with its report."""

    @cached_property
    def spec(self) -> ReportSpec:
        return report_spec(self, REPORT_VERSION)

    @cached_property
    def json(self) -> str:
        return for_pages(self.spec.as_json())

    @cached_property
    def hash(self) -> str:
        return text_hash(self.spec.as_json())

    @property
    def spec_path(self) -> str:
        return REPORT_SPEC.format(study=self.name, report_spec=self.hash)

    def data_files(self) -> list[str]:
        return [path for paths in self.spec.data.values() for path in paths.values()]


class Grid:
    """All jobs that the studies of a configuration need.

    Runs and models are listed by folder; data sets, evaluations and choices by stem (path without its ending).
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data: dict[str, Data] = {}
        self.models: dict[str, Model] = {}
        self.runs: dict[str, Run] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.choices: dict[str, Choices] = {}
        self.runtimes = {name: config.runtime_of(name) for name in config.models}
        self._named: dict[tuple[object, ...], Any] = {}
        self.studies = {name: self._study(name, study) for name, study in config.studies.items()}

    def _once(self, *key: object, make: Callable[[], T]) -> T:
        """Expands an entry once, no matter how many studies and runs name it."""
        if key not in self._named:
            self._named[key] = make()
        known: T = self._named[key]
        return known

    def _data(self, kind: Kind, name: str) -> Data:
        return self._once(kind, name, make=lambda: self._make_data(kind, name))

    def _make_data(self, kind: Kind, name: str, shown: int | None = None) -> Data:
        """Returns a data set; `shown` makes it one of so many worked examples, which is another one."""
        sections: dict[Kind, Mapping[str, DataSet]] = {
            "train": self.config.train_sets,
            "test": self.config.test_sets,
            "choice": self.config.choice_sets,
        }
        entry = sections[kind][name]
        names = entry.exclude if isinstance(entry, TrainSet) else []
        exclude = tuple(self._data("test", test_set) for test_set in names)
        spec = DataSpec(
            kind=kind,
            source=_rows(kind, entry, self.config.data_root),
            fields=fields_of(kind, entry, self.config.data_root, worked=shown is not None),
            ids=entry.ids,
            limit=entry.limit if shown is None else shown,
            exclude={data.name: data.spec.model_copy(update=ASKED_ONLY) for data in exclude},
            adapter=doors.reference(adapter.DOOR, entry.adapter, self.config),
            judged_by=_judged_by(entry),
            columns=isinstance(entry, OpenSet) and plugins.is_plugin(entry.reward) and shown is None,
            version=DATA_VERSION,
        )
        data = Data(name, spec, exclude)
        self.data[data.stem] = data
        return data

    def _prompting(self, entry: Asks, *without: str) -> tuple[Prompting | None, Data | None]:
        """Returns what an entry says of its prompts (None if nothing), and the examples that it takes from a set."""
        given = entry.model_dump(include=set(Prompting.model_fields) - set(without), exclude_none=True)
        data: Data | None = None
        if isinstance(entry.shots, ShotsOf):
            name, k = entry.shots.train_set, entry.shots.k
            data = self._once("shots", name, k, make=lambda: self._make_data("train", name, k))
            given["shots"] = data.spec
        return (Prompting.model_validate(given) if given else None), data

    def sets(self, name: str) -> list[tuple[Data, Grading | None]]:
        """Returns the data sets of this name, one for each kind that has it, and how answers to them are judged."""
        open_kinds: tuple[Literal["train", "test"], ...] = ("train", "test")
        found: list[tuple[Data, Grading | None]] = [
            (self._data(kind, name), self._grading(kind, name))
            for kind in open_kinds
            if name in getattr(self.config, DATA_SECTIONS[kind])
        ]
        return found + ([(self._data("choice", name), None)] if name in self.config.choice_sets else [])

    def model(self, name: str) -> Model:
        """Returns a model, whether a study uses it or not."""
        return self._model(name)

    def prompting(self, data: Data) -> Prompting | None:
        """Returns what a data set says of its prompts; None if nothing."""
        entry = getattr(self.config, DATA_SECTIONS[data.kind])[data.name]
        return self._prompting(entry)[0] if isinstance(entry, OpenSet) else None

    def _grading(self, kind: Literal["train", "test"], name: str) -> Grading:
        return self._once("grading", kind, name, make=lambda: self._make_grading(kind, name))

    def _make_grading(self, kind: Literal["train", "test"], name: str) -> Grading:
        entry: OpenSet = self.config.train_sets[name] if kind == "train" else self.config.test_sets[name]
        found = doors.reference(own_reward.DOOR, entry.reward, self.config)
        solved_at = {} if entry.solved_at is None else {"solved_at": entry.solved_at}
        return Grading.model_validate(
            {"reward": found or entry.reward, "answer_format": entry.answer_format} | solved_at
        )

    def _model(self, name: str) -> Model:
        return self._once("model", name, make=lambda: self._make_model(name))

    def _make_model(self, name: str) -> Model:
        entry = self.config.models[name]
        text = self._data("train", entry.toy.text) if entry.toy and entry.toy.text is not None else None
        source: ToySource | HubSource | FolderSource | GgufSource
        if entry.toy is not None:
            source = ToySource(toy=part(ToySettings, entry.toy), text=text.spec if text else None)
        elif entry.hub is not None:
            source = HubSource(hub=entry.hub, revision=entry.revision)
        elif entry.gguf is not None:
            source = _gguf(entry.gguf)
        else:
            source = FolderSource(path=str(Path(os.path.expanduser(entry.path or ""))))
        prompting, shots = self._prompting(entry, "prompt")  # the template has its own place in the spec
        spec = ModelSpec(source=source, prompt=entry.prompt or PROMPT, prompting=prompting, version=MODEL_VERSION)
        model = Model(name, spec, text, shots)
        self.models[model.folder] = model
        return model

    def _run(self, model: Model, train_set: str, mode: str, seed: int) -> Run:
        data = self._data("train", train_set)
        prompting, shots = self._once(
            "prompting", "train", train_set, make=lambda: self._prompting(self.config.train_sets[train_set])
        )
        spec = RunSpec(
            model=model.spec,
            train_set=data.spec,
            grading=self._grading("train", train_set),
            prompting=prompting,
            mode=self._once("mode", mode, make=lambda: doors.token_mode(self.config.training_modes[mode], self.config)),
            training=self._once(
                *("training", model.name, train_set, mode),
                make=lambda: doors.training(self.config.training_of(model.name, train_set, mode), self.config),
            ),
            seed=seed,
            version=TRAIN_VERSION,
        )
        return Run(mode, spec, model, data, shots)

    def _base(self, model: Model) -> Run:
        spec = RunSpec(
            model=model.spec, train_set=None, grading=None, mode=None, training=None, seed=0, version=TRAIN_VERSION
        )
        return Run("base", spec, model, None)

    def _evaluation(self, test_set: str, inference_set: str) -> Evaluation:
        return self._once(
            "evaluation", test_set, inference_set, make=lambda: self._make_evaluation(test_set, inference_set)
        )

    def _make_evaluation(self, test_set: str, inference_set: str) -> Evaluation:
        data = self._data("test", test_set)
        entry = self.config.test_sets[test_set]
        modes = {name: self.config.inference_modes[name] for name in self.config.inference_sets[inference_set]}
        if (most := entry.samples) is not None:
            modes = {name: mode.model_copy(update={"samples": min(mode.samples, most)}) for name, mode in modes.items()}
        prompting, shots = self._prompting(entry)
        spec = EvaluationSpec(
            test_set=data.spec,
            grading=self._grading("test", test_set),
            prompting=prompting,
            inference_modes={name: doors.sampled_mode(mode, self.config) for name, mode in modes.items()},
            evaluation=self.config.evaluation_of(test_set),
            version=EVAL_VERSION,
        )
        evaluation = Evaluation(inference_set, spec, data, shots)
        self.evaluations[evaluation.stem] = evaluation
        return evaluation

    def _choices(self, name: str) -> Choices:
        return self._once("choices", name, make=lambda: self._make_choices(name))

    def _make_choices(self, name: str) -> Choices:
        data = self._data("choice", name)
        style = self.config.choice_sets[name].choice_format or self.config.evaluation.choice_format
        choices = Choices(name, ChoicesSpec(choice_set=data.spec, choice_format=style, version=CHOICES_VERSION), data)
        self.choices[choices.stem] = choices
        return choices

    def _study(self, name: str, settings: StudySettings) -> Study:
        study = Study(name, settings, self.config)
        for block in settings.blocks():
            evaluations = [
                self._evaluation(*pair) for pair in product(block.test_sets or [], block.inference_sets or [])
            ]
            choices = [self._choices(choice_set) for choice_set in block.choice_sets or []]
            for model in map(self._model, block.models or []):
                trained = product(block.train_sets or [], block.training_modes or [], block.seeds or [])
                for run in [self._base(model), *(self._run(model, *cell) for cell in trained)]:
                    self.runs[run.folder] = study.runs[run.folder] = run
                    study.evaluations.setdefault(run.folder, {}).update({item.stem: item for item in evaluations})
                    study.choices.setdefault(run.folder, {}).update({item.stem: item for item in choices})
        return study


def _gguf(entry: Gguf) -> GgufSource:
    """Returns a GGUF file with its SHA-256, so that a changed file gives another model.

    It has none if the file is missing. `checks.py` lets this pass only for models that no job reads.
    """
    try:
        sha256 = gguf_sha256(entry.file, entry.package)
    except (UserError, OSError):
        sha256 = None
    file = None if entry.file is None else str(Path(os.path.expanduser(entry.file)))
    return GgufSource(file=file, package=entry.package, sha256=sha256)


def _rows(kind: Kind, entry: DataSet, data_root: str | None) -> ToyRows | HubRows | FileRows:
    """Returns where the rows of a data set are."""
    chosen = entry.source(data_root)
    if chosen == "toy" and entry.toy is not None:
        return ToyRows(split="train" if kind == "train" else "test", **entry.toy.model_dump())
    if chosen == "hub" and entry.hub is not None:
        return part(HubRows, entry.hub)
    assert entry.file is not None  # `DataSet` has checked that there is a source
    return file_rows(entry.file, _digests(entry, data_root))


def file_rows(files: Files, sha256: list[str] | None = None) -> FileRows:
    """Returns where the rows of a local data set are; without hashes for one that is only looked at."""
    return FileRows(
        path=files.path,
        format=files.format,
        columns=files.columns,
        sha256=sha256,
        separator=files.separator,
        rows=files.rows,
    )


def fields_of(kind: Kind, entry: DataSet, data_root: str | None, worked: bool = False) -> OpenFields | ChoiceFields:
    """Returns which fields of its rows mean what; `checks.py` has tested that the needed ones are given.

    `worked` asks for the field of worked solutions, too, which is of no use but for examples in prompts.
    """
    chosen = entry.source(data_root)
    shown = {"worked": worked_rule(entry, chosen)} if worked else {}
    if entry.adapter is not None:
        adapted = ADAPTED_CHOICES if kind == "choice" else ADAPTED
        return adapted.model_copy(update={"id": entry.fields(chosen).get("id")} | shown)
    if chosen == "toy":
        return TOY_CHOICES if kind == "choice" else TOY_SUMS.model_copy(update=shown)
    found = {"id": None} | entry.fields(chosen) | {"worked": None} | shown
    if kind == "choice":
        del found["worked"]
        return ChoiceFields(**found | {"choices": part(OptionsRule, found["choices"])})
    return OpenFields(**found | {"gold": part(GoldRule, found["gold"])})


def worked_rule(entry: DataSet, source: Literal["toy", "hub", "file"]) -> WorkedRule | None:
    """Returns where the solutions of a train set are: as it says, or in the text that its golds are taken from."""
    if source == "toy" or entry.adapter is not None:
        return WorkedRule(field="worked")
    found = entry.fields(source)
    if (rule := found.get("worked")) is not None:
        return part(WorkedRule, rule)
    gold = found.get("gold")
    if gold is None or not (gold.after or gold.boxed):
        return None  # the gold is all that the field holds
    return WorkedRule(field=gold.field, before=gold.after)


def _judged_by(entry: DataSet) -> JudgedBy:
    if not isinstance(entry, OpenSet):
        return "math"
    return (
        "function" if plugins.is_plugin(entry.reward) else cast("JudgedBy", entry.reward)
    )  # `checks.py` has tested it


def _digests(entry: DataSet, data_root: str | None) -> list[str] | None:
    """Returns the SHA-256 of each local file, so that a changed file gives another data set.

    Returns None if a file is missing or cannot be read. `checks.py` lets this pass only for sets that no job reads.
    """
    try:
        return [file_sha256(path) for path in entry.file.found(data_root)] if entry.file else None
    except (UserError, OSError):
        return None
