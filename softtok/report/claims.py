"""The paper's claims C1 to C7 as tests that were fixed before any run: functions of a study and tidy metrics.

The unit is the training run (model x train set x seed). Its effect is a difference on the same problems, averaged over
its test sets, and a Student t interval over runs says what is known. The `paper:` names of a study's entries (or else
their own names) say which entry plays which part. Runs that diverged count like all others. A test is `not run` while
a planned run or evaluation is missing, so that nothing is decided by what finished first. Runs may agree exactly by
chance; so where problems are counted, the spread over runs is at least one problem (in each test set).

Runs of one model and train set count as separate ones. So an interval is about further runs on the same models and
train sets, not about other models or train sets. A base is one checkpoint, the same for all runs of its model; its
measured value is taken as exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from softtok.report.metrics import t_interval_of
from softtok.report.paper import REPRINTED
from softtok.report.significance import holm, p_value, spread
from softtok.report.study import Study, row_of
from softtok.storage.files import csv_text

LEVEL = 0.05
SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_RUN = "supported", "contradicted", "inconclusive", "not run"
CSV_COLUMNS = tuple("claim compared unit effect low high n margin p p_holm verdict rule reason".split())

RunKey = tuple[str, str, str, int]  # model, train set, training mode, seed
Cell = tuple[RunKey, str, str]  # run, test or choice set, inference mode ("" for a choice set)
Values = Mapping[tuple[Cell, str, int], Any]  # cell, metric, k (0 where it has no meaning) -> a number or a `Profile`
Floats = NDArray[np.float64]
PROBLEMS = "n_problems"  # of a cell, beside its metrics


@dataclass(frozen=True)
class Profile:
    """Entropy (nats) by CoT position, and the number of generations still thinking at each position."""

    position: NDArray[np.int64]
    entropy: Floats
    thinking: Floats


def profile_distance(run: Profile, base: Profile, absolute: bool) -> float:
    """Returns the weighted mean of the (absolute) differences `run` - `base`, in nats.

    The mean is over the positions that both profiles have. The weight of a position is the number of generations still
    thinking there (the smaller of the two numbers), so that thin ends count little. The absolute mean notices a profile
    that is too high in one place and too low in another. Noise makes it too large, never too small, so a lack of data
    cannot support a claim of equality.
    """
    _, ours, theirs = np.intersect1d(run.position, base.position, return_indices=True)
    weights = np.minimum(run.thinking[ours], base.thinking[theirs])
    if not weights.sum() > 0:
        return math.nan
    apart = run.entropy[ours] - base.entropy[theirs]
    return float(np.average(np.abs(apart) if absolute else apart, weights=weights))


class Measure(NamedTuple):
    """A metric of metrics.csv; `apart` returns the difference of two of its values, in `unit`."""

    text: str
    metric: str
    k: int
    unit: str
    apart: Callable[[Any, Any], float] = lambda value, other: value - other


PASS_AT_1 = Measure("pass@1", "pass@k", 1, "points")
PASS_AT_32 = Measure("pass@32", "pass@k", 32, "points")
NLL = Measure("NLL per token", "nll_per_token", 0, "nats")
ENTROPY_DISTANCE = Measure("entropy, absolute", "entropy", 0, "nats", partial(profile_distance, absolute=True))
ENTROPY_LEVEL = Measure("entropy", "entropy", 0, "nats", partial(profile_distance, absolute=False))


@dataclass(frozen=True)
class Contrast:
    """One comparison, in the paper's names.

    The effect is `run` - `other`, each in its inference mode. `other` may be `base` (the untouched model) or "" (the
    run itself, in another inference mode). The claim says that the effect lies between `low` and `high`. `only` limits
    the comparison to one entry of a section: (section, entry).
    """

    claim: str
    run: str
    other: str
    measure: Measure
    inference: str
    other_inference: str
    low: float
    high: float
    only: tuple[tuple[str, str], ...] = ()
    beside: bool = False  # no claim of the paper, but the same test of another training mode

    @property
    def compared(self) -> str:
        if not self.other:
            return f"{self.run}: {self.inference} − {self.other_inference}, {self.measure.text}"
        return ", ".join(filter(None, (f"{self.run} − {self.other}", self.inference, self.measure.text)))

    @property
    def margin(self) -> float:
        """Half the width of the range of equivalence, or 0 if the claim is about a direction."""
        return self.high if math.isfinite(self.low) and math.isfinite(self.high) else 0.0

    @property
    def rule(self) -> str:
        """The rule that decides, in one sentence."""
        unit = self.measure.unit
        if self.margin:
            inside = f"within ±{self.margin:g} {unit} (two one-sided tests at 2.5 %)"
            outside = "wholly outside"
        else:
            inside, outside = ("above", "below") if self.high > 0 else ("below", "above")
            inside, outside = f"wholly {inside} 0 {unit}", f"wholly {outside}"
        tests = "the tests of such modes beside the claim" if self.beside else "the claim's tests"
        return (
            f"Supported if the 95 % interval lies {inside}, contradicted if {outside}, "
            f"both also after Holm's correction over {tests}; else inconclusive."
        )


class Claim(NamedTuple):
    title: str
    text: str  # what the paper says, and how it is measured


CLAIMS = {
    "C1": Claim("Parity", "Greedy pass@1 after soft and after fuzzy training equals that after hard training."),
    "C2": Claim("Diversity", "Pass@32 of sampled hard CoTs is higher after soft and fuzzy training than after hard."),
    "C3": Claim("Hard inference", "Whatever the training mode, pass@32 is best when the model thinks in hard tokens."),
    "C4": Claim(
        "No collapse",
        "Llama 3.1 8B trained on GSM8K and tested on MATH-500: soft and fuzzy training end above hard, which "
        "collapses.",
    ),
    "C5": Claim(
        "Softer touch",
        "Out of domain, the NLL of right answers stays near the base model's after soft and fuzzy training; hard "
        "training raises it.",
    ),
    "C6": Claim(
        "Entropy",
        "Soft and fuzzy training keep the base model's entropy profile; hard training flattens it. Run and base are "
        "compared at each CoT position; the mean over positions is weighted by the generations still thinking, of the "
        "two the fewer. Kept: the mean absolute difference is small. Flattened: the mean difference is below 0.",
    ),
    "C7": Claim(
        "Noise",
        "Noise on the embedding works; on the hidden state or the logits it does not; with a noise scale of 3 training "
        "collapses. Here, to work is to end above the untouched base; not to work, or to collapse, is to end below it. "
        "(In the paper's own Table 7 the two top-k rows end above it: 72.8 and 74.2 against 71.0.)",
    ),
}
NOISE_THAT_FAILS = (
    "soft noise_at=hidden;temperature=0.5",
    "fuzzy noise_at=hidden;temperature=1e-4",
    "soft noise_at=logits;temperature=0.5",
    "fuzzy noise_at=logits;temperature=1e-4",
    "soft noise_at=logits;temperature=1;top_k=5",
    "soft noise_at=logits;temperature=1;top_k=50;checkpoint_step=50-100",
    "fuzzy noise_scale=3.0",
)
COLLAPSE = (("models", "llama-3.1-8b-instruct"), ("train_sets", "gsm8k"), ("test_sets", "math500"))


def contrasts(beside: Iterable[str] = ()) -> list[Contrast]:
    """Returns every comparison of every claim, in the order in which they are shown.

    The training modes `beside` the paper's are tested as its soft one is in C1, C2, C5 and C6.
    """
    up, down = (0.0, math.inf), (-math.inf, 0.0)
    greedy, sample, no_mode = ("hard-greedy",) * 2, ("hard-sample",) * 2, ("",) * 2
    softer = ("soft", "fuzzy")
    return [
        *(Contrast("C1", run, "hard", PASS_AT_1, *greedy, -2.0, 2.0) for run in softer),
        *(Contrast("C2", run, "hard", PASS_AT_32, *sample, *up) for run in softer),
        *(
            Contrast("C3", run, "", PASS_AT_32, "hard-sample", other, *up)
            for run in ("hard", *softer)
            for other in ("soft-sample", "fuzzy-sample")
        ),
        *(Contrast("C4", run, "hard", PASS_AT_1, *greedy, *up, COLLAPSE) for run in softer),
        *(Contrast("C5", run, "base", NLL, *no_mode, -0.05, 0.05) for run in softer),
        Contrast("C5", "hard", "base", NLL, *no_mode, *up),
        *(Contrast("C6", run, "base", ENTROPY_DISTANCE, *sample, -0.1, 0.1) for run in softer),
        Contrast("C6", "hard", "base", ENTROPY_LEVEL, *sample, *down),
        *(Contrast("C7", run, "base", PASS_AT_1, *greedy, *up) for run in softer),
        *(Contrast("C7", run, "base", PASS_AT_1, *greedy, *down) for run in NOISE_THAT_FAILS),
        *(Contrast("C1", run, "hard", PASS_AT_1, *greedy, -2.0, 2.0, beside=True) for run in beside),
        *(Contrast("C2", run, "hard", PASS_AT_32, *sample, *up, beside=True) for run in beside),
        *(Contrast("C5", run, "base", NLL, *no_mode, -0.05, 0.05, beside=True) for run in beside),
        *(Contrast("C6", run, "base", ENTROPY_DISTANCE, *sample, -0.1, 0.1, beside=True) for run in beside),
    ]


def beside_the_paper(study: Study) -> list[str]:
    """Returns the training modes of a study whose gradient goes through the CoT, which the paper does not have."""
    names = study.paper.get("training_modes", {})
    modes = [row.training_mode for row in study.rows if study.settings(row).get("estimator") == "pathwise"]
    return list(dict.fromkeys(names.get(mode, mode) for mode in modes))


@dataclass(frozen=True)
class Verdict:
    """The outcome of a test; numbers are None if it was not run, and `reason` says why or adds a remark."""

    contrast: Contrast
    verdict: str
    reason: str = ""
    n: int = 0  # runs
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None

    def shown(self, value: float | None) -> str:
        """Formats a number in the contrast's unit, as the report prints it."""
        digits = 1 if self.contrast.measure.unit == "points" else 3
        return "–" if value is None else f"{value:+z.{digits}f}".replace("-", "−")

    @property
    def interval_text(self) -> str:
        """The 95 % interval, as the report prints it."""
        return f"{self.shown(self.low)} to {self.shown(self.high)}"


