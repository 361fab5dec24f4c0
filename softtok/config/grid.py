"""From studies to jobs: every run, evaluation and report with its canonical spec and its path, as pure functions of
a `Config`.

A spec holds all that decides a result and no name, no machine setting and no folder; the first 8 digits of its hash
stand in the path. "The file exists" therefore means "this exact thing is done": an edited default never mixes with
what it was before, going back finds the old results, and studies share what coincides. What a spec cannot see, a
change of the code, is told by the version numbers below. Import-light: the Snakefile expands the grid at every
start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from softtok.config.messages import at, mistake
from softtok.config.schema import Config, DataSet, Entry, Fields, InferenceMode, TokenMode, TrainSet
from softtok.config.schema import Study as StudySettings
from softtok.errors import UserError
from softtok.problems.prompt import PROMPT
from softtok.storage.files import canonical_json, content_hash, file_sha256

# Raise one of these by hand when the code changes what it makes from the same settings.
DATA_VERSION = 2
MODEL_VERSION = 2
TRAIN_VERSION = 1
EVAL_VERSION = 2
CHOICES_VERSION = 1
REPORT_VERSION = 3

DATA = "results/data/{kind}/{name}-{spec}"
MODEL = "results/models/{model}-{spec}"
RUN = "results/runs/{model}/{train_set}/{mode}/seed{seed}-{spec}"
EVALUATION = "eval/{test_set}/{inference_set}-{spec}"
CHOICES = "choices/{choice_set}-{spec}"
REPORT = "results/reports/{study}"

LONGEST_SPEC = 120_000
"""Bytes; Linux allows 131,072 for one word of a command line, and a shell line is one word to bash."""

NEWER: dict[str, Any] = {
    "noise": "gaussian", "noise_at": "embedding", "top_k": None, "inputs_beta": None, "end_entropy": None,
    "end_entropy_steps": 256, "objective": "rloo", "updates_per_step": 1, "clip_range": 0.2, "entropy_bonus": 0.0,
    "kl_coefficient": 0.0, "checkpoint_steps": None, "architecture": "llama",
}  # fmt: skip
"""Settings that came after the first results, each with the value at which it stays out of specs: so what was made
before them keeps its place. Readers of specs take the class's default for a setting that is missing. A default that
changes later must not be changed here."""

Kind = Literal["train", "test", "choice"]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Made:
    """What a job makes: a name, and the spec that decides its content."""

    name: str
    spec: dict[str, Any]

    @cached_property
    def json(self) -> str:
        return canonical_json(self.spec)

    @cached_property
    def hash(self) -> str:
        return content_hash(self.spec)


@dataclass(frozen=True, eq=False)
class Data(Made):
    """A prepared data set. `exclude`: the test sets that a train set must not overlap."""

    kind: Kind
    exclude: tuple[Data, ...]

    @cached_property
    def stem(self) -> str:
        return DATA.format(kind=self.kind, name=self.name, spec=self.hash)

    @property
    def path(self) -> str:
        return f"{self.stem}.parquet"

    @property
    def exclude_paths(self) -> list[str]:
        return [test_set.path for test_set in self.exclude]


@dataclass(frozen=True, eq=False)
class Model(Made):
    """A base model. `text`: the train set that a toy model learns, if it is to learn one."""

    text: Data | None

    @property
    def text_paths(self) -> list[str]:
        return [self.text.path] if self.text else []

    @cached_property
    def folder(self) -> str:
        return MODEL.format(model=self.name, spec=self.hash)


@dataclass(frozen=True, eq=False)
class Run(Made):
    """A trained checkpoint, named by its training mode; or a model's untouched base (mode `base`, no train set, seed
    0)."""

    model: Model
    train_set: Data | None
    seed: int

    @cached_property
    def folder(self) -> str:
        names = {"model": self.model.name, "train_set": self.train_set.name if self.train_set else "none"}
        return RUN.format(**names, mode=self.name, seed=self.seed, spec=self.hash)

    @property
    def untouched_model(self) -> list[str]:
        """The model's folder, if the checkpoint is not a model of its own but refers to that."""
        return [] if self.train_set else [self.model.folder]


