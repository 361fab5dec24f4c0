"""Figures of studies of every shape: what they explain lies within them and is what they draw."""

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from softtok.report import figures, palette
from softtok.report.collect import collect
from softtok.report.panels import Plot
from tests.support.figures import left_title, points_of
from tests.support.report_specs import study_of
from tests.support.synthetic_runs import INFERENCE_MODES, write_study

HARD = {name: INFERENCE_MODES[name] for name in ("hard-greedy", "hard-sample")}


def drawn(root: Path, k: list[int] | None = None, **shape: Any) -> dict[str, Plot]:
    """The figures, by name, of a study of that shape."""
    few: dict[str, Any] = {"test_sets": ("sums",), "choice_sets": (), "seeds": 2, "problems": 12, "steps": 6}
    spec = write_study(root, **few | shape) | ({"k": k} if k else {})
    results = collect(study_of(spec), root)
    plots = figures.draw_all(study_of(spec), results.metrics, results.training)
    return {plot.name: plot for plot in plots}


@pytest.mark.parametrize(
    ("k", "samples", "texts"),
    [
        (None, 32, ["1", "2", "4", "8", "16", "32"]),
        ([1, 3, 5, 10], 10, ["1", "3", "5", "10"]),
        ([2, 3, 64], 4, ["1", "2", "3", "4"]),  # 1 and all samples are measured in any case, more cannot be
        (None, 33, ["1", "2", "4", "8", "16", "", "33"]),
    ],
)
def test_ticks_stand_below_the_points_and_their_numbers_apart(
    k: list[int] | None, samples: int, texts: list[str], tmp_path: Path
) -> None:
    inference_modes = HARD | {"hard-sample": {**HARD["hard-sample"], "samples": samples}}
    plots = drawn(tmp_path, k, modes=("hard", "soft"), inference_modes=inference_modes)
    for name in ("pass-at-k-hard", "pass-at-k--toy--sums"):
        (axes,) = plots[name].figure.axes
        plots[name].figure.draw_without_rendering()
        (points,) = {tuple(points_of(line)[:, 0]) for line in axes.lines if line.get_marker() == "o"}
        assert tuple(axes.get_xticks()) == points
        labels = axes.get_xticklabels()
        assert [label.get_text() for label in labels] == texts
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        assert all(one.x1 + 3 < other.x0 for one, other in pairwise(boxes))


@pytest.mark.parametrize("inference_modes", [HARD, INFERENCE_MODES], ids=["one family", "three families"])
@pytest.mark.parametrize("modes", ["ab", "abcdefg"])
def test_a_legend_lies_within_its_figure_and_above_its_panels(
    modes: str, inference_modes: dict[str, Any], tmp_path: Path
) -> None:
    plots = drawn(tmp_path, modes=tuple(modes), inference_modes=inference_modes)
    assert len(plots) >= 4
    for name, plot in plots.items():
        plot.figure.draw_without_rendering()
        (legend,) = plot.figure.legends
        box, page = legend.get_window_extent(), plot.figure.bbox
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1, name
        assert box.y0 > max(title.get_window_extent().y1 for title in map(left_title, plot.figure.axes)), name


@pytest.mark.parametrize(
    ("seeds", "inference_modes", "words"),
    [
        (2, HARD, {"Diamonds", "Bands and bars"}),
        (1, HARD, {"Diamonds"}),
        (2, {"hard-sample": HARD["hard-sample"]}, {"Bands run"}),
        (1, {"hard-sample": HARD["hard-sample"]}, set()),
    ],
)
def test_captions_and_legends_explain_what_is_drawn_and_nothing_else(
    seeds: int, inference_modes: dict[str, Any], words: set[str], tmp_path: Path
) -> None:
    plots = drawn(tmp_path, modes=("hard", "soft"), seeds=seeds, inference_modes=inference_modes)
    assert ("Bands" in plots["entropy--toy--sums--sums"].caption) == (seeds > 1)
    for name in ("pass-at-k-hard", "pass-at-k--toy--sums"):
        caption, (legend,) = plots[name].caption, plots[name].figure.legends
        assert {word for word in ("Diamonds", "Bands and bars", "Bands run") if word in caption} == words
        labels = ["sampled: pass@k", *["greedy: pass@1"] * len(words & {"Diamonds"}), "lowest to highest seed"]
        assert [text.get_text() for text in legend.get_texts()] == labels[: len(labels) - (seeds == 1)]
        marks = {line.get_marker() for line in plots[name].figure.axes[0].lines}
        assert ("D" in marks) == ("Diamonds" in words)


