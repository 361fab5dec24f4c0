"""The paper's claims as tests: verdicts on data whose truth is known, and on the paper's own numbers."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas._libs.missing import NAType

from softtok.report import claims
from softtok.report.claims import (
    CLAIMS,
    COLLAPSE,
    CONTRADICTED,
    INCONCLUSIVE,
    NOISE_THAT_FAILS,
    NOT_RUN,
    SUPPORTED,
    Contrast,
    Profile,
    Verdict,
    contrasts,
    profile_distance,
    to_csv,
    verdicts,
)
from softtok.report.collect import METRIC_COLUMNS
from softtok.report.metrics import t_interval
from softtok.report.page import make_report
from softtok.report.paper import REPRINTED
from softtok.report.significance import holm, p_value
from softtok.report.study import Study
from tests.support.report_specs import report_spec, study_of
from tests.support.synthetic_runs import INFERENCE_MODES, write_study

MAIN = ("hard", "soft", "fuzzy")
SOFT = {"tokens": "soft", "temperature": 0.5, "noise_scale": 0.33}
LLAMA_8B, GSM8K = "llama-3.1-8b-instruct", "gsm8k"
Cell = tuple[str, str, str, str, str, str]
Truth = Callable[[str, str, str, str, str, str], tuple[float, float]]


@dataclass(frozen=True)
class World:
    """A study's spec, and one row per cell with the mean and the standard deviation of its runs."""

    spec: dict[str, Any]
    cells: pd.DataFrame

    @property
    def study(self) -> Study:
        return study_of(self.spec)

    def metrics(self, z: np.ndarray | float | None = None) -> pd.DataFrame:
        """Returns tidy metrics; `z` (one per row) are deviations from the mean in standard deviations.

        Without `z` they are small, and not the same for all seeds.
        """
        if z is None:
            z = 0.01 * self.cells["seed"].to_numpy()
        return self.cells.assign(value=self.cells["mean"] + self.cells["std"] * z)[list(METRIC_COLUMNS)]

    def draw(self, rng: np.random.Generator) -> list[Verdict]:
        return verdicts(self.study, self.metrics(rng.standard_normal(len(self.cells))))

    def exact(self) -> list[Verdict]:
        """From seeds whose mean and standard deviation (ddof = 1) are those of the cells, no draw of them."""
        seeds = self.cells["seed"].nunique()
        z = np.arange(seeds) - (seeds - 1) / 2
        return verdicts(self.study, self.metrics((z / z.std(ddof=1))[self.cells["seed"].to_numpy()]))


def world(
    truth: Truth,
    pairs: Sequence[tuple[str, str]] = ((LLAMA_8B, GSM8K),),
    modes: Sequence[str] = MAIN,
    seeds: int = 3,
    test_sets: Sequence[str] = ("gsm8k", "math500"),
    choice_sets: Sequence[str] = ("arc_challenge", "mmlu"),
    entropy: bool = True,
) -> World:
    """A study whose entries have names of their own ("my-...") and the paper's under `paper:`.

    `truth` gives mean and standard deviation of (model, train set, mode, test set, inference mode, metric); a base has
    train set "".
    """
    models, train_sets = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    sections = {
        "models": models, "train_sets": train_sets, "training_modes": list(modes), "test_sets": list(test_sets),
        "choice_sets": list(choice_sets),
    }  # fmt: skip
    runs, rows = [], []
    plan = [(model, "", "base", 0) for model in models]
    plan += [(*pair, mode, seed) for pair, mode, seed in product(pairs, modes, range(seeds))]
    measures: list[tuple[str, str, int | NAType, int | NAType]] = [("hard-greedy", "pass@k", 1, pd.NA)]
    measures += [(mode, "pass@k", 32, pd.NA) for mode in ("hard-sample", "soft-sample", "fuzzy-sample")]
    measures += [("hard-sample", "entropy", pd.NA, index) for index in range(3)] * entropy
    of_choices: list[tuple[str, str, int | NAType, int | NAType]] = [("", "nll_per_token", pd.NA, pd.NA)]
    for model, train_set, mode, seed in plan:
        own = ("my-" + model, "my-" + train_set if train_set else "none", "my-" + mode if train_set else "base")
        runs.append({"model": own[0], "train_set": own[1], "mode": own[2], "seed": seed, "path": ""})
        for tested, (inference, metric, k, index) in [*product(test_sets, measures), *product(choice_sets, of_choices)]:
            name = f"pass@{k}" if metric == "pass@k" else metric
            mean, std = truth(model, train_set, mode, tested, inference, name)
            used = "my-" + inference if inference else ""
            rows.append(
                (*own, seed, "my-" + tested, used, metric, k, index, mean, 0 if mode == "base" else std, 10**6, 9)
            )
    spec = {
        "runs": runs,
        "tests": {"my-" + name: {"six": "0"} for name in test_sets},
        "choices": {"my-" + name: "0" for name in choice_sets},
        "inference_modes": {"my-" + name: mode for name, mode in INFERENCE_MODES.items()},
        "order": {section: ["my-" + name for name in names] for section, names in sections.items()},
        "paper": {section: {"my-" + name: name for name in names} for section, names in sections.items()}
        | {"inference_modes": {"my-" + name: name for name in INFERENCE_MODES}},
        "config": {},
    }
    columns = ["mean" if name == "value" else name for name in METRIC_COLUMNS]
    columns.insert(columns.index("mean") + 1, "std")
    return World(spec, pd.DataFrame(rows, columns=columns).astype({"k": "Int64", "index": "Int64"}))


