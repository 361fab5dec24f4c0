"""Figures of a study: pass@k curves, training and validation curves, entropy by CoT position. Those of ablations are in
`ablations.py`.

Lines are means over seeds, bands run from the lowest to the highest seed: what was seen, where a t interval over three
seeds would mostly be wide. The name of a training mode stands at the end of its line. Files are deterministic: equal
numbers give equal bytes. No state of matplotlib is changed for others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, product, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from softtok.report.ablations import ablation_plans, headline, modes_of, tested_modes, title_by_mode
from softtok.report.metrics import merge_profiles
from softtok.report.palette import MOST_LINES, MUTED, Look, looks
from softtok.report.panels import (
    BAND,
    STYLE,
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
from softtok.storage import files as state

T = TypeVar("T")
ACROSS = 4  # inference families side by side; more go on in the next line
GUTTER = 1.6  # doublings of k that the greedy markers share, side by side left of k = 1
NARROWEST, DIGIT = 160, 5.5  # points: a panel's width, at the least, and a digit's below it
TRAINING_POINTS = 40  # of a training curve: single steps are too noisy to read
ENTROPY_POINTS = 128
LEAST_SHARE = 0.1  # of generations still in their CoT, below which an entropy profile is not drawn


def draw_all(study: Study, metrics: pd.DataFrame, training: pd.DataFrame) -> Iterator[Plot]:
    """Every figure that the study has numbers for, one after another, so that only one need be in memory. `metrics` and
    `training` are those of `collect.Results`.
    """
    for draw in _plans(study, metrics, training):
        with matplotlib.rc_context(STYLE):
            plot = draw()
        yield plot


def _plans(study: Study, metrics: pd.DataFrame, training: pd.DataFrame) -> Iterator[Callable[[], Plot]]:
    style = looks(row.training_mode for row in study.rows)
    passes = (
        metrics[metrics["metric"] == "pass@k"]
        .groupby([*Row._fields, "test_set", "inference_mode", "k"])["value"]
        .agg(["mean", "min", "max", "size"])
    )
    profiles = metrics[metrics["metric"] == "entropy"]
    tested = {pair: tested_modes(study, *pair, passes) for pair in study.pairs()}
    crowded = {pair: [name for name, modes in of.items() if modes > MOST_LINES] for pair, of in tested.items()}
    hard = study.hard_family()
    if hard.sample and study.test_sets:
        many = any(study.families()[name] == hard for names in crowded.values() for name in names)
        yield partial(headline, study, passes) if many else partial(_hard_passes, study, passes, style)
    for pair in study.pairs():
        if study.test_sets and len(tested[pair]) > len(crowded[pair]):
            yield partial(_all_passes, study, *pair, crowded[pair], passes, style)
    yield from ablation_plans(study, passes)
    for model, train_set in study.pairs():
        runs = training[(training["model"] == model) & (training["train_set"] == train_set)]
        if len(runs):
            for part in _parts(study, model, train_set):
                yield partial(_training, model, train_set, part, runs, style)
    for model, train_set in study.pairs():
        of_pair = profiles[(profiles["model"] == model) & profiles["train_set"].isin(["none", train_set])]
        for test_set in study.test_sets:
            shown = of_pair[of_pair["test_set"] == test_set]
            if len(shown):
                for part in _parts(study, model, train_set):
                    yield partial(_entropy, study, model, train_set, test_set, part, shown, style)


class Part(NamedTuple):
    """The training modes that one of several figures of the same kind shows: not more than the eye can follow."""

    modes: tuple[str, ...]
    number: int
    of: int

    @property
    def suffix(self) -> str:  # of a file's name
        return f"--{self.number}" if self.number > 1 else ""

    @property
    def words(self) -> str:  # of a title
        return f" ({self.number} of {self.of})" if self.of > 1 else ""

    @property
    def caption(self) -> str:
        return "The other training modes have figures of their own, with the same axes." if self.of > 1 else ""


def _parts(study: Study, model: str, train_set: str) -> list[Part]:
    modes = [mode for mode in modes_of(study, model, train_set) if mode != "base"]
    figures = max(1, math.ceil(len(modes) / MOST_LINES))
    parts = list(batched(modes, math.ceil(len(modes) / figures))) if modes else [()]
    return [Part(part, number, len(parts)) for number, part in enumerate(parts, start=1)]


def batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """The items in tuples of `size`, the last one maybe shorter (itertools has it from Python 3.12 on)."""
    rest = iter(items)
    while part := tuple(islice(rest, size)):
        yield part


def save(plot: Plot, folder: Path) -> str:
    """Writes `folder`/name.svg and .png; returns the text of the svg."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": plot.name}):
        buffer = io.StringIO()
        plot.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": plot.title})
        with state.atomic(folder / f"{plot.name}.png") as temporary:
            plot.figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None})
    # Verdana has the widths of DejaVu Sans, where a viewer lacks that.
    text = buffer.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    state.write_text(folder / f"{plot.name}.svg", text)
    return text


