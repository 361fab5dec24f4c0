"""Tries the prompts of a study for `softtok check`, before any job runs: examples, templates, tokenizers, GGUF files.

A job finds the same mistakes, but that of a test set comes after training. What lies on the hub cannot be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from softtok.config.grid import Grid, Study
from softtok.config.jobs import Data, Model
from softtok.config.preview import asking_of
from softtok.config.specs import GgufSource
from softtok.problems.preview import Writer, questions_of
from softtok.problems.prompting import Prompting, refuse_tested
from softtok.problems.reward import Grading
from softtok.problems.spec import DataSpec, HubRows

QUESTION = "What is 1 + 1?"


def try_prompts(grid: Grid, study: Study, writer_of: Callable[[Model], Writer | None]) -> Iterator[str]:
    """Yields a line for each model and data set whose prompts were tried.

    The paper's prompt, or another template of a model, is left to the job that makes the model. Raises UserError for a
    GGUF file that cannot be converted, examples that cannot be had or are test questions, and prompts that a model's
    tokenizer does not take.
    """
    root = Path(grid.config.data_root) if grid.config.data_root is not None else None
    writers: dict[str, Writer | None] = {}
    for model, data, grading in _asked(study):
        of_set = grid.prompting(data)
        if of_set is None and model.spec.prompting is None and not isinstance(model.spec.source, GgufSource):
            continue
        asked = asking_of(_without_hub(of_set), _without_hub(model.spec.asks), grading, root)
        if asked.shots and data.kind == "test":
            tested = [] if isinstance(data.spec.source, HubRows) else questions_of(data.spec, root)
            refuse_tested(asked.shots, (problem["question"] for problem in tested), f"test set {data.name}")
        if model.folder not in writers:
            writers[model.folder] = writer_of(model)
        if (writer := writers[model.folder]) is not None:
            writer(asked, QUESTION)
        missing = "" if writer is not None else ", as far as this is known without the tokenizer"
        yield f"prompts of {data.kind} set {data.name} for model {model.name}: work{missing}"


def _without_hub(says: Prompting | None) -> Prompting:
    """Returns how questions are asked, without examples if these are on the hub."""
    says = says or Prompting()
    on_hub = isinstance(says.shots, DataSpec) and isinstance(says.shots.source, HubRows)
    return says.model_copy(update={"shots": []}) if on_hub else says


def _asked(study: Study) -> Iterator[tuple[Model, Data, Grading]]:
    """Yields each model with each train and test set of its questions, once."""
    seen = set()
    for run in study.runs.values():
        sets = [(run.train_set, run.spec.grading)] if run.train_set else []
        tested = study.evaluations.get(run.folder, {}).values()
        for data, grading in [*sets, *((item.data, item.spec.grading) for item in tested)]:
            if grading is not None and (run.model.folder, data.stem) not in seen:
                seen.add((run.model.folder, data.stem))
                yield run.model, data, grading