def found(all_verdicts: Sequence[Verdict], claim: str, run: str = "", other: str = "") -> list[str]:
    """The verdicts on a claim, of one run if it is named, against one other if that is."""
    return [
        verdict.verdict
        for verdict in all_verdicts
        if verdict.contrast.claim == claim
        and run in ("", verdict.contrast.run)
        and other in ("", verdict.contrast.other_inference)
    ]


def directional(contrast: Contrast) -> bool:
    return contrast.margin == 0


ALL_MODES = (*MAIN, *NOISE_THAT_FAILS)


def noise(metric: str) -> float:
    return 0.02 if metric in ("nll_per_token", "entropy") else 2.0


# what is true or not, drawn


def p_of(verdict: Verdict) -> float:
    assert verdict.p is not None, verdict
    return verdict.p


def test_nothing_is_supported_by_chance_nor_too_rarely_noticed() -> None:
    """All modes equal the base in 400 studies: every p is at most 0.05 in 5 % of them.

    No more than half of those, on the side of the claim, can be support.
    """
    same = world(lambda *cell: (50.0, noise(cell[5])), modes=ALL_MODES)
    rng = np.random.default_rng(1)
    drawn = [same.draw(rng) for _ in range(400)]
    for place, contrast in enumerate(contrasts()):
        if directional(contrast):
            of_contrast = [draw[place] for draw in drawn]
            assert np.mean([one.verdict == SUPPORTED for one in of_contrast]) <= 0.05, contrast.compared
            significant = np.mean([p_of(one) <= 0.05 for one in of_contrast])
            assert 0.05 - 0.033 < significant < 0.05 + 0.033, contrast.compared  # 3 standard errors
    for claim in ("C2", "C3", "C4", "C7"):
        wrong = [any(verdict in (SUPPORTED, CONTRADICTED) for verdict in found(draw, claim)) for draw in drawn]
        assert np.mean(wrong) <= 0.05 + 0.033, claim  # of all its tests together


def test_pathwise_training_is_tested_beside_the_paper() -> None:
    """As soft training is, in a Holm family of its own: the paper's verdicts are those of the study without it."""
    plain, more = world(as_claimed), world(as_claimed, modes=(*MAIN, "soft-pathwise"))
    more.spec["settings"] = {"my-soft-pathwise": SOFT | {"training": {"estimator": "pathwise"}}}
    paper, beside = ([one for one in more.exact() if one.contrast.beside is which] for which in (False, True))
    assert paper == plain.exact()
    soft = {(one.contrast.claim, one.contrast.compared): one for one in paper}
    for one in beside:
        assert one.contrast.run == "soft-pathwise"
        its = soft[one.contrast.claim, one.contrast.compared.replace("-pathwise", "")]
        assert (one.n, one.contrast.low, one.contrast.high) == (its.n, its.contrast.low, its.contrast.high)
        assert one.p == one.p_holm  # a single test of its kind
    assert {one.contrast.claim for one in beside} == {"C1", "C2", "C5", "C6"}
    score = world(as_claimed, modes=(*MAIN, "soft-pathwise"))
    assert not [one for one in score.exact() if one.contrast.beside]


def at_the_margin(
    model: str, train_set: str, mode: str, tested: str, inference: str, metric: str
) -> tuple[float, float]:
    shift = {"pass@1": 2.0, "nll_per_token": 0.05, "entropy": 0.1}.get(metric, 0.0)
    sides = {"soft": 1, "fuzzy": -1}
    return 50 + shift * sides.get(mode, 0), noise(metric)


def test_equality_is_not_supported_at_the_margin() -> None:
    edge = world(at_the_margin)
    rng = np.random.default_rng(2)
    drawn = [edge.draw(rng) for _ in range(400)]
    seen = 0
    for place, contrast in enumerate(contrasts()):
        if not directional(contrast):
            of_contrast = [draw[place] for draw in drawn]
            seen += 1
            assert np.mean([one.verdict == SUPPORTED for one in of_contrast]) <= 0.05, contrast.compared
            assert np.mean([p_of(one) <= 0.05 for one in of_contrast]) > 0.017, contrast.compared
    assert seen == 6


def as_claimed(model: str, train_set: str, mode: str, tested: str, inference: str, metric: str) -> tuple[float, float]:
    """Everything as the paper claims it, by 8 points or 0.4 nats."""
    mean = 50.0
    if metric == "pass@1":
        mean += 8 if mode in MAIN else -8 if mode != "base" else 0
        mean -= 16 if mode == "hard" and tested == "math500" else 0  # C4
    elif metric == "pass@32":
        mean += (8 if mode in ("soft", "fuzzy") else 0) + (8 if inference == "hard-sample" else 0)
    elif mode == "hard":
        mean += 0.4 if metric == "nll_per_token" else -0.4
    return mean, noise(metric) / 10


def flipped(*cell: *Cell) -> tuple[float, float]:
    mean, std = as_claimed(*cell)
    return 100 - mean, std


