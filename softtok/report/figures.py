"""Figures of a study: pass@k curves, training and validation curves, entropy by CoT position.

Those of ablations are in `ablations.py`. Lines are means over seeds. Bands run from the lowest to the highest seed,
because a t interval over three seeds is mostly too wide. The name of a training mode is written at the end of its
line. Files are deterministic: equal numbers give equal bytes. No setting of matplotlib is changed for others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product, zip_longest
from pathlib import Path
from typing import NamedTuple, TypeVar

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softtok.report import panels
from softtok.report.ablations import ablation_plans, headline, modes_of, tested_modes, title_by_mode
from softtok.report.palette import MOST_LINES, MUTED, Look, looks
from softtok.report.panels import (
    BAND,
    BANDS,
    BARS,
    STYLE,
    Panel,
    Plot,
    draw,
    key,
    of_pair,
    runs_phrase,
    seed_counts,
    subject,
)
from softtok.report.study import Family, Study
from softtok.storage.files import atomic, text_hash, write_text

T = TypeVar("T")
Pair = tuple[str, str]  # model, train set
Plans = Iterator[Callable[[], Plot]]
ACROSS = 4  # inference families side by side; more go on in the next line
GUTTER = 1.6  # doublings of k that the greedy markers share, side by side left of k = 1
NARROWEST, DIGIT = 160, 5.5  # points: a panel's width, at the least, and a digit's below it
TRAINING_POINTS = 40  # of a training curve: single steps are too noisy to read
ENTROPY_POINTS = 128
LEAST_SHARE = 0.1  # of generations still in their CoT, below which an entropy profile is not drawn
QUANTITIES = {
    "reward": "reward in training (mean per step)",
    "validation": "greedy validation accuracy (%)",
    "cot_tokens": "CoT tokens in training (mean)",
    "entropy": "entropy of CoT tokens in training (nats)",
}


@dataclass(frozen=True)
class Numbers:
    """What the figures of a study draw: tidy frames with one line per run and measured value, and how modes look."""

    study: Study
    passes: pd.DataFrame  # the metrics of pass@k
    entropy: pd.DataFrame  # the metrics of entropy
    training: pd.DataFrame
    looks: Mapping[str, Look]

    def shown(self, modes: Iterable[str]) -> dict[str, Look]:
        return {mode: self.looks[mode] for mode in modes}


def draw_all(study: Study, metrics: pd.DataFrame, training: pd.DataFrame) -> Iterator[Plot]:
    """Yields every figure that the study has numbers for, one after another, so that only one need be in memory.

    `metrics` and `training` are those of `collect.Results`.
    """
    passes, entropy = (metrics[metrics["metric"] == name] for name in ("pass@k", "entropy"))
    style = looks(row.training_mode for row in study.rows)
    numbers = Numbers(study, passes.astype({"k": int}), entropy.astype({"index": int}), training, style)
    for plan in (*_pass_plans(numbers), *_training_plans(numbers), *_entropy_plans(numbers)):
        with matplotlib.rc_context(STYLE):
            plot = plan()
        yield plot


def _pass_plans(numbers: Numbers) -> Plans:
    study, passes = numbers.study, numbers.passes
    tested = {pair: tested_modes(study, *pair, passes) for pair in study.pairs()}
    crowded = {pair: [name for name, modes in of.items() if modes > MOST_LINES] for pair, of in tested.items()}
    hard = study.hard_family()
    if hard.sample and study.test_sets:
        many = any(study.families()[name] == hard for names in crowded.values() for name in names)
        yield partial(headline, study, passes) if many else partial(_hard_passes, numbers)
    for pair in study.pairs():
        if study.test_sets and len(tested[pair]) > len(crowded[pair]):
            yield partial(_all_passes, numbers, pair, crowded[pair])
    yield from ablation_plans(study, passes)


def _training_plans(numbers: Numbers) -> Plans:
    for pair in numbers.study.pairs():
        if len(of_pair(numbers.training, *pair)):
            for part in _parts(numbers.study, *pair):
                yield partial(_training, numbers, pair, part)


def _entropy_plans(numbers: Numbers) -> Plans:
    for pair, test_set in product(numbers.study.pairs(), numbers.study.test_sets):
        if test_set in set(of_pair(numbers.entropy, *pair)["test_set"]):
            for part in _parts(numbers.study, *pair):
                yield partial(_entropy, numbers, pair, test_set, part)


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


def short(name: str) -> str:
    """Returns the name of a file, which long names of entries would make too long for a file system."""
    return name if len(name) <= 200 else f"{name[:190]}-{text_hash(name)}"


def save(plot: Plot, folder: Path) -> str:
    """Writes `folder`/name.svg and .png; returns the text of the svg."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": plot.name}):
        buffer = io.StringIO()
        plot.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": plot.title})
        with atomic(folder / f"{plot.name}.png") as temporary:
            fast = {"compress_level": 3}  # a tenth larger than at PIL's default, in two thirds of the time
            plot.figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None}, pil_kwargs=fast)
    # Verdana has the widths of DejaVu Sans, where a viewer lacks that.
    text = buffer.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    write_text(folder / f"{plot.name}.svg", text)
    return text