def _passes_panel(
    axes: Axes, study: Study, rows: Sequence[Row], test_set: str, family: Family, passes: pd.DataFrame,
    style: Mapping[str, Look],
) -> list[LineEnd]:  # fmt: skip
    """pass@k over k for each row, sampled, with the greedy pass@1 as diamonds left of k = 1; returns the line ends."""
    ends = []
    measured: set[int] = set()
    greedy_too = False
    for place, row in enumerate(rows):
        look = style[row.training_mode]
        curve = at(passes, (*row, test_set, family.sample))
        if curve is not None:
            k = curve.index.to_numpy(dtype=float)
            measured |= set(curve.index)
            axes.fill_between(k, curve["min"], curve["max"], color=look.colour, alpha=0.16, linewidth=0)
            axes.plot(k, curve["mean"], linestyle=look.dashes, linewidth=1.9, **look.mark("o", 3))
            ends.append(LineEnd(row.training_mode, look.colour, k[-1], curve["mean"].iloc[-1]))
        greedy = at(passes, (*row, test_set, family.greedy))
        if greedy is not None:
            greedy_too = True
            x = 2 ** (-GUTTER * (len(rows) - place) / (len(rows) + 1))
            mean, low, high = greedy[["mean", "min", "max"]].iloc[0]
            axes.plot([x, x], [low, high], color=look.colour, linewidth=1.3, zorder=4)
            axes.plot(x, mean, linestyle="none", zorder=5, **look.mark("D", 6.5, halo=True))
    ticks = sorted(measured) or [1]
    axes.set_xscale("log", base=2)
    axes.set_xlim(2**-GUTTER, ticks[-1] * 1.06)
    axes.set_xticks(ticks, tick_texts(ticks))
    axes.minorticks_off()
    if greedy_too:
        axes.annotate(
            "greedy", xy=(2 ** (-GUTTER / 2), 0), xycoords=axes.get_xaxis_transform(), xytext=(0, -6),
            textcoords="offset points", ha="center", va="top", color=MUTED, fontsize=8.5,
        )  # fmt: skip
    return ends


def tick_texts(ticks: Sequence[int]) -> list[str]:
    """What stands below each k: its number, or nothing where that would meet the next; the largest always has one."""
    doubling = NARROWEST / (GUTTER + math.log2(ticks[-1]))
    texts = [str(ticks[-1])]
    last = ticks[-1]
    for k in reversed(ticks[:-1]):
        needed = DIGIT * (len(str(k)) + len(str(last))) / 2 + DIGIT
        texts.append(str(k) if math.log2(last / k) * doubling >= needed else "")
        last = k if texts[-1] else last
    return texts[::-1]