def test_what_is_true_is_supported_and_its_mirror_image_contradicted() -> None:
    """Claims about a direction only: the mirror image of an equality is one."""
    rng = np.random.default_rng(3)
    true = world(as_claimed, modes=ALL_MODES).draw(rng)
    mirrored = world(flipped, modes=ALL_MODES).draw(rng)
    for one, other in zip(true, mirrored, strict=True):
        if one.contrast.claim != "C1":  # C4 is true here, so C1 is not
            assert one.verdict == SUPPORTED, one
            assert other.verdict == (CONTRADICTED if directional(one.contrast) else SUPPORTED), other
    assert found(true, "C1") == found(mirrored, "C1") == [CONTRADICTED] * 2
    equal = world(lambda *cell: (50.0, 0.1)).draw(rng)
    assert found(equal, "C1") == [SUPPORTED] * 2


def test_equality_far_outside_its_margin_is_contradicted() -> None:
    def apart(*cell: *Cell) -> tuple[float, float]:
        mean, std = at_the_margin(*cell)
        return 50 + 3 * (mean - 50), std / 20

    for verdict in world(apart).draw(np.random.default_rng(4)):
        if not directional(verdict.contrast):
            assert verdict.verdict == CONTRADICTED, verdict


def test_modes_are_paired_by_model_train_set_and_seed() -> None:
    """What a seed, a train set and a model do to all modes alike plays no part, in whatever order the runs come."""
    pairs = [(model, train_set) for model in ("a", "b") for train_set in ("s", "t")]

    def truth(model: str, train_set: str, mode: str, *of_cell: str) -> tuple[float, float]:
        return 30 * (model == "b") + 20 * (train_set == "t") + (1 if mode == "soft" else 0), 0.1

    made = world(truth, pairs)
    metrics = made.metrics(np.random.default_rng(5).standard_normal(len(made.cells)))
    metrics["value"] += metrics["seed"].map({0: 0, 1: -40, 2: 25}).astype(float)
    shuffled = metrics.sample(frac=1, random_state=0)
    of_soft = next(one for one in verdicts(made.study, shuffled) if one.contrast.claim == "C2")
    assert (of_soft.contrast.run, of_soft.verdict, of_soft.n) == ("soft", SUPPORTED, 12)
    assert of_soft.effect == pytest.approx(1, abs=0.2)
    reversed_spec = {**made.spec, "runs": made.spec["runs"][::-1]}
    assert to_csv(verdicts(study_of(reversed_spec), metrics)) == to_csv(verdicts(made.study, shuffled))


def test_test_sets_are_averaged_before_runs_are_counted() -> None:
    """Two test sets with effects of +12 and -2 in every run: the effect is 5, over 3 runs and not 6 cells."""

    def truth(model: str, train_set: str, mode: str, tested: str, *of_cell: str) -> tuple[float, float]:
        return 40 + (mode == "soft") * (12 if tested == "gsm8k" else -2), 0.0

    made = world(truth)
    metrics = made.metrics()
    one_seed = (metrics["seed"] == 1) & (metrics["training_mode"] == "my-soft")
    metrics.loc[one_seed, "value"] += 3.0  # run effects 5, 8, 5
    of_soft = next(one for one in verdicts(made.study, metrics) if one.contrast.claim == "C2")
    assert (of_soft.n, of_soft.effect) == (3, 6.0)
    assert (of_soft.low, of_soft.high) == t_interval([5, 8, 5])
    # t = 6 / (sqrt(3) / sqrt(3)) = 6 with 2 degrees of freedom: p = 1 - t / sqrt(2 + t^2)
    assert of_soft.p == pytest.approx(1 - 6 / math.sqrt(38))


def test_a_run_on_fewer_test_sets_is_averaged_over_those() -> None:
    made = world(lambda *cell: (40 + (cell[2] == "soft") * (12 if cell[3] == "gsm8k" else -2), 0.1))
    for run in made.spec["runs"]:
        if run["seed"] == 2:
            run["tests"] = {"my-gsm8k": {"six": "0"}}
    metrics = made.metrics()
    metrics = metrics[(metrics["seed"] < 2) | (metrics["test_set"] != "my-math500")]
    of_soft = next(one for one in verdicts(made.study, metrics) if one.contrast.claim == "C2")
    assert of_soft.n == 3 and of_soft.effect == pytest.approx((5 + 5 + 12) / 3)


# the paper's own numbers

PAPER = pd.read_csv(
    io.StringIO(resources.files("softtok.report").joinpath("paper.csv").read_text(encoding="utf-8")),
    keep_default_na=False,
)
PAIRS = (
    ("llama-3.2-3b-instruct", "gsm8k"),
    ("llama-3.2-3b-instruct", "math"),
    ("llama-3.2-3b-instruct", "deepscaler"),
    (LLAMA_8B, "gsm8k"),
    ("qwen-2.5-3b-instruct", "math"),
)


def printed(*tables: int) -> Truth:
    """The paper's means and standard deviations, from some of its tables."""
    known: dict[tuple[str, ...], tuple[float, float]] = {}
    for row in PAPER[PAPER["table"].isin(tables)].to_dict("records"):
        mode = f"{row['training_mode']} {row['variant']}".strip()
        inference = "" if row["metric"] == "nll_per_token" else row["inference_mode"]
        where = (row["model"], row["train_set"], mode, row["test_set"], inference, row["metric"])
        known[where] = (float(row["mean"]), float(row["std"] or 0))
    return lambda *cell: known[cell]


