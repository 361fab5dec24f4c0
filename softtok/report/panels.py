"""Building blocks of figures: their style, a grid of panels, the names at the ends of lines, words of captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from softtok.report.palette import GRID, INK, MUTED, PAPER

NEAR_ZERO = 0.25  # of an axis of percents: starts below this share of its end are moved to 0
FLATTEST = 2  # times its own range: the longest axis that a panel may get from those beside it
LABEL_GAP = 11.5  # points between the names at the ends of lines
STYLE: dict[Any, Any] = {  # Any: matplotlib's stubs list every setting by name
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER,
    "font.family": ["DejaVu Sans"], "font.size": 9,
    "text.color": INK, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.labelsize": 9, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "legend.fontsize": 8.5,
    "axes.edgecolor": MUTED, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "xtick.major.width": 0.8, "ytick.major.width": 0.0, "ytick.major.size": 0.0,
    "svg.fonttype": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A drawn figure; `name` is its file name without suffix, `section` its place in the report."""

    name: str
    section: str
    title: str
    caption: str
    figure: Figure


def panel_grid(
    rows: int, columns: int, width: float, height: float, names: Iterable[str], **shared: Any
) -> tuple[Figure, Any]:
    """A figure of `rows` x `columns` panels, each of the given size in inches (or higher) and with room for `names` at
    its right, and its axes (two-dimensional).
    """
    names = list(names)
    height = max(height, 0.9 + LABEL_GAP / 72 * len(names))
    width += 0.09 * max(len(name) for name in names)
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, wspace=0.04, hspace=0.05)
    figure = Figure(figsize=(columns * width, rows * height + 0.3), layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


@dataclass
class LineEnd:
    """Where a line ends, and the name to write there."""

    name: str
    colour: str
    x: float
    y: float


def label_ends(figure: Figure, ends: Mapping[Axes, list[LineEnd]]) -> None:
    """Writes each line's name right of its panel, as near to the height of its end as the other names allow."""
    font: dict[str, Any] = {"fontsize": 8.5, "fontweight": "bold", "verticalalignment": "center"}
    notes = {
        axes: [axes.text(1.05, 0, end.name, color=end.colour, transform=axes.transAxes, **font) for end in panel]
        for axes, panel in ends.items()
    }
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # from here on the panels keep their places, with room for the names
    for axes, panel in ends.items():
        to_axes = axes.transData + axes.transAxes.inverted()
        points = [to_axes.transform((end.x, end.y)) for end in panel]
        height = axes.get_window_extent().height * 72 / figure.dpi
        places = spread([y * height for _, y in points], LABEL_GAP, height)
        for (x, y), place, note, end in zip(points, places, notes[axes], panel, strict=True):
            note.set_y(place / height)
            leader = Line2D([x + 0.015, 1.04], [y, place / height], color=end.colour, linewidth=0.7, clip_on=False)
            leader.set_transform(axes.transAxes)
            axes.add_artist(leader)


def spread(wanted: Sequence[float], gap: float, high: float) -> list[float]:
    """Positions at least `gap` apart, in the order of `wanted` and near to it; within [0, high] if they fit."""
    order = np.argsort(wanted, kind="stable")
    if not len(order):
        return []
    steps = gap * np.arange(len(order))
    placed = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x
    result = np.empty(len(order))
    result[order] = np.clip(placed, 0, max(high - steps[-1], 0)) + steps
    return result.tolist()


def legend(figure: Figure, *entries: Any) -> None:
    """Explains the marks above the panels, in one line or in as many columns as the figure has room for."""
    for columns in range(len(entries), 0, -1):
        drawn = figure.legend(
            handles=entries, loc="outside upper left", ncols=columns, frameon=False, labelcolor=MUTED,
            handlelength=2.2, columnspacing=1.8, borderaxespad=0.5, borderpad=0,
        )  # fmt: skip
        margins = 2 * drawn.borderaxespad * matplotlib.rcParams["legend.fontsize"] * figure.dpi / 72
        if columns == 1 or drawn.get_window_extent().width + margins <= figure.bbox.width:
            return
        drawn.remove()


BAND = Patch(facecolor=MUTED, alpha=0.2, label="lowest to highest seed")


def percent_limits(axes: Axes) -> None:
    """Keeps a vertical axis of percents within 0 to 100, and from magnifying what hardly differs; one that would start
    not far above 0 starts there.
    """
    low, high = axes.get_ylim()
    pad = max(0, 5 - (high - low)) / 2
    high = min(high + pad, 102)
    axes.set_ylim(max(low - pad, -0.03 * high) if low >= NEAR_ZERO * high else -0.03 * high, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))


def share_percents(line: Sequence[Axes]) -> None:
    """Gives panels that stand side by side one vertical axis, unless that would flatten what one of them shows."""
    limits = [axes.get_ylim() for axes in line if axes.get_visible()]
    low, high = min((low for low, _ in limits), default=0), max((high for _, high in limits), default=1)
    if all(high - low <= FLATTEST * (top - bottom) for bottom, top in limits):
        for axes in line:
            axes.set_ylim(low, high)


def axes_phrase(panels: Any) -> str:
    """What a caption says of the vertical axes of (two-dimensional) panels: which are the same, which start at 0."""
    lines = [[axes.get_ylim() for axes in line if axes.get_visible()] for line in panels]
    above = [low > 0 for line in lines for low, _ in line]
    if len(above) == 1:
        return "The vertical axis does not start at 0." if above[0] else ""
    words = []
    if any(len(line) > 1 for line in lines):
        same = all(len(set(line)) <= 1 for line in lines)
        words.append("Panels side by side share their vertical axis." if same else "The panels' vertical axes differ.")
    if any(above):
        words.append(f"{'No' if all(above) else 'Not every'} vertical axis starts at 0.")
    return " ".join(words)


def at(frame: pd.DataFrame, key: tuple[Any, ...]) -> pd.DataFrame | None:
    """The rows of a many-level index under `key`; None when there are none."""
    try:
        return frame.loc[key].sort_index()
    except KeyError:
        return None


def subject(model: str, train_set: str) -> str:
    return model if train_set == "none" else f"{model}, trained on {train_set}"


def value_range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def runs_phrase(seeds: pd.Series) -> str:
    """n in words, for captions; `seeds` is indexed by (model, train_set, training_mode, ...)."""
    modes = seeds.index.get_level_values("training_mode")
    trained, base = set(seeds[modes != "base"]), set(seeds[modes == "base"])
    words = []
    if trained:
        words.append(f"n = {value_range(trained)} {'seed' if trained == {1} else 'seeds'} per training mode")
    if base:
        words.append("n = 1 for base")
    return f"{', '.join(words)}."