def by_claim(found: Iterable[Verdict]) -> list[tuple[str, Claim, list[Verdict], str]]:
    """Groups verdicts for the report: (name, claim, verdicts, the reasons if no test was run, else "")."""
    listed = list(found)
    groups = []
    for name, claim in CLAIMS.items():
        verdicts = [verdict for verdict in listed if verdict.contrast.claim == name]
        run = any(verdict.verdict != NOT_RUN for verdict in verdicts)
        reasons = dict.fromkeys(verdict.reason for verdict in verdicts)
        groups.append((name, claim, verdicts, "" if run else "; ".join(reasons)))
    return groups


class NotRunError(Exception):
    """A test cannot be run; the message is the reason."""


def verdicts(study: Study, metrics: pd.DataFrame) -> list[Verdict]:
    """Returns the verdict on every contrast, from a study and its tidy metrics (`collect.METRIC_COLUMNS`).

    The study says which runs a test needs, so that what is missing in `metrics` is noticed.
    """
    design, values = Design(study), values_of(metrics)
    ablation = any(design.entries("training_modes", name) for name in NOISE_THAT_FAILS)
    decided: dict[Contrast, Verdict] = {}
    tested = contrasts(beside_the_paper(study))
    for claim, beside in product(CLAIMS, (False, True)):
        found: dict[Contrast, list[float]] = {}
        steps: dict[Contrast, float] = {}
        for contrast in tested:
            if (contrast.claim, contrast.beside) == (claim, beside):
                try:
                    if claim == "C7" and not ablation:
                        raise NotRunError("no training mode of this study is one of the paper's ablations of the noise")
                    found[contrast], steps[contrast] = effects(contrast, design, values)
                except NotRunError as reason:
                    decided[contrast] = Verdict(contrast, NOT_RUN, str(reason))
        decided |= {verdict.contrast: verdict for verdict in judge(found, steps)}
    return [decided[contrast] for contrast in tested]