def test_names_of_the_paper_are_spelt_as_in_its_tables() -> None:
    modes = {
        f"{mode} {variant}".strip() for mode, variant in zip(PAPER["training_mode"], PAPER["variant"], strict=True)
    }
    assert {*NOISE_THAT_FAILS, *REPRINTED, *REPRINTED.values()} <= modes
    for (_, name), column in zip(COLLAPSE, ("model", "train_set", "test_set"), strict=True):
        assert name in set(PAPER[column])
    used = {name for contrast in contrasts() for name in (contrast.inference, contrast.other_inference) if name}
    assert used <= set(PAPER["inference_mode"])
    placed = {row for row in modes if row.startswith(("soft noise_at", "fuzzy noise_at"))}
    assert placed - set(REPRINTED) <= set(NOISE_THAT_FAILS)


def test_the_papers_grid_gives_the_verdicts_worked_out_by_hand() -> None:
    """Means of the five (model, train set) pairs in the order of `PAIRS`, each the mean of three sets.

    Between them lies nearly all of the spread s, whose interval over n = 15 runs is effect +- 2.145 s / sqrt(15).

    C1 soft - hard, greedy: GSM8K-trained 3B (77.2 - 75.9 + 43.5 - 34.6 + 18.9 - 10.6) / 3 = 6.2; then -3.8, -3.0, 13.3
       (MATH-500 alone: 44.7 - 20.2), -3.5. Mean 1.9, s = 7.1: 1.9 +- 3.9, reaches out of +-2 on both sides.
       fuzzy: 5.2, -0.7, -2.6, 13.7, -0.9. Mean 2.9, s = 6.2: 2.9 +- 3.4. Neither supported nor contradicted.
    C2 soft: 11.8, 3.7, 2.1, 27.4, -0.5. Mean 8.9, s = 10.5: 8.9 +- 5.8, t = 3.3, p = 0.005, twice that by Holm.
       fuzzy: 10.0, 2.4, 3.3, 26.8, 0.4. Mean 8.6, s = 10.0: 8.6 +- 5.5.
    C3 hard- over soft- and fuzzy-sample: after hard 1.7, 1.6, 1.3, 7.9, 3.7: 3.3 +- 1.4; after soft 3.4 and 3.6 +- 0.7;
       after fuzzy 2.8 and 3.2 +- 1. The least t is above 4: p < 0.001, six times that by Holm.
    C4 44.7 - 20.2 = 24.5 with s = sqrt(2.3^2 + 0.8^2) = 2.4 over 3 seeds: t = 17.4, p = 0.003. fuzzy: 24.4, s = 2.2.
    C5 fuzzy - base: 0.01, 0.00, 0.03, 0.00, 0.03: 0.014 +- 0.013, inside +-0.05. soft: 0.00, 0.01, 0.06, 0.00, 0.32
       (Qwen on ARC 5.49 - 4.67): 0.08 +- 0.09. hard: 0.13, 0.14, 0.14, 0.12, 0.43: 0.19 +- 0.07, above 0.
    C6 the paper prints no entropies. C7 is about other studies.
    """
    study = world(
        printed(1, 2, 3, 4, 5),
        PAIRS,
        entropy=False,
        test_sets=("gsm8k", "math500", "olympiadbench"),
        choice_sets=("arc_challenge", "hellaswag", "mmlu"),
    )
    expected = {
        ("C1", "soft"): (1.9, INCONCLUSIVE), ("C1", "fuzzy"): (2.9, INCONCLUSIVE),
        ("C2", "soft"): (8.9, SUPPORTED), ("C2", "fuzzy"): (8.6, SUPPORTED),
        ("C3", "hard"): (3.3, SUPPORTED), ("C3", "soft"): (3.4, SUPPORTED), ("C3", "fuzzy"): (2.8, SUPPORTED),
        ("C4", "soft"): (24.5, SUPPORTED), ("C4", "fuzzy"): (24.4, SUPPORTED),
        ("C5", "soft"): (0.08, INCONCLUSIVE), ("C5", "fuzzy"): (0.014, SUPPORTED), ("C5", "hard"): (0.19, SUPPORTED),
    }  # fmt: skip
    rng = np.random.default_rng(6)
    drawn = [study.draw(rng) for _ in range(40)]
    exact = study.exact()
    for (claim, run), (effect, verdict) in expected.items():
        first = next(one for one in exact if (one.contrast.claim, one.contrast.run) == (claim, run))
        assert first.effect == pytest.approx(effect, abs=0.06 if effect > 1 else 0.006), (claim, run)
        assert first.n == (3 if claim == "C4" else 15)
        assert set(found(exact, claim, run)) == {verdict}, (claim, run)
        counts = Counter(verdict for draw in drawn for verdict in found(draw, claim, run))
        assert counts[verdict] >= 0.95 * counts.total(), (claim, run, counts)
    for claim in ("C6", "C7"):
        assert set(found(exact, claim)) == {NOT_RUN}
    of_soft = next(one for one in exact if one.contrast.claim == "C2")
    assert of_soft.low == pytest.approx(8.9 - 5.8, abs=0.2) and of_soft.high == pytest.approx(8.9 + 5.8, abs=0.2)


ABLATION = (
    "soft noise_at=embedding;temperature=0.5",
    "fuzzy noise_at=embedding;temperature=1e-4",
    *NOISE_THAT_FAILS[:6],
)


def placement(seeds: int) -> list[Verdict]:
    table = printed(7)
    pairs = [("llama-3.2-3b-instruct", "gsm8k")]
    return world(
        lambda *cell: table(*cell), pairs, ABLATION, seeds, test_sets=("gsm8k",), choice_sets=(), entropy=False
    ).exact()


