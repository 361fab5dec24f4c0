"""Building blocks of figures: style, panels, curves over seeds, names at line ends, words of captions.

seaborn takes the lines of the tidy metrics that a curve shows, aggregates over seeds and draws line, band or bars. Its
FacetGrid is not used: it opens its figure in pyplot, whose backend may want a display, and its tight layout leaves no
room for the names at line ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from softtok.report.palette import GRID, INK, MUTED, PAPER
from softtok.report.study import Family, Row

NEAR_ZERO = 0.25  # share of its end below which the start of a percent axis is moved to 0
PAGE_WIDTH, LEAST_WIDTH = 7.4, 1.7  # inches of a figure, so that text is legible at an article's width; of a panel
LABEL_GAP = 11.5  # points between the names at the ends of lines
NAMES: dict[str, Any] = {"fontsize": 8.5, "fontweight": "bold", "verticalalignment": "center"}
# Any: matplotlib's stubs list every setting by name.
STYLE: dict[Any, Any] = seaborn.plotting_context("paper", font_scale=0.966) | {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PAPER),
    **{"text.color": INK, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED},
    **{"axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8},
    **{"axes.edgecolor": MUTED, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "axes.grid.axis": "y", "grid.color": GRID, "axes.axisbelow": True},
    **{"xtick.major.width": 0.8, "xtick.major.size": 3.5, "ytick.major.size": 0},
    **{"font.family": ["DejaVu Sans"], "svg.fonttype": "none"},
}
# How seaborn draws the spread of several seeds: a band, or bars below marks without a line.
BANDS: dict[str, Any] = {"errorbar": ("pi", 100), "err_kws": {"alpha": 0.16, "linewidth": 0}}
BARS: dict[str, Any] = {
    "errorbar": ("pi", 100),
    "err_style": "bars",
    "err_kws": {"elinewidth": 1.3, "zorder": 4},
    "linestyle": "none",
    "zorder": 5,
    "solid_capstyle": "butt",  # of the bars too, so that they end at the seeds
}


@dataclass(frozen=True)
class Plot:
    """A drawn figure; `name` is its file name without suffix, `section` its place in the report."""

    name: str
    section: str
    title: str
    caption: str
    figure: Figure


class Panel(NamedTuple):
    """What one panel shows of pass@k: a model and train set, tested on a set in a family of inference modes."""

    model: str
    train_set: str
    test_set: str
    inference: str  # the family's name
    family: Family

    def cells(self, passes: pd.DataFrame) -> pd.DataFrame:
        """Returns the panel's lines of the tidy metrics of pass@k, of all inference modes."""
        return of_pair(passes, self.model, self.train_set).loc[lambda cells: cells["test_set"] == self.test_set]


