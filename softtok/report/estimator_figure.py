"""The figure of `softtok estimators`: how many rollouts an estimator needs, and what is wrong with a single one.

Left: the cosine of the mean of n rollouts to the exact gradient. Right: bias and standard deviation, both in units of
that gradient. Bars are 95 % intervals; one that reaches the left edge holds 0.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from softtok.report.palette import INK, MUTED, SERIES
from softtok.report.panels import STYLE, explain, key, panel_grid
from softtok.storage.files import atomic

WANTED = 0.5  # the cosine that the line marks
LEAST = 1e-2  # of |r|: what is drawn of a bias that is not above 0
HALF_GAP = 0.13  # between the two marks of an estimator, in lines
BAR_EVERY = 10  # points of a curve, or a decade of rollouts
BAR: dict[str, Any] = {"linewidth": 3, "alpha": 0.3}


def draw(told: Mapping[str, Any]) -> Figure:
    """Returns the figure of what `softtok estimators` measured."""
    with matplotlib.rc_context(STYLE):
        names = [made["name"] for made in told["estimators"]]
        figure, ((left, right),) = panel_grid((1, 2), (3.9, 3.4), names)
        for place, made in enumerate(told["estimators"]):
            if made["curve"] is not None:
                _curve(left, told["curve_rollouts"], made, place)
                _marks(right, made, place)
        _axes(left, right, names)
        left.set_xlim(told["curve_rollouts"][0], told["curve_rollouts"][-1])
        bias, deviation = (key(text, **look) for text, look in LOOKS.items())
        explain(figure, bias, deviation, key("95 % interval", **BAR))
        return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, as PNG or SVG by the name of the file."""
    kind = path.suffix[1:]
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    buffer = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "estimators"}):
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


LOOKS: dict[str, dict[str, Any]] = {
    "bias / |r|": {"marker": "o", "markersize": 5, "linestyle": "none"},
    "standard deviation of one rollout / |r|": {"marker": "D", "markersize": 4.5, "linestyle": "none"},
}


def _curve(axes: Axes, rollouts: list[float], made: Mapping[str, Any], place: int) -> None:
    """Draws the cosine of the mean of n rollouts; its intervals stand beside those of the others, not behind them."""
    colour, (cosine, low, high) = SERIES[place], made["curve"]
    axes.plot(rollouts, cosine, color=colour, linewidth=1.9, label=made["name"])
    every = slice(1 + 2 * place, None, BAR_EVERY)
    axes.vlines(rollouts[every], low[every], high[every], color=colour, **BAR)


def _marks(axes: Axes, made: Mapping[str, Any], place: int) -> None:
    """Draws bias and standard deviation of an estimator, one above the other, each with its interval."""
    deviation = [math.sqrt(value) for value in made["variance"]]
    for (middle, low, high), shift, look in zip(
        (made["bias"], deviation), (-HALF_GAP, HALF_GAP), LOOKS.values(), strict=True
    ):
        axes.hlines(place + shift, max(low, LEAST), max(high, LEAST), color=SERIES[place], **BAR)
        if middle > LEAST:
            axes.plot(middle, place + shift, color=SERIES[place], **look)


def _axes(left: Axes, right: Axes, names: list[str]) -> None:
    left.set(xscale="log", ylim=(-0.1, 1.02), title="Cosine to the exact gradient", xlabel="rollouts in the mean")
    left.axhline(WANTED, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
    right.set(xscale="log", title="Bias and noise", xlabel="in units of the exact gradient |r| (left edge: 0)")
    right.set_xlim(left=LEAST)
    for axes in (left, right):
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.5)
    right.grid(visible=True, axis="x")
    right.grid(visible=False, axis="y")
    right.axvline(1, color=MUTED, linewidth=0.8, zorder=0)
