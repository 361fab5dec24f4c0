"""Specs of small data sets, toy models, short training runs and small evaluations."""

from __future__ import annotations

from typing import Any

from softtok.config.settings import (
    ChoiceFormat,
    GenerationSettings,
    SampledMode,
    TokenMode,
    ToySettings,
    TrainingSettings,
)
from softtok.config.specs import ChoicesSpec, EvaluationSpec, FolderSource, HubSource, ModelSpec, RunSpec, ToySource
from softtok.problems.reward import MATH
from softtok.problems.spec import (
    TOY_CHOICES,
    TOY_SUMS,
    ChoiceFields,
    DataSpec,
    FileRows,
    HubRows,
    Kind,
    OpenFields,
    ToyRows,
)

TEMPLATE = "User: {question} Assistant:"
HARD = TokenMode(tokens="hard")
SOFT = TokenMode(tokens="soft", temperature=0.5, noise_scale=0.33)
FUZZY = TokenMode(tokens="soft", temperature=1e-4, noise_scale=0.33)
EVALUATION_MODES = {
    "hard-greedy": SampledMode(tokens="hard", temperature=0.0),
    "hard-sample": SampledMode(tokens="hard", samples=4),
    "soft-sample": SampledMode(tokens="soft", temperature=0.5, noise_scale=0.33, samples=4),
    "fuzzy-greedy": SampledMode(tokens="soft", temperature=1e-4),
}


def data_spec(kind: Kind, source: dict[str, dict[str, Any]], limit: int | None = None, **fields: Any) -> DataSpec:
    """Returns the spec of a data set from what matters of it; `source` is as in config.yaml.

    `fields` are those of its rows, and `judged_by`, `columns` and the like of the spec.
    """
    plain: dict[str, Any] = {"exclude": {}, "adapter": None, "judged_by": "math", "columns": False, "version": 1}
    plain |= {"ids": None}
    plain |= {name: fields.pop(name) for name in plain if name in fields}
    ((name, given),) = source.items()
    rows: ToyRows | HubRows | FileRows
    if name == "toy":
        fields = (TOY_CHOICES if kind == "choice" else TOY_SUMS).model_dump()
        defaults = {"steps": [2, 4], "seed": 0, "split": "train" if kind == "train" else "test"}
        rows = ToyRows.model_validate(defaults | given)
    elif name == "hub":
        rows = HubRows(**{"name": None, "revision": None} | given)
    else:
        rows = FileRows(**{"format": None, "columns": None, "sha256": None, "separator": None, "rows": None} | given)
    which = ChoiceFields if kind == "choice" else OpenFields
    mapped = which(**{"id": None} | fields)
    return DataSpec(kind=kind, source=rows, fields=mapped, limit=limit, **plain)


def toy_model(prompt: str = TEMPLATE, **settings: Any) -> ModelSpec:
    """Returns the spec of a toy model of these `ToySettings`."""
    return ModelSpec(source=ToySource(toy=ToySettings(**settings), text=None), prompt=prompt, version=1)


def hub_model(name: str, revision: str | None = None) -> ModelSpec:
    """Returns the spec of a hub model."""
    return ModelSpec(source=HubSource(hub=name, revision=revision), prompt="{question}", version=1)


def folder_model(path: object) -> ModelSpec:
    """Returns the spec of a model that lies in a folder."""
    return ModelSpec(source=FolderSource(path=str(path)), prompt="{question}", version=1)


def base_spec(model: ModelSpec) -> RunSpec:
    """Returns the spec of an untouched model's run."""
    return RunSpec(model=model, train_set=None, grading=None, mode=None, training=None, seed=0, version=1)


def train_spec(mode: TokenMode = SOFT, seed: int = 0, **training: Any) -> RunSpec:
    """Returns the spec of six training steps in a mode; settings by name change it."""
    settings: dict[str, Any] = {
        "steps": 6, "samples_per_prompt": 8, "learning_rate": 1e-4, "warmup_steps": 2, "max_cot_tokens": 16,
        "max_answer_tokens": 4, "validation_problems": 8, "validate_every": 2,
    }  # fmt: skip
    return RunSpec(
        model=toy_model(),
        train_set=data_spec("train", {"toy": {"task": "sums", "problems": 40}}),
        grading=MATH,
        mode=mode,
        training=TrainingSettings(**(settings | training)),
        seed=seed,
        version=1,
    )


def evaluation_spec(*names: str, modes: dict[str, SampledMode] | None = None, **evaluation: Any) -> EvaluationSpec:
    """Returns the spec of an evaluation in these of `EVALUATION_MODES`, or of other `modes`.

    Settings by name change it.
    """
    chosen = modes or EVALUATION_MODES
    return EvaluationSpec(
        test_set=data_spec("test", {"toy": {"task": "sums", "problems": 6}}),
        grading=MATH,
        inference_modes={name: chosen[name] for name in names or chosen},
        evaluation=GenerationSettings(**{"max_cot_tokens": 16, "max_answer_tokens": 4} | evaluation),
        version=1,
    )


def choices_spec(choice_format: ChoiceFormat) -> ChoicesSpec:
    """Returns the spec of a multiple-choice set."""
    choice_set = data_spec("choice", {"toy": {"task": "choice", "problems": 8}})
    return ChoicesSpec(choice_set=choice_set, choice_format=choice_format, version=1)