def _finish_passes(
    figure: Figure, panels: Any, ends: Mapping[Axes, list[LineEnd]], samples: int | str, seeds: pd.Series
) -> str:
    """Axes, legend and names of pass@k panels; returns the caption, which explains what is drawn and nothing else.
    `samples` are those per problem, `seeds` what `runs_phrase` takes.
    """
    for axes in panels.flat:
        axes.set_visible(axes.has_data())  # grid blocks may give runs different test sets
        percent_limits(axes)
    for line in panels:
        share_percents(line)
    greedy = any(line.get_marker() == "D" for axes in panels.flat for line in axes.lines)
    several = any(seeds > 1)
    if not greedy:
        for axes in panels.flat:
            axes.set_xlim(left=2**-0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("problems solved (%)")
    for axes in panels[-1]:
        axes.set_xlabel("k (samples per problem)")
    legend(
        figure,
        Line2D([], [], color=MUTED, marker="o", markersize=3, linewidth=1.9, label="sampled: pass@k"),
        *[Line2D([], [], color=MUTED, marker="D", markersize=6, linestyle="none", label="greedy: pass@1")] * greedy,
        *[BAND] * several,
    )
    label_ends(figure, ends)
    words = [
        f"Lines: pass@k of sampled CoTs, estimated without bias from {samples} samples per problem, mean over seeds.",
        "Diamonds: greedy pass@1, side by side." if greedy else "",
        f"Bands{' and bars' if greedy else ''} run from the lowest to the highest seed." if several else "",
        runs_phrase(seeds),
        axes_phrase(panels),
    ]
    return " ".join(filter(None, words))


def _hard_passes(study: Study, passes: pd.DataFrame, style: Mapping[str, Look]) -> Plot:
    family, pairs = study.hard_family(), study.pairs()
    names = dict.fromkeys(row.training_mode for row in study.rows)
    figure, panels = panel_grid(len(pairs), len(study.test_sets), 4.4, 3.5, names)
    ends = {}
    for line, (model, train_set) in zip(panels, pairs, strict=True):
        where = "" if len(pairs) == 1 else f"\n{subject(model, train_set)}"
        for axes, test_set in zip(line, study.test_sets, strict=True):
            ends[axes] = _passes_panel(axes, study, study.rows_of(model, train_set), test_set, family, passes, style)
            axes.set_title(f"{test_set}, hard inference{where}")
    caption = _finish_passes(figure, panels, ends, study.samples(str(family.sample)), passes["size"])
    return Plot("pass-at-k-hard", "headline", "pass@k under hard inference", caption, figure)


def _all_passes(
    study: Study, model: str, train_set: str, crowded: Sequence[str], passes: pd.DataFrame, style: Mapping[str, Look]
) -> Plot:
    """pass@k over k in all families with samples but the `crowded`, which are drawn by training mode alone."""
    families = {name: family for name, family in study.families().items() if family.sample and name not in crowded}
    rows = study.rows_of(model, train_set)
    lines = list(product(study.test_sets, batched(families.items(), ACROSS)))
    names = [row.training_mode for row in rows]
    figure, panels = panel_grid(len(lines), min(len(families), ACROSS), 3.1, 2.9, names, sharey="row")
    ends = {}
    for line, (test_set, part) in zip(panels, lines, strict=True):
        for axes, (name, family) in zip(line, part, strict=False):
            ends[axes] = _passes_panel(axes, study, rows, test_set, family, passes, style)
            axes.set_title(f"{test_set}, {name} inference")
    samples = value_range(study.samples(str(family.sample)) for family in families.values())
    seeds = passes["size"][[index[:3] in rows for index in passes.index]]
    caption = _finish_passes(figure, panels, ends, samples, seeds)
    if crowded:
        elsewhere = f"In {', '.join(crowded)} inference, with more than {MOST_LINES} training modes,"
        caption += f" {elsewhere} see “{title_by_mode(study, model, train_set)}”."
    title = f"pass@k by inference family: {subject(model, train_set)}"
    return Plot(f"pass-at-k--{model}--{train_set}", "modes", title, caption, figure)


def _binned(frame: pd.DataFrame, value: str, width: int) -> pd.DataFrame:
    """Mean of `value` over stretches of `width` steps: one row per training_mode, seed and stretch."""
    steps = frame[frame["step"] > 0].dropna(subset=[value])
    stretch = (steps["step"] - 1) // width
    means = steps.groupby(["training_mode", "seed", stretch.rename("stretch")])[["step", value]].mean()
    # The middle of a stretch that a seed ended in would be its own; all seeds share the grid of the full ones.
    means["step"] = means.index.get_level_values("stretch") * width + (width + 1) / 2
    return means.reset_index()


def _training(model: str, train_set: str, part: Part, runs: pd.DataFrame, style: Mapping[str, Look]) -> Plot:
    figure, panels = panel_grid(2, 2, 4.4, 2.7, part.modes)
    ends: dict[Axes, list[LineEnd]] = {}
    last = max(int(runs["step"].max()), 1)
    width = math.ceil(last / TRAINING_POINTS)
    quantities = {
        "reward": "reward in training (mean per step)",
        "validation": "greedy validation accuracy (%)",
        "cot_tokens": "CoT tokens in training (mean)",
        "entropy": "entropy of CoT tokens in training (nats)",
    }
    for axes, (value, title) in zip(panels.flat, quantities.items(), strict=True):
        marker = {"marker": "o", "markersize": 3} if value == "validation" else {}
        shown = runs if value == "validation" else _binned(runs, value, width)
        ends[axes] = []
        axes.update_datalim([(0, extreme) for extreme in shown[value].agg(["min", "max"]).dropna()])
        for mode in part.modes:
            colour, dashes = style[mode].colour, style[mode].dashes
            seeds = shown[shown["training_mode"] == mode].pivot_table(index="step", columns="seed", values=value)
            for seed in seeds:
                line = seeds[seed].dropna()
                axes.plot(line.index, line, color=colour, alpha=0.3, linewidth=0.8)
            mean = seeds.dropna().mean(axis=1)  # where a seed ended early, the mean of the others would jump
            if len(mean):
                axes.plot(mean.index, mean, color=colour, linestyle=dashes, linewidth=2, **marker)
                ends[axes].append(LineEnd(mode, colour, mean.index[-1], mean.iloc[-1]))
        axes.set_title(title)
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        # Rewards are percents only while the settings say 100 for a right answer.
        if value == "validation" or (value == "reward" and 5 < axes.dataLim.y1 <= 100):
            percent_limits(axes)
    for axes in panels[-1]:
        axes.set_xlabel("training step")
    legend(
        figure,
        Line2D([], [], color=MUTED, linewidth=2, label="mean over seeds"),
        Line2D([], [], color=MUTED, linewidth=0.8, alpha=0.6, label="one seed"),
    )
    label_ends(figure, ends)
    here = runs[runs["training_mode"].isin(part.modes)]
    caption = (
        "Thick: mean over seeds, as far as all of them go; thin: each seed "
        f"(n = {value_range(here.groupby('training_mode')['seed'].nunique())}). "
        f"{f'Training quantities are means over {width} steps. ' if width > 1 else ''}"
        "Validation is greedy, in the mode's own CoT without noise, on held-out training problems; step 0 is the base. "
        f"{part.caption}"
    )
    title = f"Training: {model} on {train_set}{part.words}"
    return Plot(f"training--{model}--{train_set}{part.suffix}", "training", title, caption.strip(), figure)


def _entropy(
    study: Study, model: str, train_set: str, test_set: str, part: Part, profiles: pd.DataFrame,
    style: Mapping[str, Look],
) -> Plot:  # fmt: skip
    width = math.ceil((int(profiles["index"].max()) + 1) / ENTROPY_POINTS)
    grouped = profiles.groupby([*Row._fields, "inference_mode"])
    curves = {key: _profile(of_key, width) for key, of_key in grouped}
    # Panels are for what these training modes were tested in; base, tested in everything, comes along.
    tested = {mode for *_, name, mode in curves if name in part.modes} or {mode for *_, mode in curves}
    met = {name: [mode if mode in tested else None for mode in of] for name, of in study.families().items()}
    families = {name: Family(*modes) for name, modes in met.items() if any(modes)}
    by_slot = [[getattr(family, slot) for family in families.values()] for slot in Family._fields]
    if len(families) > ACROSS:  # too many for each to have a column of its own
        by_slot = [[mode for mode in modes if mode] for modes in by_slot]
    lines = [line for modes in by_slot for line in batched(modes, ACROSS) if any(line)]
    names = ["base", *part.modes]
    figure, panels = panel_grid(len(lines), min(len(families), ACROSS), 3.1, 2.5, names, sharex=True, sharey=True)
    ends: dict[Axes, list[LineEnd]] = {}
    for x, mean, _, high in curves.values():
        panels[0, 0].update_datalim([(0, 0), (x[-1], np.nanmax([mean, high]))])  # the same axes in all parts
    for line, modes in zip(panels, lines, strict=True):
        line[0].set_ylabel("entropy (nats)")
        for axes, mode in zip_longest(line, modes):
            if mode is None:
                axes.set_visible(False)
                continue
            axes.set_title(f"{mode} inference")
            axes.tick_params(labelbottom=len(families) > ACROSS or axes in panels[-1])
            ends[axes] = []
            for row in study.rows_of(model, train_set):
                if row.training_mode in names and (key := (*row, mode)) in curves:
                    x, mean, low, high = curves[key]
                    colour, dashes = style[row.training_mode].colour, style[row.training_mode].dashes
                    axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
                    axes.plot(x, mean, color=colour, linestyle=dashes, linewidth=1.7)
                    if np.isfinite(mean[-1]):
                        ends[axes].append(LineEnd(row.training_mode, colour, x[-1], mean[-1]))
    for axes in panels[-1]:
        axes.set_xlabel("CoT position (tokens)")
    panels[0, 0].set_xlim(left=0)
    panels[0, 0].set_ylim(bottom=0)
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    here = profiles[profiles["training_mode"].isin(names)]
    seeds = here.groupby(list(Row._fields))["seed"].nunique()
    several = any(seeds > 1)
    legend(figure, Line2D([], [], color=MUTED, linewidth=1.7, label="mean over generations"), *[BAND] * several)
    label_ends(figure, ends)
    caption = (
        "Mean entropy of the next-token distribution (temperature 1) at each position, over all generations of all "
        f"seeds that are still in their CoT there; a line ends where fewer than {LEAST_SHARE:.0%} are. "
        f"{f'Points are means over {width} positions. ' if width > 1 else ''}"
        f"{'Bands run from the lowest to the highest seed. ' if several else ''}{runs_phrase(seeds)} {part.caption}"
    )
    name = f"entropy--{model}--{train_set}--{test_set}{part.suffix}"
    title = f"Entropy on {test_set}: {subject(model, train_set)}{part.words}"
    return Plot(name, "entropy", title, caption.strip(), figure)


def _profile(seeds: pd.DataFrame, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One mode's profiles of several seeds, in bins of `width` positions: middle, mean, lowest seed, highest seed."""
    binned = seeds.assign(bin=seeds["index"].astype(int) // width)
    index, mean, count = merge_profiles(binned["bin"], binned["value"], binned["n_samples"])
    few = count < LEAST_SHARE * count[0]
    kept = index[: int(np.argmax(few)) if few.any() else len(few)]
    single = pd.DataFrame(
        {
            seed: pd.Series(values, index=places)
            for seed, of_seed in binned.groupby("seed")
            for places, values, _ in [merge_profiles(of_seed["bin"], of_seed["value"], of_seed["n_samples"])]
        }
    ).reindex(kept)
    middle = kept * width + (width - 1) / 2
    return middle, mean[: len(kept)], single.min(axis=1).to_numpy(), single.max(axis=1).to_numpy()