def test_two_seeds_of_the_papers_ablations_decide_nothing() -> None:
    """With one degree of freedom p = 1 - 2/pi atan(t), t = |effect| sqrt(2) / std.

    Against the base's 71.0: soft 6.2
    with 0.9 has t = 9.74, p = 0.065. The least two: top-5, 1.8 with 0.1, t = 25.5, p = 0.0250, by Holm times 8 = 0.200;
    top-50, 3.2 with 0.2, t = 22.6, p = 0.0281, by Holm times 7 = 0.197, which must not end below 0.200.
    """
    exact = placement(2)
    c7 = {one.contrast.run: one for one in exact if one.contrast.claim == "C7"}
    assert c7.pop("fuzzy noise_scale=3.0").verdict == NOT_RUN
    assert {one.verdict for one in c7.values()} == {INCONCLUSIVE}
    soft, top50 = c7["soft"], c7[NOISE_THAT_FAILS[5]]
    assert soft.n == 2 and soft.effect == pytest.approx(6.2)
    assert soft.p == pytest.approx(1 - 2 / math.pi * math.atan(6.2 * math.sqrt(2) / 0.9))
    assert top50.p == pytest.approx(1 - 2 / math.pi * math.atan(3.2 * math.sqrt(2) / 0.2))
    assert top50.p_holm == c7[NOISE_THAT_FAILS[4]].p_holm == pytest.approx(0.200, abs=0.0005)
    assert "not after Holm" in top50.reason
    shown = {name: reason for name, _, _, reason in claims.by_claim(exact)}
    assert shown["C7"] == ""  # one of its tests was not run, the others stand in the report
    assert shown["C4"] == "none of this study's training modes is the paper's hard"
    assert NOT_RUN not in found(exact, "C3", "soft")  # what the ablations call soft is understood there too
    assert set(found(exact, "C1") + found(exact, "C4") + found(exact, "C5")) == {NOT_RUN}


def test_thirty_seeds_of_the_papers_ablations_would_decide_all() -> None:
    """Least t: noise on the logits after soft, (60.0 - 71.0) / (14.3 / sqrt(30)) = -4.2.

    Below the base is what the
    claim says of noise off the embedding; the two top-k rows, 72.8 and 74.2, are above it.
    """
    exact = placement(30)
    c7 = {one.contrast.run: one.verdict for one in exact if one.contrast.claim == "C7"}
    assert c7 == {
        "soft": SUPPORTED, "fuzzy": SUPPORTED, **dict.fromkeys(NOISE_THAT_FAILS[:4], SUPPORTED),
        **dict.fromkeys(NOISE_THAT_FAILS[4:6], CONTRADICTED), NOISE_THAT_FAILS[6]: NOT_RUN,
    }  # fmt: skip


def test_the_noise_scale_that_collapses() -> None:
    """Table 6 has no base; Table 3 has: 71.4. Noise 3: 65.4 - 71.4 = -6.0 with 1.9 over 10 seeds, t = -10."""
    scales, base = printed(6), printed(3)
    modes = [f"fuzzy noise_scale={scale}" for scale in ("0.1", "0.33", "1.0", "3.0")]
    exact = world(
        lambda *cell: (base if cell[2] == "base" else scales)(*cell), [("llama-3.2-3b-instruct", "gsm8k")], modes, 10,
        test_sets=("gsm8k",), choice_sets=(), entropy=False,
    ).exact()  # fmt: skip
    c7 = {one.contrast.run: one for one in exact if one.contrast.claim == "C7"}
    assert c7["fuzzy noise_scale=3.0"].effect == pytest.approx(-6.0)
    assert c7["fuzzy noise_scale=3.0"].verdict == SUPPORTED
    assert c7["fuzzy"].effect == pytest.approx(76.7 - 71.4)
    assert c7["fuzzy"].verdict == SUPPORTED


# single rules


@pytest.mark.parametrize(
    ("mean", "spread", "verdict"),
    [
        # n = 2: the interval is mean +- 12.706 spread, where the runs are mean - spread and mean + spread
        (1.0, 0.078, SUPPORTED),  # up to 1.991
        (1.0, 0.079, INCONCLUSIVE),  # up to 2.004; the 90 % interval, up to 1.499, would lie inside
        (-1.0, 0.078, SUPPORTED),
        (-1.0, 0.079, INCONCLUSIVE),
        (3.0, 0.078, CONTRADICTED),  # from 2.009
        (3.0, 0.079, INCONCLUSIVE),  # from 1.996
        (-3.0, 0.078, CONTRADICTED),
        (2.0, 0.001, INCONCLUSIVE),
        (2.0, 0.0, INCONCLUSIVE),
        (0.0, 0.0, INCONCLUSIVE),  # two runs that agree exactly
    ],
)
def test_equality_near_its_margin(mean: float, spread: float, verdict: str) -> None:
    first = contrasts()[0]
    (judged,) = claims.judge({first: [mean - spread, mean + spread]}, {first: 0.0})
    assert (first.claim, first.margin) == ("C1", 2)
    assert judged.verdict == verdict
    assert judged.high == pytest.approx(mean + 12.7062047 * spread)