def test_every_panel_of_pass_at_k_has_the_whole_axis(tmp_path: Path) -> None:
    for plot in drawn(tmp_path, modes=("hard", "soft"), test_sets=("sums", "long-sums")).values():
        if plot.name.startswith(("pass-at-k", "ablation")):
            for axes in plot.figure.axes:
                low, high = axes.get_ylim()
                assert (-5 < low <= 0, 100 <= high < 105) == (True, True), plot.name
                assert [tick for tick in axes.get_yticks() if low <= tick <= high] == [0, 20, 40, 60, 80, 100]


def test_the_papers_modes_differ_in_grey_too() -> None:
    looks = palette.looks(["base", "hard", "soft", "fuzzy", "a", "b", "c", "d", "e"])
    for one, other in combinations(looks.values(), 2):
        assert (one.dashes, one.marker, one.fill) != (
            other.dashes,
            other.marker,
            other.fill,
        ) or one.colour != other.colour
    paper = [looks[mode] for mode in ("hard", "soft", "fuzzy")]
    assert len({str(look.dashes) for look in paper}) == len({look.marker for look in paper}) == 3
    assert not palette.shared_colours(["base", "hard", "soft", "fuzzy", "a", "b", "c"])
    assert palette.shared_colours(["base", "hard", "soft", "fuzzy", "a", "b", "c", "d"])


def test_entropy_against_the_base_is_the_difference_at_each_position(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=("hard", "soft"), seeds=2, problems=12, steps=4, cot=12)
    results = collect(study_of(spec), tmp_path)
    plots = {plot.name: plot for plot in figures.draw_all(study_of(spec), results.metrics, results.training)}
    plot = plots["entropy-change--toy--sums"]
    titles = [left_title(axes).get_text() for axes in plot.figure.axes]
    assert titles == [f"{name}, hard-{way}" for name in ("sums", "long-sums") for way in ("sample", "greedy")]
    entropy = results.metrics[(results.metrics["metric"] == "entropy") & (results.metrics["test_set"] == "sums")]
    cell = entropy[entropy["inference_mode"] == "hard-sample"].assign(index=lambda rows: rows["index"].astype(int))
    start = cell[cell["index"] == 0]
    base = start[start["training_mode"] == "base"]
    hard = start[start["training_mode"] == "hard"]
    weights = np.minimum(hard["n_samples"].to_numpy(float), float(base["n_samples"].iloc[0]))
    first = float(weights @ (hard["value"].to_numpy() - float(base["value"].iloc[0]))) / float(weights.sum())
    colour = palette.looks([])["hard"].colour
    line = next(line for line in plot.figure.axes[0].lines if line.get_color() == colour and line.get_label() == "hard")
    assert points_of(line)[0].tolist() == pytest.approx([0, first])


def test_a_training_curve_is_smoothed_and_its_seeds_stay_as_they_are(tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=("hard",), seeds=2, problems=4, steps=30, test_sets=("sums",), choice_sets=())
    results = collect(study_of(spec), tmp_path)
    plots = {plot.name: plot for plot in figures.draw_all(study_of(spec), results.metrics, results.training)}
    reward = plots["training--toy--sums"].figure.axes[0]
    raw = results.training[results.training["step"] > 0].pivot_table(index="step", columns="seed", values="reward")
    (thick,) = [line for line in reward.lines if line.get_linewidth() == 2]
    thin = [points_of(line)[:, 1] for line in reward.lines if line.get_alpha() == 0.3]
    np.testing.assert_allclose(points_of(thick)[10, 1], raw.mean(axis=1).iloc[8:13].mean())
    np.testing.assert_allclose(sorted(map(tuple, thin)), sorted(map(tuple, raw.to_numpy().T)))


MANY = ("soft", *"abcdefg")  # more training modes than one panel can tell apart


def names(axes: Axes) -> list[str]:
    return sorted(text.get_text() for text in axes.texts if text.get_text() != "greedy")