@dataclass(frozen=True, eq=False)
class Evaluation(Made):
    """All inference modes of an inference set (whose name it has) on one test set; made once per run."""

    data: Data

    @cached_property
    def stem(self) -> str:
        return EVALUATION.format(test_set=self.data.name, inference_set=self.name, spec=self.hash)


@dataclass(frozen=True, eq=False)
class Choices(Made):
    """A multiple-choice set; made once per run."""

    data: Data

    @cached_property
    def stem(self) -> str:
        return CHOICES.format(choice_set=self.data.name, spec=self.hash)


@dataclass
class Study:
    """What a report is made of: runs by folder, with the stems of each one's evaluations and choice sets."""

    name: str
    spec: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    choices: dict[str, dict[str, Choices]] = field(default_factory=dict)

    @cached_property
    def json(self) -> str:
        """The spec as one line; unlike others, in the order in which things are shown: that of the study's lists
        (the order of entries in config.yaml plays no part)."""
        return json.dumps(self.spec, separators=(",", ":"), ensure_ascii=False)

    @property
    def hash(self) -> str:
        return content_hash(self.json)

    def run_files(self, name: str) -> list[str]:
        return [f"{folder}/{name}" for folder in self.runs]

    def evaluation_files(self, suffix: str) -> list[str]:
        return [f"{folder}/{stem}{suffix}" for folder, stems in self.evaluations.items() for stem in stems]

    def data_files(self) -> list[str]:
        return [path for paths in self.spec["data"].values() for path in paths.values()]

    def choice_files(self, suffix: str) -> list[str]:
        return [f"{folder}/{stem}{suffix}" for folder, stems in self.choices.items() for stem in stems]


