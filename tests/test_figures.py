"""Figures of studies of every shape: what they explain lies within them and is what they draw."""

from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import INFERENCE_MODES, write_study

from softtok import figures
from softtok.collect import collect
from softtok.figures import Plot
from softtok.tables import Study

HARD = {name: INFERENCE_MODES[name] for name in ("hard-greedy", "hard-sample")}


def drawn(root: Path, k: list[int] | None = None, **shape: Any) -> dict[str, Plot]:
    """The figures, by name, of a study of that shape."""
    few: dict[str, Any] = {"test_sets": ("sums",), "choice_sets": (), "seeds": 2, "problems": 12, "steps": 6}
    spec = write_study(root, **few | shape) | ({"k": k} if k else {})
    results = collect(spec, root)
    plots = figures.draw_all(Study.from_spec(spec), results.metrics, results.training)
    return {plot.name: plot for plot in plots}


@pytest.mark.parametrize("inference_modes", [HARD, INFERENCE_MODES], ids=["one family", "three families"])
def test_a_legend_lies_within_its_figure_and_above_its_panels(inference_modes: dict[str, Any], tmp_path: Path) -> None:
    plots = drawn(tmp_path, modes=("a", "b"), inference_modes=inference_modes)
    assert len(plots) == 4
    for name, plot in plots.items():
        plot.figure.draw_without_rendering()
        (legend,) = plot.figure.legends
        box, page = legend.get_window_extent(), plot.figure.bbox
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1, name
        assert box.y0 > max(axes._left_title.get_window_extent().y1 for axes in plot.figure.axes), name