def test_many_training_modes_are_points_and_not_lines(tmp_path: Path) -> None:
    plots = drawn(tmp_path, modes=MANY, inference_modes=HARD)
    assert "pass-at-k--toy--sums" not in plots
    for name, section in (("pass-at-k-hard", "headline"), ("ablation--toy--sums", "modes")):
        (axes,) = plots[name].figure.axes
        assert [label.get_text() for label in axes.get_xticklabels()] == list(MANY)
        assert names(axes) == ["greedy pass@1", "pass@1", "pass@32"]
        assert plots[name].section == section
        assert "Lines over k are drawn for up to 6 training modes." in plots[name].caption


def test_up_to_six_training_modes_are_lines_of_six_colours(tmp_path: Path) -> None:
    plots = drawn(tmp_path, modes=MANY[:6], inference_modes=HARD)
    assert not [name for name in plots if name.startswith("ablation") or name.endswith("--2")]
    for name in ("pass-at-k-hard", "pass-at-k--toy--sums"):
        (axes,) = plots[name].figure.axes
        assert names(axes) == sorted(["base", *MANY[:6]])
        assert len({text.get_color() for text in axes.texts}) == 8  # with base and "greedy"


def test_curves_of_many_training_modes_take_several_figures_with_the_same_axes(tmp_path: Path) -> None:
    plots = drawn(tmp_path, modes=MANY, inference_modes=HARD)
    for name, always in (("training--toy--sums", []), ("entropy--toy--sums--sums", ["base"])):
        first, second = plots[name], plots[f"{name}--2"]
        assert names(first.figure.axes[0]) == sorted([*always, *MANY[:4]])
        assert names(second.figure.axes[0]) == sorted([*always, *MANY[4:]])
        for one, other in zip(first.figure.axes, second.figure.axes, strict=True):
            assert one.get_xlim() == other.get_xlim()
            assert one.get_ylim() == other.get_ylim()
        assert first.title.endswith("(1 of 2)") and second.title.endswith("(2 of 2)")
        assert "with the same axes" in first.caption


def test_a_family_that_few_of_many_modes_were_tested_in_keeps_its_lines(tmp_path: Path) -> None:
    few = {name: INFERENCE_MODES[name] for name in (*HARD, "soft-sample")}
    shape: dict[str, Any] = {"test_sets": ("sums",), "choice_sets": (), "seeds": 1, "problems": 6, "steps": 4}
    spec = write_study(tmp_path, modes=MANY, inference_modes=few, **shape)
    results = collect(study_of(spec), tmp_path)
    metrics = results.metrics
    metrics = metrics[(metrics["inference_mode"] != "soft-sample") | metrics["training_mode"].isin(["base", "a", "b"])]
    plots = {plot.name: plot for plot in figures.draw_all(study_of(spec), metrics, results.training)}
    (axes,) = plots["pass-at-k--toy--sums"].figure.axes
    assert axes.get_title("left") == "sums\nsoft inference"
    assert names(axes) == ["a", "b", "base"]
    titles = {
        name: [axes.get_title("left").removesuffix(" inference") for axes in plot.figure.axes if axes.get_visible()]
        for name, plot in plots.items()
        if name.startswith("entropy--")
    }
    assert titles == {
        "entropy--toy--sums--sums": ["hard-greedy", "hard-sample", "soft-sample"],
        "entropy--toy--sums--sums--2": ["hard-greedy", "hard-sample"],
    }
    by_mode = plots["ablation--toy--sums"]
    assert [axes.get_title("left") for axes in by_mode.figure.axes] == ["sums\nhard inference"]
    elsewhere = f"In hard inference, with more than 6 training modes, see “{by_mode.title}”."
    assert plots["pass-at-k--toy--sums"].caption.endswith(elsewhere)


@pytest.mark.parametrize("modes", [("hard", "soft", "fuzzy", *map(str, range(21))), tuple(map(str, range(24)))])
def test_marks_and_dots_of_one_colour_differ_in_their_fill(modes: tuple[str, ...]) -> None:
    looks = {mode: look for mode, look in palette.looks(modes).items() if mode in ("base", *modes)}
    assert len({look.dot for look in looks.values()}) == len(looks)
    for shape, halo in (("o", False), ("D", True)):
        marks = [look.mark(shape, 6, halo) for look in looks.values()]
        seen = {tuple(mark[key] for key in ("color", "fillstyle", "markerfacecolor")) for mark in marks}
        assert len(seen) == len(looks)
    assert [palette.looks(modes)[mode].colour for mode in palette.PAPER_MODES] == list(palette.SERIES[:3])
    assert len({looks[mode].colour for mode in ("base", *modes[:6])}) == 7