class Grid:
    """All jobs that a configuration's studies want: runs and models by folder, data sets, evaluations and choices by
    stem (path without its ending)."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data: dict[str, Data] = {}
        self.models: dict[str, Model] = {}
        self.runs: dict[str, Run] = {}
        self.evaluations: dict[str, Evaluation] = {}
        self.choices: dict[str, Choices] = {}
        self.runtimes = {name: config.runtime_of(name) for name in config.models}
        self._named: dict[tuple[str, ...], Any] = {}
        self.studies = {name: self._study(name, study) for name, study in config.studies.items()}

    def _once(self, *key: str, make: Callable[[], T]) -> T:
        """Entries are expanded once, however many studies and runs name them."""
        if key not in self._named:
            self._named[key] = make()
        return self._named[key]

    def _data(self, kind: Kind, name: str) -> Data:
        return self._once(kind, name, make=lambda: self._make_data(kind, name))

    def _make_data(self, kind: Kind, name: str) -> Data:
        entries: Mapping[Kind, Mapping[str, DataSet]] = {
            "train": self.config.train_sets, "test": self.config.test_sets, "choice": self.config.choice_sets,
        }  # fmt: skip
        entry = entries[kind][name]
        chosen = entry.source(self.config.data_root)
        source: dict[str, Any]
        if entry.toy is not None:
            source = settled(entry.toy.model_dump()) | {"split": "train" if kind == "train" else "test"}
        else:
            fetched = getattr(entry, chosen)
            source = settled(
                fetched.model_dump(exclude={*Fields.model_fields, "comparable"}, exclude_none=chosen == "file")
            )
        fields = entry.fields(chosen)
        spec = {
            "kind": kind,
            "source": {chosen: source},
            **{
                key: value.model_dump(exclude_defaults=True) if isinstance(value, BaseModel) else value
                for key, value in fields.items()
            },
            "limit": entry.limit,
            "version": DATA_VERSION,
        }
        if chosen == "file":
            spec["sha256"] = _digests(entry, self.config.data_root)
        exclude = (
            tuple(self._data("test", test_set) for test_set in entry.exclude) if isinstance(entry, TrainSet) else ()
        )
        if kind == "train":
            spec["exclude"] = {data.name: data.spec for data in exclude}
        data = Data(name, spec, kind, exclude)
        self.data[data.stem] = data
        return data

    def _model(self, name: str) -> Model:
        return self._once("model", name, make=lambda: self._make_model(name))

    def _make_model(self, name: str) -> Model:
        entry = self.config.models[name]
        text = None
        source: dict[str, Any]
        if entry.toy is not None:
            toy = settled(entry.toy.model_dump(exclude={"text"}))
            if entry.toy.text is not None:
                text = self._data("train", entry.toy.text)
                toy["text"] = text.spec
            source = {"toy": toy}
        elif entry.hub is not None:
            source = {"hub": entry.hub, "revision": entry.revision}
        else:
            source = {"path": str(Path(entry.path or "").expanduser())}
        model = Model(name, {**source, "prompt": entry.prompt or PROMPT, "version": MODEL_VERSION}, text)
        self.models[model.folder] = model
        return model

    def _run(self, model: Model, train_set: str, mode: str, seed: int) -> Run:
        data = self._data("train", train_set)
        spec = {
            "model": model.spec,
            "train_set": data.spec,
            "mode": _token_mode(self.config.training_modes[mode]),
            "training": settled(self.config.training_of(model.name, train_set, mode).model_dump()),
            "seed": seed,
            "version": TRAIN_VERSION,
        }
        return Run(mode, spec, model, data, seed)

    def _base(self, model: Model) -> Run:
        spec = {
            "model": model.spec,
            "train_set": None,
            "mode": None,
            "training": None,
            "seed": 0,
            "version": TRAIN_VERSION,
        }
        return Run("base", spec, model, None, 0)

    def _evaluation(self, test_set: str, inference_set: str) -> Evaluation:
        return self._once(
            "evaluation", test_set, inference_set, make=lambda: self._make_evaluation(test_set, inference_set)
        )

    def _make_evaluation(self, test_set: str, inference_set: str) -> Evaluation:
        data = self._data("test", test_set)
        modes = {name: self.config.inference_modes[name] for name in self.config.inference_sets[inference_set]}
        spec = {
            "test_set": data.spec,
            "inference_modes": {name: _inference_mode(mode) for name, mode in modes.items()},
            "evaluation": settled(self.config.evaluation_of(test_set).model_dump()),
            "version": EVAL_VERSION,
        }
        evaluation = Evaluation(inference_set, spec, data)
        self.evaluations[evaluation.stem] = evaluation
        return evaluation

    def _choices(self, name: str) -> Choices:
        return self._once("choices", name, make=lambda: self._make_choices(name))

    def _make_choices(self, name: str) -> Choices:
        data = self._data("choice", name)
        style = self.config.choice_sets[name].choice_format or self.config.evaluation.choice_format
        choices = Choices(
            name, {"choice_set": data.spec, "evaluation": {"choice_format": style}, "version": CHOICES_VERSION}, data
        )
        self.choices[choices.stem] = choices
        return choices

    def _study(self, name: str, settings: StudySettings) -> Study:
        study = Study(name)
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
        study.spec = self._report(study, settings)
        if len(study.json.encode()) > LONGEST_SPEC:
            raise mistake(
                at("studies", name), f"{len(study.runs)} runs are too many for one report; split the study in two"
            )
        return study

    def _report(self, study: Study, settings: StudySettings) -> dict[str, Any]:
        """The report spec of a study; mappings and lists stand in the order of the study's lists."""
        blocks = settings.blocks()

        def listed(section: str) -> list[str]:
            return list(dict.fromkeys(name for block in blocks for name in getattr(block, section) or []))

        order = {
            section: listed(section)
            for section in ("models", "train_sets", "training_modes", "test_sets", "choice_sets")
        }
        inference_sets = {name: self.config.inference_sets[name] for name in listed("inference_sets")}
        modes = {name: self.config.inference_modes[name] for names in inference_sets.values() for name in names}
        used = {
            section: {name: getattr(self.config, section)[name] for name in names} for section, names in order.items()
        }
        used["inference_modes"] = modes
        evaluations = {item.stem: item for items in study.evaluations.values() for item in items.values()}.values()
        paper = {
            section: {name: found for name, entry in entries.items() if (found := self._paper_name(entry)) is not None}
            for section, entries in used.items()
        }
        paper["training_modes"] |= settings.paper
        spec = {
            "study": study.name,
            "version": REPORT_VERSION,
            "title": settings.title or study.name,
            "runs": [
                {
                    "model": run.model.name,
                    "train_set": run.train_set.name if run.train_set else "none",
                    "mode": run.name,
                    "seed": run.seed,
                    "path": folder,
                    "tests": _nested(
                        (item.data.name, item.name, item.hash) for item in study.evaluations[folder].values()
                    ),
                    "choices": {item.name: item.hash for item in study.choices[folder].values()},
                }
                for folder, run in study.runs.items()
            ],
            "tests": _nested((item.data.name, item.name, item.hash) for item in evaluations),
            "choices": {item.name: item.hash for items in study.choices.values() for item in items.values()},
            "data": {
                "train": {run.train_set.name: run.train_set.path for run in study.runs.values() if run.train_set},
                "test": {item.data.name: item.data.path for item in evaluations},
            },
            "inference_modes": {name: _inference_mode(mode) for name, mode in modes.items()},
            "order": order,
            "paper": paper,
            "config": {
                "study": settings.given(),
                "inference_sets": inference_sets,
                **{
                    section: {name: _shown(entry) for name, entry in entries.items()}
                    for section, entries in used.items()
                },
                "training": settled(self.config.training.model_dump()),
                "evaluation": settled(self.config.evaluation.model_dump()),
            },
        }
        return spec | ({"k": settings.k} if settings.k else {})

    def _paper_name(self, entry: Entry) -> str | None:
        """What the paper's results call an entry, unless it stands for other problems than the paper's here."""
        if isinstance(entry, DataSet) and entry.file is not None and not entry.file.comparable:
            return None if entry.source(self.config.data_root) == "file" else entry.paper
        return entry.paper


