"""A user's figures, `figures:` of a study: functions of metrics and training curves.

    def NAME(metrics: pd.DataFrame, training: pd.DataFrame) -> matplotlib.figure.Figure

`metrics` are those of metrics.csv (`collect.METRIC_COLUMNS`), `training` has a row for each training step of each run:
model, train_set, training_mode, seed, step, validation, reward, unjudged, cot_tokens, entropy, and seconds, those of
all steps up to this one without validations and saves. The first line of the function's docstring is the figure's
title, the rest its caption.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
from matplotlib.figure import Figure

from softtok import plugins
from softtok.plugins import Reference, blaming
from softtok.report.panels import Plot

SECTION = "own"


def draw_own(references: Iterable[Reference], metrics: pd.DataFrame, training: pd.DataFrame) -> Iterator[Plot]:
    """Yields the figures. Raises UserError, with file and line, if the code raises or returns anything else."""
    for reference in references:
        plugin = plugins.read(reference)
        function = plugin.load()
        with blaming(plugin, "when it draws"):
            figure = function(metrics=metrics.copy(), training=training.copy())
        if not isinstance(figure, Figure):
            raise plugin.fault(f"returns {plugins.shown(figure)}, not a matplotlib Figure")
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(figure)  # it can still be saved, and the next `plt.gcf()` is another figure
        title, _, caption = (inspect.getdoc(function) or reference.name).partition("\n")
        yield Plot(f"own--{reference.name}", SECTION, title.rstrip("."), " ".join(caption.split()), figure)


def example() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns made-up metrics and training curves of two runs, for the dry check."""
    names = [("toy", "sums", mode, 0) for mode in ("hard", "soft")]
    keys = ["model", "train_set", "training_mode", "seed"]
    counts = {"n_problems": 10, "n_samples": 4}
    cells = [
        dict(zip(keys, name, strict=True))
        | {"test_set": "sums", "inference_mode": mode, "metric": "pass@k"}
        | counts
        | {"k": k, "index": None, "value": 10.0 * k}
        for name in names
        for mode in ("hard-greedy", "hard-sample")
        for k in (1, 4)
    ]
    steps = [
        dict(zip(keys, name, strict=True))
        | {"step": step, "validation": 50.0 + step, "reward": 10.0 * step}
        | {"unjudged": 0.0, "cot_tokens": 20.0, "entropy": 0.5, "seconds": 0.5 * step}
        for name in names
        for step in (1, 2, 3)
    ]
    whole = dict.fromkeys(("seed", "k", "index", "n_problems", "n_samples"), "Int64")
    return pd.DataFrame(cells).astype(whole), pd.DataFrame(steps)


def check_figures(references: Sequence[Reference]) -> list[str]:
    """Draws the figures from made-up runs and returns their names. Raises UserError for the first that fails."""
    for _ in draw_own(references, *example()):
        pass  # the first that fails raises
    return [f"figure {reference}" for reference in references]
