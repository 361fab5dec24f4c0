"""Looks at drawn figures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text


def left_title(axes: Axes) -> Text:
    """Returns the title at the left of a panel, which matplotlib keeps to itself."""
    title: Text = axes._left_title  # type: ignore[attr-defined]
    return title


def points_of(line: Line2D) -> np.ndarray:
    """Returns the points of a line, shape (points, 2)."""
    return np.asarray(line.get_xydata())


def visible_texts(figure: Figure) -> Iterator[Text]:
    """Yields titles, labels, annotations, tick labels and legend entries that can be seen."""
    for axes in (axes for axes in figure.axes if axes.get_visible()):
        yield from (axes.title, left_title(axes), axes.xaxis.label, axes.yaxis.label, *axes.texts)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            yield from (tick.label1 for tick in ticks if tick.label1.get_visible())
    for legend in figure.legends:
        yield from legend.get_texts()