def settled(dump: dict[str, Any]) -> dict[str, Any]:
    """Dumped settings as they stand in specs: without the newer ones that change nothing (`NEWER`)."""
    return {name: value for name, value in dump.items() if name not in NEWER or value != NEWER[name]}


def _token_mode(mode: TokenMode) -> dict[str, Any]:
    return settled(mode.model_dump(include=set(TokenMode.model_fields)))


def _inference_mode(mode: InferenceMode) -> dict[str, Any]:
    return _token_mode(mode) | {"samples": mode.samples}


def _shown(entry: Entry) -> dict[str, Any]:
    """An entry as the report displays it: with every default, but of overrides what was written, and nothing of the
    machine."""
    overrides = {"training", "evaluation", "runtime"}
    shown = settled(entry.model_dump(exclude=overrides, exclude_none=True))
    if "toy" in shown:
        shown["toy"] = settled(shown["toy"])
    if shown.get("file", {}).get("comparable"):
        del shown["file"]["comparable"]
    return shown | {key: value for key, value in entry.given().items() if key in overrides - {"runtime"}}


def _nested(triples: Iterable[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    nested: dict[str, dict[str, str]] = {}
    for outer, inner, value in triples:
        nested.setdefault(outer, {})[inner] = value
    return nested


def _digests(entry: DataSet, data_root: str | None) -> list[str] | None:
    """SHA-256 of each local file: a changed file is another data set. None where files are missing, or cannot be read,
    that no requested study needs."""
    try:
        return [file_sha256(path) for path in entry.file.found(data_root)] if entry.file else None
    except (UserError, OSError):
        return None