def panel_grid(
    shape: tuple[int, int], size: tuple[float, float], names: Iterable[str], **shared: Any
) -> tuple[Figure, Any]:
    """Returns a figure of lines x columns panels and its axes (two-dimensional).

    Each panel has the given width and height in inches (or is narrower, to fit `PAGE_WIDTH`, or higher) and room for
    `names` at its right.
    """
    (rows, columns), (width, height), names = shape, size, list(names)
    height = max(height, 0.9 + LABEL_GAP / 72 * len(names))
    room = 0.09 * max(len(name) for name in names)
    width = min(width, max(LEAST_WIDTH, PAGE_WIDTH / columns - room)) + room
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, wspace=0.04, hspace=0.05)
    figure = Figure(figsize=(columns * width, rows * height + 0.3), layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def draw(axes: Axes, frame: pd.DataFrame, x: str, y: str = "value", **settings: Any) -> None:
    """Draws column `y` of a tidy frame over column `x` as one line or set of marks, with seaborn.lineplot's settings.

    A line that is given a label gets it as its name from `label_ends`. An empty frame draws nothing.
    """
    if len(frame):
        axes.set(xlabel=" ", ylabel=" ")  # else seaborn makes all ticks, and writes the names of the columns
        seaborn.lineplot(frame, x=x, y=y, ax=axes, legend=False, **settings)
        axes.set(xlabel="", ylabel="")


def pass_panels(
    lines: Sequence[Sequence[Panel]],
    size: tuple[float, float],
    names: Iterable[str],
    xlabel: str,
    draw_panel: Callable[[Axes, Panel], None],
) -> tuple[Figure, Any]:
    """Returns a figure of pass@k, each panel drawn by `draw_panel`, with titles and axes; and its axes."""
    shape = (len(lines), max(map(len, lines)))
    figure, grid = panel_grid(shape, size, names, sharey=True)
    several = len({panel[:2] for line in lines for panel in line}) > 1
    for row, line in zip(grid, lines, strict=True):
        for axes, panel in zip(row, line, strict=False):
            draw_panel(axes, panel)
            where = f"\n{panel.model}" + f", {panel.train_set}" * (panel.train_set != "none") if several else ""
            axes.set_title(f"{panel.test_set}\n{panel.inference} inference{where}", fontsize=9)
        for axes in row:
            axes.set_visible(axes.has_data())  # grid blocks may give runs different test sets
        row[0].set_ylabel("problems solved (%)")
    grid[0, 0].set(ylim=(-3, 103), yticks=range(0, 101, 20))  # one axis, so that panels can be compared at a glance
    for axes in grid[-1]:
        axes.set_xlabel(xlabel)
    return figure, grid


def label_ends(figure: Figure) -> None:
    """Writes each line's label right of its panel, as near to the height of its end as the other names allow."""
    named: dict[Axes, list[tuple[Line2D, Text]]] = {
        axes: [
            (line, axes.text(1.05, 0, str(line.get_label()), color=line.get_color(), transform=axes.transAxes, **NAMES))
            for line in axes.lines
            if not str(line.get_label()).startswith("_")
        ]
        for axes in figure.axes
        if axes.get_visible()
    }
    if layout := figure.get_layout_engine():
        layout.execute(figure)
    # From here on the panels keep their places, with room for the names. ("none" would draw once more in each save.)
    figure.set_layout_engine(None)
    for axes, lines in named.items():
        to_axes = axes.transData + axes.transAxes.inverted()
        points = [to_axes.transform(np.asarray(line.get_xydata())[-1]) for line, _ in lines]
        height = axes.get_window_extent().height * 72 / figure.dpi
        places = spread([y * height for _, y in points], LABEL_GAP, height)
        for (x, y), place, (line, note) in zip(points, places, lines, strict=True):
            note.set_y(place / height)
            ends, heights = [x + 0.015, 1.04], [y, place / height]
            leader = Line2D(ends, heights, color=line.get_color(), linewidth=0.7, clip_on=False)
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


def key(label: str, **look: Any) -> Line2D:
    """Returns an entry of a legend."""
    return Line2D([], [], color=MUTED, label=label, **look)


def explain(figure: Figure, *entries: Any) -> None:
    """Draws the legend above the panels, in as many columns as there is room for, and the names at the line ends."""
    for columns in range(len(entries), 0, -1):
        drawn = figure.legend(handles=entries, loc="outside upper left", ncols=columns, labelcolor=MUTED, **LEGEND)
        margins = 2 * drawn.borderaxespad * matplotlib.rcParams["legend.fontsize"] * figure.dpi / 72
        if columns == 1 or drawn.get_window_extent().width + margins <= figure.bbox.width:
            break
        drawn.remove()
    label_ends(figure)


LEGEND: dict[str, Any] = {
    "frameon": False,
    "handlelength": 2.2,
    "columnspacing": 1.8,
    "borderaxespad": 0.5,
    "borderpad": 0,
}
BAND = Patch(facecolor=MUTED, alpha=0.2, label="lowest to highest seed")


def percent_limits(axes: Axes) -> None:
    """Keeps a vertical axis of percents within 0 to 100, and wide enough not to magnify small differences.

    An axis that would start slightly above 0 starts at 0.
    """
    low, high = axes.get_ylim()
    pad = max(0, 5 - (high - low)) / 2
    high = min(high + pad, 102)
    axes.set_ylim(max(low - pad, -0.03 * high) if low >= NEAR_ZERO * high else -0.03 * high, high)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))


def of_pair(frame: pd.DataFrame, model: str, train_set: str) -> pd.DataFrame:
    """Returns what a tidy frame holds of a model's base and of its training modes on one train set."""
    return frame[(frame["model"] == model) & frame["train_set"].isin(["none", train_set])]


def subject(model: str, train_set: str) -> str:
    return model if train_set == "none" else f"{model}, trained on {train_set}"


def value_range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def seed_counts(frame: pd.DataFrame) -> pd.Series:
    """Returns the number of seeds of each `Row` on each test set in each inference mode of a tidy frame."""
    return frame.groupby([*Row._fields, "test_set", "inference_mode"])["seed"].nunique()


def runs_phrase(seeds: pd.Series) -> str:
    """Says n in words, for captions; `seeds` are `seed_counts`."""
    modes = seeds.index.get_level_values("training_mode")
    trained, base = set(seeds[modes != "base"]), set(seeds[modes == "base"])
    words = []
    if trained:
        words.append(f"n = {value_range(trained)} {'seed' if trained == {1} else 'seeds'} per training mode")
    if base:
        words.append("n = 1 for base")
    return f"{', '.join(words)}."