def judge(found: Mapping[Contrast, Sequence[float]], steps: Mapping[Contrast, float]) -> list[Verdict]:
    """Returns verdicts on contrasts that Holm's correction is over, from the effects of their runs (two or more each).

    `steps` are the units in which effects are counted (0 if they are not counts).
    """
    ps = [p_value(sample, contrast.low, contrast.high, steps[contrast]) for contrast, sample in found.items()]
    judged = []
    for (contrast, sample), p, p_holm in zip(found.items(), ps, holm(ps), strict=True):
        n, mean = len(sample), float(np.mean(sample))
        if not math.isfinite(mean):
            lost = sum(not math.isfinite(effect) for effect in sample)
            judged.append(Verdict(contrast, INCONCLUSIVE, f"the effect is not finite in {lost} of {n} runs", n))
            continue
        verdict, reason = INCONCLUSIVE, ""
        if p_holm <= LEVEL:
            verdict = SUPPORTED if contrast.low < mean < contrast.high else CONTRADICTED
        elif p <= LEVEL:
            reason = "the interval alone would decide, but not after Holm's correction"
        elif not spread(sample, steps[contrast]):
            reason = "the runs agree exactly, which tells nothing of the spread of further ones"
        interval = t_interval_of(mean, spread(sample, steps[contrast]), n)
        judged.append(Verdict(contrast, verdict, reason, n, mean, *interval, p, p_holm))
    return judged