@pytest.mark.parametrize("scale", [0.01, 1, 2])
def test_rewards_of_any_scale_fill_their_axis(scale: float, tmp_path: Path) -> None:
    spec = write_study(tmp_path, modes=("hard",), test_sets=("sums",), choice_sets=(), seeds=2, problems=6, steps=6)
    results = collect(study_of(spec), tmp_path)
    training = results.training.assign(reward=scale * results.training["reward"])
    plots = figures.draw_all(study_of(spec), results.metrics, training)
    axes = next(plot for plot in plots if plot.section == "training").figure.axes[0]
    (low, high), (least, most) = axes.get_ylim(), training["reward"].agg(["min", "max"])
    assert low <= least < most <= high and most - least > 0.3 * (high - low)


def test_a_diamond_of_a_second_mode_of_its_colour_is_hollow(tmp_path: Path) -> None:
    """In a study of two train sets with modes of their own there can be more modes than colours."""
    spec = write_study(
        tmp_path, train_sets=("s", "t"), modes=("hard", "soft", "fuzzy", *"abcd"), test_sets=("sums",),
        choice_sets=(), seeds=1, problems=6, steps=4, inference_modes=HARD,
    )  # fmt: skip
    spec["runs"] = [run for run in spec["runs"] if (run["train_set"] == "t") == (run["mode"] in ("hard", *"abcd"))]
    results = collect(study_of(spec), tmp_path)
    hard = next(figures.draw_all(study_of(spec), results.metrics, results.training))
    blue = [line for line in hard.figure.axes[1].lines if line.get_color() == palette.SERIES[0]]
    blue = [line for line in blue if line.get_marker() not in ("None", "", None)]
    for greedy in (False, True):
        faces = [line.get_markerfacecolor() for line in blue if (line.get_marker() == "D") == greedy]
        assert faces == [palette.SERIES[0], palette.PAPER]  # hard, d


def test_entropy_profiles_end_where_few_are_left() -> None:
    seeds = pd.DataFrame(
        {
            "seed": [0, 0, 0, 1, 1],
            "index": [0, 1, 2, 0, 1],
            "value": [1.0, 2.0, 9.0, 3.0, 5.0],
            "n_samples": [30, 10, 1, 10, 10],
        }
    )
    curve = figures.profiles(seeds.assign(training_mode="soft", inference_mode="hard-greedy"), 1)
    assert curve["position"].tolist() == [0, 1]  # one of forty is left at index 2
    assert curve["value"].tolist() == [1.5, 3.5]
    assert curve["low"].tolist() == [1, 2]
    assert curve["high"].tolist() == [3, 5]
    longer = pd.concat([seeds.assign(training_mode=mode, inference_mode="hard-greedy") for mode in ("a", "b")])
    longer.loc[(longer["training_mode"] == "b") & (longer["index"] == 2), "n_samples"] = 7
    binned = figures.profiles(longer, 2)
    assert binned[["training_mode", "position"]].to_numpy().tolist() == [["a", 0.5], ["b", 0.5], ["b", 2.5]]
    assert binned["value"].tolist() == pytest.approx([(30 + 20 + 30 + 50) / 60] * 2 + [9.0])
    assert binned["low"].tolist() == pytest.approx([1.25, 1.25, 9.0])
    assert binned["high"].tolist() == pytest.approx([4.0, 4.0, 9.0])


def test_entropy_profiles_are_means_over_all_generations_of_all_seeds() -> None:
    rng = np.random.default_rng(5)
    generations = [rng.random(length) for length in rng.integers(1, 20, size=60)]

    def alive(of: list[np.ndarray]) -> list[list[float]]:
        return [[one[index] for one in of if len(one) > index] for index in range(max(map(len, of)))]

    lines = [
        {"seed": seed, "index": index, "value": float(np.mean(values)), "n_samples": len(values)}
        for seed, of in enumerate((generations[:10], generations[10:15], generations[15:]))
        for index, values in enumerate(alive(of))
    ]
    lines.append({"seed": 3, "index": 3, "value": 99.0, "n_samples": 0})  # nobody
    frame = pd.DataFrame(lines).assign(training_mode="soft", inference_mode="hard-greedy")
    curve = figures.profiles(frame, 1)
    np.testing.assert_allclose(
        curve["value"],
        [np.mean(values) for values in alive(generations) if len(values) >= 6],  # a tenth of them
    )
    assert curve["low"].notna().all() and curve["high"].max() < 1
