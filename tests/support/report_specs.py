"""Report specs from sketches: plain mappings of what matters to a test, which may change them first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softtok.config.settings import SampledMode, TokenMode, TrainingSettings
from softtok.config.specs import ReportRun, ReportSpec
from softtok.report.study import Study

TOKEN_MODES: dict[str, dict[str, Any]] = {
    "hard": {"tokens": "hard"},
    "soft": {"tokens": "soft", "temperature": 0.5, "noise_scale": 0.33},
    "fuzzy": {"tokens": "soft", "temperature": 1e-4, "noise_scale": 0.33},
}
SECTIONS = ("models", "train_sets", "training_modes", "test_sets", "choice_sets")


def report_spec(sketch: Mapping[str, Any]) -> ReportSpec:
    """Returns the report spec that a sketch is of.

    `tests` and `choices` are of all runs that have none of their own. A set of inference modes holds all of them where
    `inference_sets` says nothing else. `settings` are those of training modes: a token mode's, and `training`.
    """
    modes = {name: SampledMode(**mode) for name, mode in sketch.get("inference_modes", {}).items()}
    runs = [_run(run, sketch) for run in sketch.get("runs", [])]
    every = {name: list(modes) for run in runs for sets in run.tests.values() for name in sets}
    tested = {name for run in runs for name in (*run.tests, *run.choices)}
    order = {
        section: [name for name in names if section not in ("test_sets", "choice_sets") or name in tested]
        for section, names in sketch.get("order", {}).items()
    }
    return ReportSpec(
        study=sketch.get("study", "demo"),
        title=sketch.get("title", "A tiny grid, end to end"),
        k=sketch.get("k"),
        runs=runs,
        data=sketch.get("data", {"train": {}, "test": {}}),
        inference_modes=modes,
        inference_sets=every | sketch.get("inference_sets", {}),
        samples=sketch.get("samples", {}),
        order={section: order.get(section, []) for section in SECTIONS},
        paper=sketch.get("paper", {}),
        figures=sketch.get("figures", []),
        config=sketch.get("config", {}),
        version=1,
    )


def study_of(sketch: Mapping[str, Any]) -> Study:
    """Returns the study of a sketch."""
    return Study(report_spec(sketch))


def _run(run: Mapping[str, Any], sketch: Mapping[str, Any]) -> ReportRun:
    """Returns a run of a sketch with its settings; modes of unknown names are soft."""
    name = run["mode"]
    settings = dict(sketch.get("settings", {}).get(name, TOKEN_MODES.get(name, TOKEN_MODES["soft"])))
    training = TrainingSettings(**settings.pop("training", {}))
    return ReportRun(
        model=run["model"],
        train_set=run["train_set"],
        training_mode=name,
        seed=run.get("seed", 0),
        path=run.get("path", ""),
        mode=TokenMode(**settings) if name != "base" else None,
        training=training if name != "base" else None,
        tests=run.get("tests", sketch.get("tests", {})),
        choices=run.get("choices", sketch.get("choices", {})),
    )