class Design:
    """What a study plans: its runs, where and how each is tested, and which entry plays which part."""

    def __init__(self, study: Study) -> None:
        self.study, self.names = study, study.paper
        self.order: Mapping[str, Iterable[str]] = {**study.spec.order, "inference_modes": study.inference_modes}
        self.cells: dict[RunKey, set[tuple[str, str]]] = {}  # run -> (test or choice set, inference mode or "")
        for run in study.runs:
            cells = self.cells.setdefault((*row_of(run), run.seed), set())
            cells |= {(choice_set, "") for choice_set in run.choices}
            for test_set, inference_sets in run.tests.items():
                for name in inference_sets:
                    cells |= {(test_set, mode) for mode in study.spec.inference_sets[name]}

    def entries(self, section: str, name: str) -> list[str]:
        """Returns the study's entries that have this name in the paper; without a `paper:` name, their own counts."""
        names = self.names.get(section, {})
        wanted = {name} | {again for again, first in REPRINTED.items() if first == name and section == "training_modes"}
        return [entry for entry in self.order[section] if names.get(entry, entry) in wanted]

    def part(self, section: str, name: str) -> str:
        """Returns the one entry that is the paper's `name`; raises NotRunError if there is none, or more than one."""
        found, what = self.entries(section, name), section.replace("_", " ")
        if not found:
            raise NotRunError(f"none of this study's {what} is the paper's {name}")
        if len(found) > 1:
            raise NotRunError(f"more than one of this study's {what} is the paper's {name}: {', '.join(found)}")
        return found[0]

    def inference(self, name: str, samples: int) -> str:
        """Returns the inference mode that is the paper's `name`, or has the same role in a family of other names.

        Raises NotRunError if it draws fewer than `samples` samples.
        """
        if not name:
            return ""
        if self.entries("inference_modes", name):
            mode = self.part("inference_modes", name)
        else:
            family, slot = name.split("-")
            mode = getattr(self.study.families().get(family), slot, None) or self.part("inference_modes", name)
        if self.study.samples(mode) < samples:
            drawn = self.study.samples(mode)
            raise NotRunError(f"pass@{samples} needs {samples} samples per problem, {mode} draws {drawn}")
        listed = self.study.spec.k
        if listed and samples not in (1, self.study.samples(mode), *listed):
            raise NotRunError(f"pass@{samples} is not among the k of this study: {', '.join(map(str, listed))}")
        return mode

    def draws(self, mode: str, test_set: str, samples: int) -> bool:
        """Whether an inference mode draws so many samples on a test set, which may limit them."""
        return not mode or self.study.samples(mode, test_set) >= samples


