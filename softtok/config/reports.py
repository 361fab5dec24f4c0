"""The spec of a study's report: its runs with names, settings and paths, and the configuration that it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from softtok.config import doors
from softtok.config.jobs import Plan, Run
from softtok.config.schema import Config, DataSet, Entry
from softtok.config.specs import ReportRun, ReportSpec


def report_spec(study: Plan, version: int) -> ReportSpec:
    """Returns the report spec of a study; mappings and lists are in the order of the study's lists."""
    config, settings, blocks = study.config, study.settings, study.settings.blocks()

    def listed(section: str) -> list[str]:
        return list(dict.fromkeys(name for block in blocks for name in getattr(block, section) or []))

    order = {
        section: listed(section) for section in ("models", "train_sets", "training_modes", "test_sets", "choice_sets")
    }
    inference_sets = {name: config.inference_sets[name] for name in listed("inference_sets")}
    modes = {name: config.inference_modes[name] for names in inference_sets.values() for name in names}
    used: dict[str, Mapping[str, Entry]] = {
        section: {name: getattr(config, section)[name] for name in names} for section, names in order.items()
    }
    used["inference_modes"] = modes
    paper = {
        section: {name: found for name, entry in entries.items() if (found := _paper_name(config, entry)) is not None}
        for section, entries in used.items()
    }
    paper["training_modes"] |= settings.paper
    evaluations = [item for items in study.evaluations.values() for item in items.values()]
    return ReportSpec(
        study=study.name,
        title=settings.title or study.name,
        k=settings.k,
        runs=[_report_run(study, run) for run in study.runs.values()],
        data={
            "train": {run.train_set.name: run.train_set.path for run in study.runs.values() if run.train_set},
            "test": {item.data.name: item.data.path for item in evaluations},
        },
        inference_modes={name: doors.sampled_mode(mode, config) for name, mode in modes.items()},
        inference_sets=inference_sets,
        samples={name: most for name in order["test_sets"] if (most := config.test_sets[name].samples) is not None},
        order=order,
        paper=paper,
        figures=[own for choice in settings.figures if (own := doors.reference(doors.FIGURES, choice, config))],
        config={
            "study": settings.given(),
            "inference_sets": inference_sets,
            **{section: {name: _shown(entry) for name, entry in entries.items()} for section, entries in used.items()},
            "training": config.training.model_dump(),
            "evaluation": config.evaluation.model_dump(),
        },
        version=version,
    )


def _report_run(study: Plan, run: Run) -> ReportRun:
    return ReportRun(
        model=run.model.name,
        train_set=run.train_set_name,
        training_mode=run.name,
        seed=run.seed,
        path=run.folder,
        mode=run.spec.mode,
        training=run.spec.training,
        tests=_nested((item.data.name, item.name, item.hash) for item in study.evaluations[run.folder].values()),
        choices={item.name: item.hash for item in study.choices[run.folder].values()},
    )


def _paper_name(config: Config, entry: Entry) -> str | None:
    """Returns the name of an entry in the paper's results; None if its problems are not the paper's here."""
    if isinstance(entry, DataSet) and entry.file is not None and not entry.file.comparable:
        return None if entry.source(config.data_root) == "file" else entry.paper
    return entry.paper


def _shown(entry: Entry) -> dict[str, Any]:
    """Returns an entry as the report shows it: with all defaults, with overrides as they were written.

    Settings of the machine are left out.
    """
    # Where solutions are is of no use in a set's own jobs; what takes examples from it says so.
    shown = entry.model_dump(exclude={"training", "evaluation", "runtime", "worked"}, exclude_none=True)
    if shown.get("file", {}).get("comparable"):
        del shown["file"]["comparable"]
    given = [key for key in ("training", "evaluation") if key in entry.model_fields_set]
    return shown | {key: getattr(entry, key).given() for key in given}


def _nested(triples: Iterable[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    nested: dict[str, dict[str, str]] = {}
    for outer, inner, value in triples:
        nested.setdefault(outer, {})[inner] = value
    return nested
