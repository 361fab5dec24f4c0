"""Dry checks of a study's rewards and adapters for `softtok check`: each runs on an example before any job starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from softtok.config.grid import Study
from softtok.config.jobs import Data
from softtok.plugins import Reference
from softtok.problems.dry_check import check_adapter, check_reward
from softtok.problems.reward import Grading


def check_data_sets(study: Study, data_root: Path | None) -> Iterator[tuple[str, str]]:
    """Yields each plug-in and data set that was checked, and what could not be checked ("" if nothing).

    Raises UserError, with file and line, for the first plug-in that is wrong.
    """
    template = next(iter(study.runs.values())).spec.model.prompt
    gradings = _gradings(study)
    for stem, data in _data_sets(study).items():
        kind = f"{data.spec.kind} set {data.name}"
        if data.spec.adapter is not None:
            yield f"adapter {data.spec.adapter} ({kind})", check_adapter(data.spec, data_root)
        grading = gradings.get(stem)
        if grading is not None and isinstance(grading.reward, Reference):
            prepared = Path(data.path) if Path(data.path).exists() else None
            yield f"reward {grading.reward} ({kind})", check_reward(grading, prepared, template, data.spec, data_root)


def _gradings(study: Study) -> dict[str, Grading]:
    """Returns how answers are judged, by the stem of the data set."""
    trained = {run.train_set.stem: run.spec.grading for run in study.runs.values() if run.train_set}
    tested = {e.data.stem: e.spec.grading for items in study.evaluations.values() for e in items.values()}
    return {stem: grading for stem, grading in (trained | tested).items() if grading is not None}


def _data_sets(study: Study) -> dict[str, Data]:
    """Returns all data sets that the study's jobs read, by stem."""
    found = [run.train_set for run in study.runs.values()] + [run.model.text for run in study.runs.values()]
    found += [item.data for items in study.evaluations.values() for item in items.values()]
    found += [item.data for items in study.choices.values() for item in items.values()]
    found += [data for train_set in found if train_set for data in train_set.exclude]
    return {data.stem: data for data in found if data}