def effects(contrast: Contrast, design: Design, values: Values) -> tuple[list[float], float]:
    """Returns the effect of each run that the contrast is about, averaged over its test sets (or choice sets).

    Also returns the step in which effects are counted: one problem in each set where problems are counted, else 0.
    Raises NotRunError with the reason if the study lacks an entry or a second seed, or if a planned cell has no value.
    """
    mode = design.part("training_modes", contrast.run)
    other = contrast.other if contrast.other in ("", "base") else design.part("training_modes", contrast.other)
    only = {section: design.part(section, name) for section, name in contrast.only}
    measure = contrast.measure
    inference = design.inference(contrast.inference, measure.k)
    other_inference = design.inference(contrast.other_inference, measure.k)
    sets = design.study.test_sets if inference else design.study.choice_sets
    if not sets:
        raise NotRunError(f"this study has no {'test' if inference else 'choice'} sets")
    found, seeds, steps = [], set(), [0.0]
    for run, planned in design.cells.items():
        model, train_set, training_mode, seed = run
        if (
            training_mode != mode
            or only.get("models", model) != model
            or only.get("train_sets", train_set) != train_set
        ):
            continue
        against = (model, "none", "base", 0) if other == "base" else (model, train_set, other or mode, seed)
        tested = [
            name
            for name in sets
            if (name, inference) in planned
            and (name, other_inference) in design.cells.get(against, ())
            and only.get("test_sets", name) == name
            and design.draws(inference, name, measure.k)
            and design.draws(other_inference, name, measure.k)
        ]
        apart = [
            measure.apart(
                _value(values, run, name, inference, measure), _value(values, against, name, other_inference, measure)
            )
            for name in tested
        ]
        if apart:
            found.append(round(float(np.mean(apart)), 9))  # equal values differ by 0, not by the rounding of a sum
            seeds.add(seed)
            if measure.unit == "points":
                counted = [name for name in tested if not inference or design.study.counts(inference, name, measure.k)]
                problems = [values[(run, name, inference), PROBLEMS, 0] for name in counted]
                steps.append(sum(100 / count for count in problems) / len(tested))
    if not found:
        compared = " and ".join(
            dict.fromkeys((f"{mode} {inference}".strip(), f"{other or mode} {other_inference}".strip()))
        )
        where = f" on {', '.join(only.values())}" if only else ""
        raise NotRunError(f"no model, train set and seed has both {compared}{where}")
    if len(seeds) < 2:
        raise NotRunError("one seed only: no spread over runs is known")
    return found, max(steps)


def _value(values: Values, run: RunKey, tested: str, inference: str, measure: Measure) -> Any:
    try:
        return values[(run, tested, inference), measure.metric, measure.k]
    except KeyError:
        names = ", ".join([*(name for name in run[:3] if name != "none"), f"seed {run[3]}"])
        metric = measure.metric.replace("@k", f"@{measure.k}")
        raise NotRunError(f"{names}: no {metric} {f'of {inference} ' if inference else ''}on {tested}") from None


def values_of(metrics: pd.DataFrame) -> Values:
    """Returns the values of tidy metrics that tests are about."""
    used = metrics[metrics["metric"].isin({contrast.measure.metric for contrast in contrasts()})]
    used = used.assign(inference_mode=used["inference_mode"].fillna(""), k=used["k"].fillna(0).astype(int))
    key = ["model", "train_set", "training_mode", "seed", "test_set", "inference_mode", "metric", "k"]
    profiles = used["metric"] == "entropy"
    found: dict[tuple[Cell, str, int], Any] = {}
    for *names, value, problems in used.loc[~profiles, [*key, "value", "n_problems"]].itertuples(
        index=False, name=None
    ):
        cell, metric, k = _place(names)
        found[cell, metric, k], found[cell, PROBLEMS, 0] = value, problems
    for group, lines in used[profiles].groupby(key, sort=False):
        columns = (lines["index"].to_numpy(np.int64), lines["value"].to_numpy(float))
        found[_place(group)] = Profile(*columns, lines["n_samples"].to_numpy(float))
    return found


def _place(names: Any) -> tuple[Cell, str, int]:
    model, train_set, mode, seed, tested, inference, metric, k = names
    return ((model, train_set, mode, int(seed)), tested, inference), metric, int(k)


def to_csv(found: Iterable[Verdict]) -> str:
    """Returns claims.csv: one line per test, `CSV_COLUMNS`; numbers are empty where a test was not run."""
    lines = []
    for verdict in found:
        contrast = verdict.contrast
        tested = [contrast.claim, contrast.compared, contrast.measure.unit]
        numbers = [verdict.effect, verdict.low, verdict.high, verdict.n, f"{contrast.margin:g}"]
        lines.append([*tested, *numbers, verdict.p, verdict.p_holm, verdict.verdict, contrast.rule, verdict.reason])
    return csv_text(CSV_COLUMNS, lines)