def _passes_panel(axes: Axes, cells: pd.DataFrame, family: Family, shown: Mapping[str, Look]) -> None:
    """Draws pass@k over k for each training mode, with the greedy pass@1 as diamonds left of k = 1."""
    sampled, greedy = (cells[cells["inference_mode"] == mode] for mode in (family.sample, family.greedy))
    for place, (mode, look) in enumerate(shown.items()):
        curve, diamond = (of_family[of_family["training_mode"] == mode] for of_family in (sampled, greedy))
        x = 2 ** (-GUTTER * (len(shown) - place) / (len(shown) + 1))
        draw(axes, curve, "k", label=mode, linestyle=look.dashes, linewidth=1.9, **look.mark("o", 3), **BANDS)
        draw(axes, diamond.assign(k=x), "k", **look.mark("D", 6.5, halo=True), **BARS)
    ticks = sorted(set(sampled["k"])) or [1]
    axes.set_xscale("log", base=2)
    axes.set_xlim(2**-GUTTER, ticks[-1] * 1.06)
    axes.set_xticks(ticks, tick_texts(ticks))
    axes.minorticks_off()
    if len(greedy):
        axes.annotate(
            "greedy",
            xy=(2 ** (-GUTTER / 2), 0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, -6),
            textcoords="offset points",
            ha="center",
            va="top",
            color=MUTED,
            fontsize=8.5,
        )


def tick_texts(ticks: Sequence[int]) -> list[str]:
    """Returns the text below each k: its number, or nothing if numbers would overlap; the largest always has one."""
    doubling = NARROWEST / (GUTTER + math.log2(ticks[-1]))
    texts = [str(ticks[-1])]
    last = ticks[-1]
    for k in reversed(ticks[:-1]):
        needed = DIGIT * (len(str(k)) + len(str(last))) / 2 + DIGIT
        texts.append(str(k) if math.log2(last / k) * doubling >= needed else "")
        last = k if texts[-1] else last
    return texts[::-1]


def _passes(
    numbers: Numbers, lines: Sequence[Sequence[Panel]], size: tuple[float, float], passes: pd.DataFrame
) -> tuple[Figure, str]:
    """Returns panels of pass@k over k and their caption, which explains what is drawn and nothing else."""
    study = numbers.study
    drawn = [panel for line in lines for panel in line]
    rows = {panel[:2]: [row.training_mode for row in study.rows_of(*panel[:2])] for panel in drawn}

    def draw_panel(axes: Axes, panel: Panel) -> None:
        _passes_panel(axes, panel.cells(passes), panel.family, numbers.shown(rows[panel[:2]]))

    names = {mode for modes in rows.values() for mode in modes}
    figure, grid = panels.pass_panels(lines, size, names, "k (samples per problem)", draw_panel)
    greedy = any(line.get_marker() == "D" for axes in grid.flat for line in axes.lines)
    several = any(seed_counts(passes) > 1)
    if not greedy:
        for axes in grid.flat:
            axes.set_xlim(left=2**-0.3)
    panels.explain(
        figure,
        key("sampled: pass@k", marker="o", markersize=3, linewidth=1.9),
        *[key("greedy: pass@1", marker="D", markersize=6, linestyle="none")] * greedy,
        *[BAND] * several,
    )
    samples = panels.value_range(study.samples(str(panel.family.sample), panel.test_set) for panel in drawn)
    words = [
        f"Lines: pass@k of sampled CoTs, estimated without bias from {samples} samples per problem, mean over seeds.",
        "Diamonds: greedy pass@1, side by side." if greedy else "",
        f"Bands{' and bars' if greedy else ''} run from the lowest to the highest seed." if several else "",
        runs_phrase(seed_counts(passes)),
        panels.axes_phrase(grid),
    ]
    return figure, " ".join(filter(None, words))


def _hard_passes(numbers: Numbers) -> Plot:
    study = numbers.study
    lines = [
        [Panel(*pair, test_set, "hard", study.hard_family()) for test_set in study.test_sets] for pair in study.pairs()
    ]
    figure, caption = _passes(numbers, lines, (4.4, 3.5), numbers.passes)
    return Plot("pass-at-k-hard", "headline", "pass@k under hard inference", caption, figure)