@given(
    st.lists(st.integers(-(5 * 10**6), 5 * 10**6).map(lambda millionths: millionths / 10**6), min_size=2, max_size=6),
    st.sampled_from([(-2.0, 2.0), (0.0, math.inf), (-math.inf, 0.0)]),
)
def test_p_is_at_most_one_in_twenty_where_the_interval_decides(
    effects: list[float], region: tuple[float, float]
) -> None:
    low, high = t_interval(effects)
    inside = region[0] < low and high < region[1]
    outside = high < region[0] or low > region[1]
    if not np.ptp(effects):
        assert p_value(effects, *region) == 1
    elif not any(abs(end - boundary) < 1e-9 for end in (low, high) for boundary in region):
        assert (p_value(effects, *region) <= 0.05) == (inside or outside)


@pytest.mark.parametrize("runs", [2, 3])
@pytest.mark.parametrize(("problems", "rate"), [(100, 0.7), (100, 0.97), (1319, 0.97)])
def test_runs_that_agree_by_chance_decide_nothing(problems: int, rate: float, runs: int) -> None:
    """Few runs often solve equally many problems.

    Training that changes nothing must not be called better, or worse, in more than one of twenty studies.
    """
    rng, studies = np.random.default_rng(0), 3000
    solved = rng.binomial(problems, rate, (studies, 3, runs))  # hard, soft and fuzzy
    above = [contrast for contrast in contrasts() if contrast.claim == "C2"]
    steps = dict.fromkeys(above, 100 / problems)
    wrong = 0
    for hard, *softer in solved:
        effects = {contrast: 100 * (mode - hard) / problems for contrast, mode in zip(above, softer, strict=True)}
        wrong += any(verdict.verdict != INCONCLUSIVE for verdict in claims.judge(effects, steps))
    assert wrong / studies < 0.055


def test_runs_that_all_collapse_are_told_though_they_agree_exactly() -> None:
    """From 70 % to none of 100 problems, in both runs: one problem is the least spread, t = -70 / (1 / sqrt 2)."""
    down = next(contrast for contrast in contrasts() if contrast.claim == "C7" and contrast.high == 0)
    (judged,) = claims.judge({down: [-70.0, -70.0]}, {down: 1.0})
    assert judged.verdict == SUPPORTED
    assert judged.high == pytest.approx(-70 + 12.7062047 / 2**0.5)
    (unknown,) = claims.judge({down: [-70.0, -70.0]}, {down: 0.0})
    assert (unknown.verdict, unknown.p) == (INCONCLUSIVE, 1.0)
    assert "agree exactly" in unknown.reason


def test_the_least_spread_is_one_problem_in_each_test_set() -> None:
    made = world(as_claimed, test_sets=("gsm8k", "math500"))
    metrics = made.metrics(0.0)
    metrics.loc[metrics["test_set"] == "my-gsm8k", "n_problems"] = 1000
    metrics.loc[metrics["test_set"] == "my-math500", "n_problems"] = 500
    judged = next(one for one in verdicts(made.study, metrics) if one.contrast.claim == "C2")
    assert judged.n == 3 and judged.effect is not None and judged.low is not None
    assert judged.effect - judged.low == pytest.approx(4.30265273 * 0.15 / 3**0.5)


def test_a_mean_over_samples_is_no_count_of_problems() -> None:
    """pass@32 of 64 samples: runs agree in it by no chance of whole problems, so their own spread counts."""
    made = world(as_claimed, test_sets=("gsm8k",))
    modes = {name: {**mode, "samples": 64 if mode["samples"] > 1 else 1} for name, mode in INFERENCE_MODES.items()}
    spec = {**made.spec, "inference_modes": {"my-" + name: mode for name, mode in modes.items()}}
    metrics = made.metrics(0.1 * made.cells["seed"].to_numpy()).assign(n_problems=100)
    for told, study, widens in (("counts", made.study, True), ("means", study_of(spec), False)):
        judged = next(one for one in verdicts(study, metrics) if one.contrast.claim == "C2")
        assert judged.n == 3 and judged.effect is not None and judged.low is not None
        least = 4.30265273 * 1.0 / 3**0.5
        assert (judged.effect - judged.low == pytest.approx(least)) == widens, told
        assert (judged.effect - judged.low < least / 2) != widens, told


def test_holm_by_hand() -> None:
    # sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, none below a smaller one: 0.02, 0.03, 0.06, 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_a_profile_is_compared_position_by_position() -> None:
    base = Profile(np.arange(4), np.array([1.0, 0.8, 0.6, 0.4]), np.array([100.0, 100, 50, 1]))
    crossed = Profile(np.arange(3), np.array([1.2, 0.6, 0.8]), np.array([100.0, 50, 100]))
    # weights 100, 50, 50: the fewer of the two
    assert profile_distance(crossed, base, absolute=True) == pytest.approx(0.2)
    assert profile_distance(crossed, base, absolute=False) == pytest.approx((20 - 10 + 10) / 200)
    shifted = Profile(base.position + 1, base.entropy, base.thinking)  # lower by 0.2 where both are, at 1, 2 and 3
    assert profile_distance(base, shifted, absolute=False) == pytest.approx(-0.2)
    assert math.isnan(profile_distance(Profile(base.position + 9, base.entropy, base.thinking), base, absolute=True))


# what cannot be tested, and what is counted


def reasons(spec: Mapping[str, Any], metrics: pd.DataFrame, claim: str) -> set[str]:
    """Why a claim's tests were not run; all of them were not."""
    of_claim = [one for one in verdicts(study_of(spec), metrics) if one.contrast.claim == claim]
    assert {one.verdict for one in of_claim} == {NOT_RUN}
    assert all(one.n == 0 and one.effect is None for one in of_claim)
    return {one.reason for one in of_claim}


