"""Figures of ablations: which studies have one, and that they draw the numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softtok.report import ablations, figures
from softtok.report.collect import collect
from softtok.report.study import Study
from tests.support.figures import visible_texts
from tests.support.report_specs import study_of
from tests.support.synthetic_runs import write_study

SOFT = {"tokens": "soft", "temperature": 0.5, "noise_scale": 0.33}


def study(modes: dict[str, dict[str, Any]]) -> Study:
    spec = {
        "runs": [{"model": "m", "train_set": "t", "mode": mode} for mode in modes], "settings": modes,
        "order": {"models": ["m"], "train_sets": ["t"], "training_modes": list(modes), "test_sets": [],
                  "choice_sets": []},
    }  # fmt: skip
    return study_of(spec)


@pytest.mark.parametrize(
    ("modes", "setting", "values"),
    [
        ({"b": {"noise_scale": 1.0}, "a": {}, "c": {"noise_scale": 3.0}}, "noise_scale", [0.33, 1, 3]),
        ({"a": {}, "b": {"temperature": 1e-4}}, "temperature", [1e-4, 0.5]),
        ({"a": {}, "g8": {"training": {"samples_per_prompt": 8}}}, "samples_per_prompt", [8, 32]),
        (
            {"a": {}, "b": {"noise_at": "hidden"}, "c": {"noise_at": "logits", "top_k": 5}},
            "training_mode",
            ["a", "b", "c"],
        ),
        (
            {str(n): {"training": {"steps": n + 9, "warmup_steps": n}} for n in range(7)},
            "training_mode",
            list("0123456"),
        ),
        ({"a": {}}, None, None),
        ({"a": {}, "b": {"temperature": 1e-4, "noise_scale": 1.0}}, None, None),
        ({"a": {}, "b": {"tokens": "hard", "noise_scale": 0.0}}, None, None),
        ({"a": {}, "b": {"training": {"cot_term": False}}}, None, None),
    ],
)
def test_a_study_whose_modes_differ_in_one_thing_is_an_ablation(
    modes: dict[str, dict[str, Any]], setting: str | None, values: list[Any] | None
) -> None:
    given = {mode: SOFT | settings for mode, settings in modes.items()}
    varied = ablations.find_varied(study(given), "m", "t")
    assert (varied and varied.setting) == setting
    assert (varied and list(varied.values.values())) == values


def test_a_setting_that_all_runs_have_is_none_that_varies() -> None:
    modes = {"a": SOFT, "b": {**SOFT, "training": {"learning_rate": 1e-5}}}
    assert ablations.find_varied(study(modes), "m", "t")
    modes["a"] = modes["b"]
    assert not ablations.find_varied(study(modes), "m", "t")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = {}
    for name, settings in {
        "scale": {f"fuzzy-{scale}": {**SOFT, "noise_scale": scale} for scale in (3.0, 0.1, 0.33, 1.0)},
        "place": {"soft": SOFT, "soft-at-the-logits-top50": {**SOFT, "noise_at": "logits"}},
    }.items():
        root: Path = tmp_path_factory.mktemp(name)
        spec = write_study(root, modes=tuple(settings), seeds=2, choice_sets=(), problems=20, steps=4, toy=False)
        spec["settings"] = settings
        results = collect(study_of(spec), root)
        plots = list(figures.draw_all(study_of(spec), results.metrics, results.training))
        made[name] = (next(plot for plot in plots if plot.name.startswith("ablation")), results.metrics)
    return made


def test_points_are_means_over_seeds_at_the_settings_values(drawn: dict[str, Any]) -> None:
    plot, metrics = drawn["scale"]
    axes = plot.figure.axes[0]
    assert axes.get_title("left") == "sums\nhard inference"
    assert axes.get_xscale() == "log"
    metrics = metrics[(metrics["test_set"] == "sums") & (metrics["metric"] == "pass@k")]
    for (label, mode, k), colour in {
        ("greedy pass@1", "hard-greedy", 1): ablations.MEASURE_LOOKS[0][0],
        ("pass@1", "hard-sample", 1): ablations.MEASURE_LOOKS[1][0],
        ("pass@32", "hard-sample", 32): ablations.MEASURE_LOOKS[2][0],
    }.items():
        of_mode = metrics[(metrics["inference_mode"] == mode) & (metrics["k"] == k)]
        means = of_mode.groupby("training_mode")["value"].mean()
        line = next(line for line in axes.lines if line.get_color() == colour and len(line.get_xdata()) == 4)
        assert list(line.get_xdata()) == [0.1, 0.33, 1.0, 3.0]
        np.testing.assert_allclose(line.get_ydata(), [means[f"fuzzy-{scale}"] for scale in (0.1, 0.33, 1.0, 3.0)])
        base = next(line for line in axes.lines if line.get_color() == colour and len(line.get_xdata()) == 2
                    and line.get_zorder() == 1)  # fmt: skip
        assert base.get_ydata()[0] == pytest.approx(means["base"])
        assert next(text for text in axes.texts if text.get_text() == label).get_color() == colour


def test_nothing_of_an_ablation_figure_is_clipped(drawn: dict[str, Any]) -> None:
    for plot, _ in drawn.values():
        plot.figure.draw_without_rendering()
        page = plot.figure.bbox
        for text in filter(lambda text: text.get_text(), visible_texts(plot.figure)):
            box = text.get_window_extent()
            assert box.x0 >= page.x0 and box.y0 >= page.y0 and box.x1 <= page.x1 and box.y1 <= page.y1, text.get_text()


def test_places_of_noise_are_named_below_their_points(drawn: dict[str, Any]) -> None:
    plot, _ = drawn["place"]
    axes = plot.figure.axes[-1]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["soft", "soft-at-the-logits-top50"]
    assert "By training mode" in plot.title
