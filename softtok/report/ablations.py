"""Figures of an ablation: the effect of the setting in which the training modes of a study differ.

If it is one number (noise scale, temperature, group size), pass@k is drawn over it. If the modes differ in the place of
the noise, or are too many for distinguishable lines, pass@k is drawn over the modes. Other studies have no such figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from softtok.report import panels
from softtok.report.palette import BASE_DASHES, MOST_LINES, PAPER, SERIES
from softtok.report.panels import BAND, BANDS, BARS, Panel, Plot, draw, key, of_pair, runs_phrase, seed_counts, subject
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


def ablation_plans(study: Study, passes: pd.DataFrame) -> Iterator[Callable[[], Plot]]:
    """Yields one figure per (model, train set) whose training modes differ as `find_varied` says.

    It shows the inference families with samples in which at least half of the modes were tested, or too many for lines.
    `passes` are the tidy metrics of pass@k.
    """
    for model, train_set in study.pairs():
        varied = find_varied(study, model, train_set)
        tested = tested_modes(study, model, train_set, passes)
        least = min(len(modes_of(study, model, train_set)) / 2, MOST_LINES + 1)
        families = {name: family for name, family in study.families().items() if tested.get(name, 0) >= max(least, 1)}
        if varied and families and study.test_sets:
            yield partial(_draw, study, model, train_set, varied, families, passes)


def headline(study: Study, passes: pd.DataFrame) -> Plot:
    """Draws hard inference by training mode, for studies with too many of them for lines over k."""
    name = next(name for name, family in study.families().items() if family == study.hard_family())
    drawn = [
        Panel(*pair, test_set, name, study.hard_family()) for pair, test_set in product(study.pairs(), study.test_sets)
    ]
    varied = {pair: by_name(modes_of(study, *pair)) for pair in study.pairs()}
    figure, caption = _figure(study, drawn, len(study.test_sets), varied, passes)
    return Plot("pass-at-k-hard", "headline", "Hard inference by training mode", caption, figure)


def modes_of(study: Study, model: str, train_set: str) -> list[str]:
    return [row.training_mode for row in study.rows if (row.model, row.train_set) == (model, train_set)]


def tested_modes(study: Study, model: str, train_set: str, passes: pd.DataFrame) -> dict[str, int]:
    """Returns how many training modes were tested in each inference family with samples."""
    cells = of_pair(passes, model, train_set)
    tested = cells[cells["training_mode"] != "base"].groupby("inference_mode")["training_mode"].nunique()
    return {name: int(tested.get(family.sample, 0)) for name, family in study.families().items() if family.sample}


def by_name(modes: Iterable[str]) -> Varied:
    return Varied("training_mode", {mode: mode for mode in modes})


def find_varied(study: Study, model: str, train_set: str) -> Varied | None:
    """Returns what the training modes of one model and train set differ in.

    That is one number; else the modes themselves, if they differ in the place of the noise or are too many for lines;
    else None.
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
    sets = product(study.test_sets, families.items())
    drawn = [Panel(model, train_set, test_set, name, family) for test_set, (name, family) in sets]
    cells = of_pair(passes, model, train_set)
    figure, caption = _figure(study, drawn, len(families), {(model, train_set): varied}, cells)
    return Plot(f"ablation--{model}--{train_set}", "modes", title(varied, model, train_set), caption, figure)


def title(varied: Varied, model: str, train_set: str) -> str:
    what = WORDS.get(varied.setting, varied.setting).removesuffix(" in training")
    return f"{f'Ablation, {what}' if varied.numeric else 'By training mode'}: {subject(model, train_set)}"


def title_by_mode(study: Study, model: str, train_set: str) -> str:
    """The title of the figure of `ablation_plans` for a model and train set that have one."""
    varied = find_varied(study, model, train_set) or by_name(modes_of(study, model, train_set))
    return title(varied, model, train_set)