def test_a_set_with_fewer_samples_has_no_part_in_what_needs_more() -> None:
    def truth(*cell: str) -> tuple[float, float]:
        return (50.0 + 9 * (cell[2] == "soft") * (cell[3] == "math500"), 1.0)

    both, alone = world(truth), world(truth, test_sets=("math500",))
    limited = {**both.spec, "samples": {"my-gsm8k": 8}}
    metrics = both.metrics()
    fewer = metrics[~((metrics["test_set"] == "my-gsm8k") & (metrics["k"] == 32).fillna(False))]

    def of_32(spec: Mapping[str, Any], seen: pd.DataFrame) -> list[tuple[Any, ...]]:
        tested = [one for one in verdicts(study_of(spec), seen) if one.contrast.measure.k == 32]
        return [(one.verdict, one.n, one.effect) for one in tested]

    assert of_32(limited, fewer) == of_32(alone.spec, alone.metrics()) != of_32(both.spec, metrics)


def test_a_k_that_a_study_does_not_list_is_the_reason() -> None:
    made = world(lambda *cell: (50.0, 1.0))
    modes = {name: {**mode, "samples": 64} for name, mode in made.spec["inference_modes"].items()}
    listed = {**made.spec, "inference_modes": modes, "k": [1, 8, 64]}
    assert reasons(listed, made.metrics(), "C2") == {"pass@32 is not among the k of this study: 1, 8, 64"}


def test_one_seed_is_not_run_however_many_runs() -> None:
    def noisy(pairs: Sequence[tuple[str, str]], seeds: int) -> World:
        return world(lambda *cell: (50.0, 1.0), pairs, seeds=seeds)

    four = noisy([(model, train_set) for model in "ab" for train_set in "st"], 1)
    assert reasons(four.spec, four.metrics(), "C2") == {"one seed only: no spread over runs is known"}
    two = noisy([("a", "s")], 2)
    assert NOT_RUN not in found(two.exact(), "C2")


def test_what_a_study_lacks_is_the_reason() -> None:
    no_hard = world(lambda *cell: (50.0, 1.0), modes=("soft", "fuzzy"))
    assert reasons(no_hard.spec, no_hard.metrics(), "C1") == {"none of this study's training modes is the paper's hard"}
    small = world(lambda *cell: (50.0, 1.0), test_sets=("gsm8k",), choice_sets=())
    assert reasons(small.spec, small.metrics(), "C4") == {"none of this study's test sets is the paper's math500"}
    assert reasons(small.spec, small.metrics(), "C5") == {"this study has no choice sets"}
    assert "ablations" in reasons(small.spec, small.metrics(), "C7").pop()
    other = world(lambda *cell: (50.0, 1.0), [("llama-3.2-3b-instruct", "gsm8k"), (LLAMA_8B, "math")])
    assert "no model, train set and seed" in min(reasons(other.spec, other.metrics(), "C4"))
    few = {**small.spec, "inference_modes": {"hard-sample-4": {**INFERENCE_MODES["hard-sample"], "samples": 4}}}
    assert reasons(few, small.metrics(), "C2") == {"pass@32 needs 32 samples per problem, hard-sample-4 draws 4"}
    assert reasons(few, small.metrics(), "C1") == {"none of this study's inference modes is the paper's hard-greedy"}
    twice = {
        **small.spec,
        "paper": {**small.spec["paper"], "training_modes": {"my-hard": "hard", "my-soft": "hard", "my-fuzzy": "fuzzy"}},
    }
    assert any(
        reason.endswith("the paper's hard: my-hard, my-soft") for reason in reasons(twice, small.metrics(), "C1")
    )


@pytest.mark.parametrize(
    ("drop", "without", "reason"),
    [
        ({"training_mode": "my-soft", "seed": 1}, ("C1", "C2"), "my-soft, seed 1: no pass@"),
        ({"training_mode": "my-soft", "seed": 1, "test_set": "my-math500"}, ("C1", "C2", "C4"), "on my-math500"),
        ({"training_mode": "base", "test_set": "my-mmlu"}, ("C5",), "my-llama-3.1-8b-instruct, base, seed 0: no nll"),
    ],
)
def test_nothing_is_decided_before_all_runs_are_there(
    drop: dict[str, Any], without: tuple[str, ...], reason: str
) -> None:
    made = world(as_claimed)
    metrics = made.metrics()
    lost = np.logical_and.reduce([metrics[column] == value for column, value in drop.items()])
    decided = verdicts(made.study, metrics[~lost])
    for one in decided:
        if one.contrast.claim in without and one.contrast.run == "soft":
            assert one.verdict == NOT_RUN, one
            assert reason in one.reason or one.contrast.claim != without[-1]
    assert found(decided, "C2", "fuzzy") == [SUPPORTED]


def test_inference_sets_say_which_runs_a_test_is_about() -> None:
    """A third seed that is evaluated in another inference set only does not hold up the others."""
    made = world(as_claimed)
    made.spec["inference_sets"] = {"six": list(made.spec["inference_modes"]), "one": ["my-soft-greedy"]}
    for run in made.spec["runs"]:
        if run["seed"] == 2:
            run["tests"] = {name: {"one": "1"} for name in made.spec["tests"]}
    metrics = made.metrics()
    metrics = metrics[(metrics["seed"] < 2) | (metrics["inference_mode"] == "")]
    counted = {one.contrast.claim: (one.n, one.verdict) for one in verdicts(made.study, metrics)}
    assert counted["C2"] == (2, SUPPORTED)
    assert counted["C5"] == (3, SUPPORTED)


