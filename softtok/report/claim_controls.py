"""Tests beside the claims that something stays near the base (C5, C6): hard training might pass them as well.

A test of equality with the base is passed by any training that hardly changes the model. So hard training takes the
same test, and soft and fuzzy training are compared with hard directly. These tests are no claims of the paper; each
claim's tests have a Holm family of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from softtok.report.claims import (
    ENTROPY_DISTANCE,
    ENTROPY_LEVEL,
    NLL,
    NOT_RUN,
    SUPPORTED,
    Contrast,
    Design,
    NotRunError,
    Verdict,
    effects,
    judge,
    values_of,
)
from softtok.report.study import Study

SOFTER = ("soft", "fuzzy")


def controls() -> dict[str, list[Contrast]]:
    """Returns the tests beside each such claim: that of hard training, then the direct comparisons with it."""
    sample = ("hard-sample",) * 2
    return {
        "C5": [
            Contrast("C5", "hard", "base", NLL, "", "", -0.05, 0.05, beside=True),
            *(Contrast("C5", run, "hard", NLL, "", "", -math.inf, 0.0, beside=True) for run in SOFTER),
        ],
        "C6": [
            Contrast("C6", "hard", "base", ENTROPY_DISTANCE, *sample, -0.1, 0.1, beside=True),
            *(Contrast("C6", run, "hard", ENTROPY_LEVEL, *sample, 0.0, math.inf, beside=True) for run in SOFTER),
        ],
    }


def controlled(study: Study, metrics: pd.DataFrame) -> dict[str, list[Verdict]]:
    """Returns the verdicts on `controls`, by claim."""
    design, values = Design(study), values_of(metrics)
    found = {}
    for name, tests in controls().items():
        lost: dict[Contrast, Verdict] = {}
        sampled: dict[Contrast, list[float]] = {}
        for contrast in tests:
            try:
                sampled[contrast], _ = effects(contrast, design, values)
            except NotRunError as reason:
                lost[contrast] = Verdict(contrast, NOT_RUN, str(reason))
        judged = {verdict.contrast: verdict for verdict in judge(sampled, dict.fromkeys(sampled, 0.0))}
        found[name] = [(judged | lost)[contrast] for contrast in tests]
    return found


def remark(tests: Iterable[Verdict]) -> str:
    """Says whether hard training passes too, and how far the others are from it; empty if nothing was tested."""
    hard, *direct = tests
    if hard.effect is None:
        return ""
    told = "hard would pass as well" if hard.verdict == SUPPORTED else "hard does not pass this test"
    words = [f"{told} ({hard.shown(hard.effect)}, {hard.interval_text}, limit ±{hard.contrast.margin:g})"]
    words += [
        f"{one.contrast.run} − {one.contrast.other} {one.shown(one.effect)} ({one.interval_text})"
        for one in direct
        if one.effect is not None
    ]
    return "; ".join(words)