def _figure(
    study: Study, drawn: Sequence[Panel], columns: int, varied: Mapping[tuple[str, str], Varied], passes: pd.DataFrame
) -> tuple[Figure, str]:
    """Returns the panels, so many side by side if they are narrow enough, and their caption.

    `varied` has the setting of each (model, train set): one number in all of them, or in all of them the modes.
    """
    first, most = next(iter(varied.values())), max(len(of_pair.values) for of_pair in varied.values())
    names = {name for panel in drawn for name, *_ in _measures(study, panel)}
    width = 3.1 if first.numeric else max(3.1, 0.3 * most)
    columns = columns if width <= WIDEST else 1
    lines = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    xlabel = WORDS.get(first.setting, f"{first.setting} in training") if first.numeric else ""

    def draw_panel(axes: Axes, panel: Panel) -> None:
        _panel(axes, study, panel, varied[panel[:2]], panel.cells(passes))

    figure, grid = panels.pass_panels(lines, (width, 2.9), names, xlabel, draw_panel)
    based, spread = any(row.training_mode == "base" for row in study.rows), any(seed_counts(passes) > 1)
    bar = key(str(BAND.get_label()), marker="|", markersize=9, markeredgewidth=1.3, linestyle="none")
    panels.explain(
        figure,
        key("mean over seeds", marker="o", markersize=4, linestyle="-" if first.numeric else "none", linewidth=1.5),
        *[key("base", linewidth=1.1, linestyle=BASE_DASHES)] * based,
        *[BAND if first.numeric else bar] * spread,
    )
    words = [
        _points(study, drawn),
        f"{'Bands' if first.numeric else 'Bars'} run from the lowest to the highest seed." if spread else "",
        "Dashed: the untouched base." if based else "",
        "Colours are measures here, not modes.",
        f"Lines over k are drawn for up to {MOST_LINES} training modes." if most > MOST_LINES else "",
        runs_phrase(seed_counts(passes)),
        panels.axes_phrase(grid),
    ]
    return figure, " ".join(filter(None, words))


def _points(study: Study, drawn: Sequence[Panel]) -> str:
    """Says what a point is, for captions."""
    samples = panels.value_range(study.samples(str(panel.family.sample), panel.test_set) for panel in drawn)
    greedy = "pass@1 of greedy CoTs, and " if any(panel.family.greedy for panel in drawn) else ""
    measures = f"{greedy}pass@1 and pass@k of sampled ones ({samples} samples per problem)"
    return f"Every point is a training mode: {measures}, mean over seeds."


def _measures(study: Study, panel: Panel) -> list[tuple[str, str, int, tuple[str, str, float]]]:
    """What is drawn of a panel, whose family has samples: (label, inference mode, k, look)."""
    greedy, single, several = MEASURE_LOOKS
    family, sampled = panel.family, str(panel.family.sample)
    samples = study.samples(sampled, panel.test_set)
    found = [("greedy pass@1", family.greedy, 1, greedy)] if family.greedy else []
    found += [(f"pass@{k}", sampled, k, single if k == 1 else several) for k in sorted({1, samples})]
    return found


def _panel(axes: Axes, study: Study, panel: Panel, varied: Varied, cells: pd.DataFrame) -> None:
    """Draws each measure over the setting's values."""
    places = {mode: float(value) if varied.numeric else at for at, (mode, value) in enumerate(varied.values.items())}
    cells = cells.assign(place=cells["training_mode"].map(places))
    look = BANDS if varied.numeric else BARS
    for label, mode, k, (colour, marker, size) in _measures(study, panel):
        measured = cells[(cells["inference_mode"] == mode) & (cells["k"] == k)]
        mark: dict[str, Any] = {"marker": marker, "markersize": size, "markeredgecolor": PAPER, "markeredgewidth": 0.8}
        placed = measured.dropna(subset="place")
        draw(axes, placed, "place", label=label, color=colour, linewidth=1.8, **mark, **look)
        for value in measured.loc[measured["training_mode"] == "base", "value"]:
            axes.axhline(value, color=colour, linewidth=1.1, linestyle=BASE_DASHES, zorder=1)
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
