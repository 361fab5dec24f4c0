"""Figures of an ablation: what a setting does that the training modes of a study differ in.

Where it is one number (noise scale, temperature, group size), pass@k is drawn over it; where the modes differ in the
place of the noise, or are too many for lines to be told apart, over the modes. Other studies have no such figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from softtok.report.palette import MOST_LINES, MUTED, PAPER, SERIES
from softtok.report.panels import (
    BAND,
    LineEnd,
    Plot,
    at,
    axes_phrase,
    label_ends,
    legend,
    panel_grid,
    percent_limits,
    runs_phrase,
    share_percents,
    subject,
    value_range,
)
from softtok.report.study import Family, Row, Study

WIDEST = 4.0  # inches, of panels side by side
LOG_RATIO = 8  # largest / smallest value from which on an axis is logarithmic
MEASURE_LOOKS = ((SERIES[3], "D", 6.0), (SERIES[5], "o", 4.5), (SERIES[4], "s", 4.5))  # colour, marker, its size
WORDS = {
    "noise_scale": "noise scale γ in training",
    "temperature": "temperature τ in training",
    "samples_per_prompt": "samples per prompt G in training",
}


class Varied(NamedTuple):
    """The setting in which training modes differ, and its value in each of them; else `training_mode` and names."""

    setting: str
    values: Mapping[str, Any]

    @property
    def numeric(self) -> bool:
        return all(isinstance(value, (int, float)) for value in self.values.values())


class Panel(NamedTuple):
    """What one panel shows: runs on a test set, in a family of inference modes (`inference`: its name)."""

    model: str
    train_set: str
    test_set: str
    inference: str
    family: Family
    varied: Varied


def ablation_plans(study: Study, passes: pd.DataFrame) -> Iterator[Callable[[], Plot]]:
    """One figure per (model, train set) whose training modes differ as `find_varied` says, of the inference families
    with samples in which at least half of them were tested, or too many for lines. `passes` has mean, min and max of
    pass@k by `Row`, test set, inference mode and k.
    """
    for model, train_set in study.pairs():
        varied = find_varied(study, model, train_set)
        tested = tested_modes(study, model, train_set, passes)
        least = min(len(modes_of(study, model, train_set)) / 2, MOST_LINES + 1)
        families = {name: family for name, family in study.families().items() if tested.get(name, 0) >= max(least, 1)}
        if varied and families and study.test_sets:
            yield partial(_draw, study, model, train_set, varied, families, passes)


def headline(study: Study, passes: pd.DataFrame) -> Plot:
    """Hard inference by training mode, for studies with too many of them for lines over k."""
    hard = {name: family for name, family in study.families().items() if family == study.hard_family()}
    panels = [
        Panel(model, train_set, test_set, *family, by_name(modes_of(study, model, train_set)))
        for (model, train_set), test_set, family in product(study.pairs(), study.test_sets, hard.items())
    ]
    figure, caption = _figure(study, panels, len(study.test_sets), passes, passes["size"])
    return Plot("pass-at-k-hard", "headline", "Hard inference by training mode", caption, figure)


def modes_of(study: Study, model: str, train_set: str) -> list[str]:
    return [row.training_mode for row in study.rows if (row.model, row.train_set) == (model, train_set)]


def tested_modes(study: Study, model: str, train_set: str, passes: pd.DataFrame) -> dict[str, int]:
    """How many training modes were tested in each inference family with samples."""
    places = {(*index[:3], index[4]) for index in passes.index}
    modes = [mode for mode in modes_of(study, model, train_set) if mode != "base"]
    return {
        name: sum((model, train_set, mode, family.sample) in places for mode in modes)
        for name, family in study.families().items()
        if family.sample
    }


def by_name(modes: Iterable[str]) -> Varied:
    return Varied("training_mode", {mode: mode for mode in modes})


def find_varied(study: Study, model: str, train_set: str) -> Varied | None:
    """What the training modes of one model and train set differ in: one number, else the modes themselves if they
    differ in the place of the noise or are too many for lines; else None.
    """
    modes = modes_of(study, model, train_set)
    many = len(modes) > MOST_LINES
    if len(modes) < 2:
        return None
    settings = {mode: study.settings(Row(model, train_set, mode)) for mode in modes}
    names = dict.fromkeys(name for of_mode in settings.values() for name in of_mode)
    differing = [name for name in names if len({str(of_mode.get(name)) for of_mode in settings.values()}) > 1]
    if len(differing) == 1:
        values = {mode: of_mode.get(differing[0]) for mode, of_mode in settings.items()}
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values.values()):
            return Varied(differing[0], dict(sorted(values.items(), key=lambda item: float(item[1] or 0))))
    return by_name(modes) if many or "noise_at" in differing else None


def _draw(
    study: Study, model: str, train_set: str, varied: Varied, families: Mapping[str, Family], passes: pd.DataFrame
) -> Plot:
    panels = [
        Panel(model, train_set, test_set, name, family, varied)
        for test_set, (name, family) in product(study.test_sets, families.items())
    ]
    rows = study.rows_of(model, train_set)
    seeds = passes["size"][[index[:3] in rows for index in passes.index]]
    figure, caption = _figure(study, panels, len(families), passes, seeds)
    return Plot(f"ablation--{model}--{train_set}", "modes", title(varied, model, train_set), caption, figure)


def title(varied: Varied, model: str, train_set: str) -> str:
    what = WORDS.get(varied.setting, varied.setting).removesuffix(" in training")
    return f"{f'Ablation, {what}' if varied.numeric else 'By training mode'}: {subject(model, train_set)}"


def title_by_mode(study: Study, model: str, train_set: str) -> str:
    """The title of the figure of `ablation_plans` for a model and train set that have one."""
    varied = find_varied(study, model, train_set) or by_name(modes_of(study, model, train_set))
    return title(varied, model, train_set)


def _figure(
    study: Study, drawn: Sequence[Panel], columns: int, passes: pd.DataFrame, seeds: pd.Series
) -> tuple[Figure, str]:
    """The panels, so many side by side if they are narrow enough, and their caption; `seeds` is what `runs_phrase`
    takes.
    """
    varied = drawn[0].varied  # panels of one figure are all over a number, or all over modes
    families = dict.fromkeys(panel.family for panel in drawn)
    names = [name for family in families for name, *_ in _measures(study, family)]
    most = max(len(panel.varied.values) for panel in drawn)
    width = 3.1 if varied.numeric else max(3.1, 0.3 * most)
    columns = columns if width <= WIDEST else 1
    sharey = "row" if len({panel.test_set for panel in drawn[:columns]}) == 1 else False
    figure, panels = panel_grid(len(drawn) // columns, columns, width, 2.9, names, sharey=sharey)
    several = len({panel[:2] for panel in drawn}) > 1
    ends = {}
    for axes, panel in zip(panels.flat, drawn, strict=True):
        ends[axes] = _panel(axes, study, panel, passes)
        where = f"\n{subject(panel.model, panel.train_set)}" if several else ""
        axes.set_title(f"{panel.test_set}, {panel.inference} inference{where}")
        axes.set_visible(axes.has_data())
        percent_limits(axes)
    for line in panels:
        share_percents(line)
        line[0].set_ylabel("problems solved (%)")
    if varied.numeric:
        for axes in panels[-1]:
            axes.set_xlabel(WORDS.get(varied.setting, f"{varied.setting} in training"))
    based = any(row.training_mode == "base" for row in study.rows)
    spread = any(seeds > 1)
    base = Line2D([], [], color=MUTED, linewidth=1.1, linestyle=(0, (3, 2)), label="base")
    mean = Line2D([], [], color=MUTED, marker="o", markersize=4, label="mean over seeds")
    mean.set_linestyle("-" if varied.numeric else "none")
    bar = Line2D([], [], color=MUTED, marker="|", markersize=9, markeredgewidth=1.3, linestyle="none")
    bar.set_label(BAND.get_label())
    legend(figure, mean, *[base] * based, *[BAND if varied.numeric else bar] * spread)
    label_ends(figure, ends)
    samples = value_range(study.samples(str(family.sample)) for family in families)
    greedy = "pass@1 of greedy CoTs, and " if any(family.greedy for family in families) else ""
    words = [
        f"Every point is a training mode: {greedy}pass@1 and pass@k of sampled ones ({samples} samples per problem), "
        "mean over seeds.",
        f"{'Bands' if varied.numeric else 'Bars'} run from the lowest to the highest seed." if spread else "",
        "Dashed: the untouched base." if based else "",
        "Colours are measures here, not modes.",
        f"Lines over k are drawn for up to {MOST_LINES} training modes." if most > MOST_LINES else "",
        runs_phrase(seeds),
        axes_phrase(panels),
    ]
    return figure, " ".join(filter(None, words))


def _measures(study: Study, family: Family) -> list[tuple[str, str, int, tuple[str, str, float]]]:
    """What is drawn of a family with samples: (label, inference mode, k, look)."""
    greedy, single, several = MEASURE_LOOKS
    sampled, samples = str(family.sample), study.samples(str(family.sample))
    found = [("greedy pass@1", family.greedy, 1, greedy)] if family.greedy else []
    found += [(f"pass@{k}", sampled, k, single if k == 1 else several) for k in sorted({1, samples})]
    return found


def _panel(axes: Axes, study: Study, panel: Panel, passes: pd.DataFrame) -> list[LineEnd]:
    """Each measure over the setting's values; returns the line ends."""
    model, train_set, test_set, _, family, varied = panel
    ends = []
    numbers = [float(value) for value in varied.values.values()] if varied.numeric else range(len(varied.values))
    places = dict(zip(varied.values, map(float, numbers), strict=True))
    for label, mode, k, (colour, marker, size) in _measures(study, family):
        points = []
        for name, x in places.items():
            found = at(passes, (model, train_set, name, test_set, mode))
            if found is not None and k in found.index:
                points.append((x, *found.loc[k, ["mean", "min", "max"]]))
        if points:
            x, mean, low, high = np.array(points, dtype=float).T
            if varied.numeric:
                axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
            else:
                axes.vlines(x, low, high, color=colour, linewidth=1.3)
            axes.plot(
                x, mean, color=colour, linestyle="-" if varied.numeric else "none", linewidth=1.8, marker=marker,
                markersize=size, markeredgecolor=PAPER, markeredgewidth=0.8,
            )  # fmt: skip
            ends.append(LineEnd(label, colour, x[-1], mean[-1]))
        base = at(passes, (model, "none", "base", test_set, mode))
        if base is not None and k in base.index:
            axes.axhline(base["mean"][k], color=colour, linewidth=1.1, linestyle=(0, (3, 2)), zorder=1)
    if varied.numeric and min(places.values()) > 0 and max(places.values()) >= LOG_RATIO * min(places.values()):
        axes.set_xscale("log")
    axes.set_xticks(
        list(places.values()), [f"{value:g}" if varied.numeric else value for value in varied.values.values()]
    )
    axes.xaxis.set_minor_locator(NullLocator())
    if not varied.numeric:
        axes.tick_params(axis="x", labelrotation=35)
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
            tick.set_rotation_mode("anchor")
        axes.set_xlim(-0.6, len(places) - 0.4)
    return ends