def _all_passes(numbers: Numbers, pair: Pair, crowded: Sequence[str]) -> Plot:
    """Draws pass@k over k in all families with samples but the `crowded`, which are drawn by training mode alone."""
    families = [item for item in numbers.study.families().items() if item[1].sample and item[0] not in crowded]
    across = product(numbers.study.test_sets, batched(families, ACROSS))
    lines = [[Panel(*pair, test_set, *item) for item in part] for test_set, part in across]
    figure, caption = _passes(numbers, lines, (3.1, 2.9), of_pair(numbers.passes, *pair))
    if crowded:
        elsewhere = f"In {', '.join(crowded)} inference, with more than {MOST_LINES} training modes,"
        caption += f" {elsewhere} see “{title_by_mode(numbers.study, *pair)}”."
    title = f"pass@k by inference family: {subject(*pair)}"
    return Plot(f"pass-at-k--{'--'.join(pair)}", "modes", title, caption, figure)


def _binned(frame: pd.DataFrame, value: str, width: int) -> pd.DataFrame:
    """Returns means of `value` over stretches of `width` steps: one line per training_mode, seed and stretch."""
    steps = frame[frame["step"] > 0].dropna(subset=[value])
    # The middle of a full stretch, also where a seed ended before: all seeds share one grid.
    middle = (steps["step"] - 1) // width * width + (width + 1) / 2
    return steps.groupby(["training_mode", "seed", middle])[value].mean().reset_index()


def _training_panel(axes: Axes, frame: pd.DataFrame, value: str, shown: Mapping[str, Look]) -> None:
    """Draws a quantity over steps: a thin line per seed, and their mean as far as all seeds go."""
    axes.update_datalim([(0, extreme) for extreme in frame[value].agg(["min", "max"]).dropna()])
    for mode, look in shown.items():
        seeds = frame[frame["training_mode"] == mode]
        # Where a seed ended early, the mean of the others would jump.
        shared = seeds.groupby("step")["seed"].transform("nunique") == seeds["seed"].nunique()
        marks = look.mark("o", 3) if value == "validation" else {"color": look.colour}
        thin, thick = {"alpha": 0.3, "linewidth": 0.8}, {"linestyle": look.dashes, "linewidth": 2, **marks}
        draw(axes, seeds, "step", value, units="seed", estimator=None, color=look.colour, **thin)
        draw(axes, seeds[shared], "step", value, errorbar=None, label=mode, **thick)


def _training(numbers: Numbers, pair: Pair, part: Part) -> Plot:
    runs = of_pair(numbers.training, *pair)
    figure, grid = panels.panel_grid((2, 2), (4.4, 2.7), part.modes)
    last = max(int(runs["step"].max()), 1)
    width = math.ceil(last / TRAINING_POINTS)
    for axes, (value, title) in zip(grid.flat, QUANTITIES.items(), strict=True):
        frame = runs.dropna(subset=[value]) if value == "validation" else _binned(runs, value, width)
        _training_panel(axes, frame, value, numbers.shown(part.modes))
        axes.set_title(title)
        axes.set_xlim(0, last)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        # Rewards are percents only while the settings say 100 for a right answer.
        if value == "validation" or (value == "reward" and 5 < axes.dataLim.y1 <= 100):
            panels.percent_limits(axes)
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    thin = key("one seed", linewidth=0.8, alpha=0.6)
    panels.explain(figure, key("mean over seeds", linewidth=2), thin)
    here = runs[runs["training_mode"].isin(part.modes)]
    caption = (
        "Thick: mean over seeds, as far as all of them go; thin: each seed "
        f"(n = {panels.value_range(here.groupby('training_mode')['seed'].nunique())}). "
        f"{f'Training quantities are means over {width} steps. ' if width > 1 else ''}"
        "Validation is greedy, in the mode's own CoT without noise, on held-out training problems; step 0 is the base. "
        f"{part.caption}"
    )
    title = f"Training: {' on '.join(pair)}{part.words}"
    return Plot(f"training--{'--'.join(pair)}{part.suffix}", "training", title, caption.strip(), figure)


