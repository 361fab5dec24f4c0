"""The plot of measurement 8: how time and memory of a step grow."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.driver import Row

COLOURS = {"time": "#1d4ed8", "memory": "#c2410c"}
NAMES = {"G": "samples per prompt", "T": "new tokens", "V": "vocabulary", "layers": "layers"}


def growth(rows: list[Row], folder: Path) -> None:
    """Writes growth.svg and growth.png: a panel for each number that grows, both axes in multiples of the smallest."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        if row.measurement == "growth" and row.ratio is not None and row.bound is not None:
            axis, what = row.case.split("=")[0], row.case.split()[-1]
            points.setdefault(axis, {}).setdefault(what, []).append((row.bound, row.ratio))
    if not points:
        return
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(2.3 * len(points), 2.5), layout="constrained")
        for axes, (axis, series) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
            for what, line in series.items():
                along, seen = zip(*line, strict=True)
                axes.plot(along, seen, color=COLOURS[what], marker="o", markersize=3, linewidth=1.9, label=what)
            factors = [factor for factor, _ in next(iter(series.values()))]
            axes.plot(factors, factors, color="0.4", linestyle=(0, (3, 2)), linewidth=1, label="linear")
            axes.set(xscale="log", yscale="log", title=NAMES[axis], xlabel="times as many")
            for side in (axes.xaxis, axes.yaxis):
                side.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
                side.set_minor_formatter(matplotlib.ticker.NullFormatter())
            axes.set_xticks(factors)
            axes.set_yticks(factors)
        first = figure.axes[0]
        first.set_ylabel("times as much")
        first.legend(frameon=False)
        for ending in ("svg", "png"):
            figure.savefig(folder / f"growth.{ending}", dpi=200)