def test_a_run_that_lacks_the_other_inference_mode_is_left_out_of_their_comparison() -> None:
    made = world(as_claimed)
    hard = [name for name in made.spec["inference_modes"] if name.startswith("my-hard")]
    made.spec["inference_sets"] = {"six": list(made.spec["inference_modes"]), "hard": hard}
    for run in made.spec["runs"]:
        if run["seed"] == 2:
            run["tests"] = {name: {"hard": "1"} for name in made.spec["tests"]}
    metrics = made.metrics()
    metrics = metrics[(metrics["seed"] < 2) | metrics["inference_mode"].isin(["", *hard])]
    compared = [one for one in verdicts(made.study, metrics) if one.contrast.claim == "C3"]
    assert {(one.n, one.verdict) for one in compared} == {(2, SUPPORTED)}


def test_names_without_paper_names_are_understood() -> None:
    made = world(as_claimed)
    text = made.metrics().to_csv(index=False).replace("my-", "")
    spec = {**json.loads(json.dumps(made.spec).replace("my-", "")), "paper": {}}
    again = verdicts(study_of(spec), pd.read_csv(io.StringIO(text)))  # empty cells of the file come back as gaps
    assert [one.verdict for one in again] == [one.verdict for one in verdicts(made.study, made.metrics())]
    renamed = {**spec, "paper": {"training_modes": {"hard": "hard noise=1"}}}
    assert set(found(verdicts(study_of(renamed), made.metrics()), "C2")) == {NOT_RUN}


def test_a_value_that_is_no_number_decides_nothing() -> None:
    made = world(as_claimed)
    metrics = made.metrics()
    metrics.loc[(metrics["training_mode"] == "my-hard") & (metrics["seed"] == 0), "value"] = math.nan
    decided = verdicts(made.study, metrics)
    assert found(decided, "C2") == [INCONCLUSIVE] * 2
    assert {one.reason for one in decided if one.contrast.claim == "C2"} == {"the effect is not finite in 1 of 3 runs"}
    assert found(decided, "C5") == [SUPPORTED, SUPPORTED, INCONCLUSIVE]


# claims.csv and the page


def test_the_report_tells_claims_and_counts_diverged_runs(tmp_path: Path) -> None:
    spec = write_study(tmp_path, problems=30, steps=8, diverged=(("hard", 1),))
    make_report(report_spec(spec), tmp_path / "out", tmp_path)
    lines = list(csv.DictReader((tmp_path / "out/claims.csv").open(encoding="utf-8")))
    assert [(line["claim"], line["compared"]) for line in lines] == [(one.claim, one.compared) for one in contrasts()]
    metrics = pd.read_csv(tmp_path / "out/metrics.csv")
    sampled = (metrics["inference_mode"] == "hard-sample") & (metrics["metric"] == "pass@k")
    chosen = metrics[sampled & (metrics["k"] == 32)]
    of_run = chosen.groupby(["training_mode", "seed"])["value"].mean()
    effects = [of_run["soft", seed] - of_run["hard", seed] for seed in range(3)]
    line = next(line for line in lines if line["claim"] == "C2")
    low, high = t_interval(effects)
    assert [float(line[name]) for name in ("effect", "low", "high")] == pytest.approx(
        [np.mean(effects), low, high], abs=1e-5
    )
    assert (line["n"], line["margin"], line["unit"]) == ("3", "0", "points")
    profiles = metrics[(metrics["inference_mode"] == "hard-sample") & (metrics["metric"] == "entropy")]
    profiles = profiles.set_index(["training_mode", "seed", "test_set", "index"])[["value", "n_samples"]].sort_index()
    apart = []
    for place in product(range(3), ("sums", "long-sums")):
        ours, base = profiles.xs(("hard", *place)), profiles.xs(("base", 0, place[1]))
        both = ours.merge(base, left_index=True, right_index=True, suffixes=("", "_base"))
        thinking = both[["n_samples", "n_samples_base"]].min(axis=1)
        apart.append(((both["value"] - both["value_base"]) * thinking).sum() / thinking.sum())
    assert float(lines[17]["effect"]) == pytest.approx(np.mean(apart), abs=1e-5)
    assert lines[17]["compared"] == "hard − base, hard-sample, entropy"
    assert "95 % interval lies wholly above 0 points" in line["rule"]
    assert {line["margin"] for line in lines} == {"0", "2", "0.05", "0.1"}
    page = (tmp_path / "out/report.html").read_text()
    section = page[page.index('<section id="claims">') : page.index('<section id="words">')]
    assert "no evidence about the paper" in section
    for name, claim in CLAIMS.items():
        assert f"{name} {claim.title}" in section
    assert "Not run</b>: none of this study&#39;s models is the paper&#39;s llama-3.1-8b-instruct" in section
    for line in lines:
        if line["claim"] not in ("C4", "C7"):
            assert line["compared"] in section
            assert line["rule"].replace("'", "&#39;") in section
    assert {line["verdict"] for line in lines if line["claim"] in ("C4", "C7")} == {NOT_RUN}
    assert NOT_RUN not in {line["verdict"] for line in lines if line["claim"] not in ("C4", "C7")}