def _entropy(numbers: Numbers, pair: Pair, test_set: str, part: Part) -> Plot:
    cells = of_pair(numbers.entropy, *pair)
    cells = cells[cells["test_set"] == test_set]
    width = math.ceil((cells["index"].max() + 1) / ENTROPY_POINTS)
    seeds = seed_counts(cells[cells["training_mode"].isin(["base", *part.modes])])
    several = any(seeds > 1)
    figure = _entropy_panels(numbers, pair, part, profiles(cells, width))
    panels.explain(figure, key("mean over generations", linewidth=1.7), *[BAND] * several)
    caption = (
        "Mean entropy of the next-token distribution (temperature 1) at each position, over all generations of all "
        f"seeds that are still in their CoT there; a line ends where fewer than {LEAST_SHARE:.0%} are. "
        f"{f'Points are means over {width} positions. ' if width > 1 else ''}"
        f"{'Bands run from the lowest to the highest seed. ' if several else ''}{runs_phrase(seeds)} {part.caption}"
    )
    name = short(f"entropy--{'--'.join(pair)}--{test_set}{part.suffix}")
    title = f"Entropy on {test_set}: {subject(*pair)}{part.words}"
    return Plot(name, "entropy", title, caption.strip(), figure)


def _entropy_panels(numbers: Numbers, pair: Pair, part: Part, curves: pd.DataFrame) -> Figure:
    """Draws a panel for each inference mode that these training modes were tested in; `curves` are `profiles`."""
    names, of_part = ["base", *part.modes], curves["training_mode"].isin(part.modes)
    # base, tested in everything, comes along.
    lines = _entropy_lines(numbers.study, set(curves["inference_mode"][of_part]) or set(curves["inference_mode"]))
    shape = (len(lines), max(map(len, lines)))
    figure, grid = panels.panel_grid(shape, (3.1, 2.5), names, sharex=True, sharey=True)
    grid[0, 0].update_datalim([(0, 0), (curves["position"].max(), curves["high"].max())])  # the same in all parts
    shown = numbers.shown(row.training_mode for row in numbers.study.rows_of(*pair) if row.training_mode in names)
    for row, modes, below in zip(grid, lines, [*lines[1:], ()], strict=True):
        row[0].set_ylabel("entropy (nats)")
        for axes, mode, next_mode in zip_longest(row, modes, below):
            axes.set_visible(mode is not None)
            axes.set_title(f"{mode} inference")
            axes.tick_params(labelbottom=next_mode is None)
            axes.set_xlabel("" if next_mode else "CoT position (tokens)")
            _entropy_panel(axes, curves[curves["inference_mode"] == mode], shown)
    grid[0, 0].set_xlim(left=0)
    grid[0, 0].set_ylim(bottom=0)
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    return figure


def _entropy_lines(study: Study, tested: Collection[str]) -> list[tuple[str | None, ...]]:
    """Returns the modes of each line of panels: greedy above sampled, a family in a column if all families fit."""
    slots = [[mode if mode in tested else None for mode in family] for family in study.families().values()]
    by_slot: list[list[str | None]] = [list(modes) for modes in zip(*filter(any, slots), strict=True)]
    if len(by_slot[0]) > ACROSS:
        by_slot = [[mode for mode in modes if mode] for modes in by_slot]
    return [line for modes in by_slot for line in batched(modes, ACROSS) if any(line)]


def _entropy_panel(axes: Axes, curves: pd.DataFrame, shown: Mapping[str, Look]) -> None:
    for mode, look in shown.items():
        curve = curves[curves["training_mode"] == mode]
        if len(curve):
            axes.fill_between(curve["position"], curve["low"], curve["high"], color=look.colour, **BANDS["err_kws"])
            axes.plot(
                curve["position"], curve["value"], label=mode, color=look.colour, linestyle=look.dashes, linewidth=1.7
            )


def profiles(entropy: pd.DataFrame, width: int) -> pd.DataFrame:
    """Returns entropy by training_mode, inference_mode and position, in bins of `width` positions.

    `value` is the mean over generations, so that seeds weigh as much as they have generations left (seaborn draws such
    means without their range); `low` and `high` are the lowest and the highest seed. `position` is a bin's middle. A
    profile ends where fewer than `LEAST_SHARE` of the generations are left.
    """
    curve, at = ["training_mode", "inference_mode"], ["training_mode", "inference_mode", "position"]
    position = entropy["index"] // width * width + (width - 1) / 2
    weighted = entropy.assign(position=position, total=entropy["value"] * entropy["n_samples"])
    seeds = weighted.groupby([*at, "seed"])[["total", "n_samples"]].sum().astype(float)
    of_seed, all_seeds = (seeds["total"] / seeds["n_samples"]).groupby(at), seeds.groupby(at).sum()
    left = all_seeds["n_samples"]
    ended = (left < LEAST_SHARE * left.groupby(curve).transform("first")).groupby(curve).cummax()
    means = all_seeds["total"] / left
    return pd.DataFrame({"value": means, "low": of_seed.min(), "high": of_seed.max()})[~ended].reset_index()
