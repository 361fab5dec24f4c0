"""Decides by intervals: p-values of interval tests over runs, and Holm's correction for several tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr


def spread(effects: Sequence[float], step: float) -> float:
    """Returns the standard deviation (ddof = 1), but at least `step`, the unit in which effects are counted.

    A few runs often solve equally many problems by chance. That does not mean that all further runs would.
    """
    return max(float(np.std(effects, ddof=1)) if np.ptp(effects) else 0.0, step)


def p_value(effects: Sequence[float], low: float, high: float, step: float = 0.0) -> float:
    """Returns the smallest error rate at which the t interval over `effects` lies inside or outside `low` to `high`.

    Inside and outside mean wholly so. The rate is twice the tail beyond the boundary nearest to the mean. It is at most
    0.05 if the 95 % interval lies wholly inside or outside. With two finite boundaries, these are two one-sided tests
    at 2.5 % each. Returns 1 if the effects are not finite or have no `spread`.
    """
    sample = np.asarray(effects, dtype=float)
    if not np.isfinite(sample).all():
        return 1.0
    distance = min(abs(sample.mean() - boundary) for boundary in (low, high) if math.isfinite(boundary))
    error = spread(effects, step) / math.sqrt(sample.size)
    return float(2 * stdtr(sample.size - 1, -distance / error)) if error else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Returns p-values after Holm's step-down adjustment.

    Of m values, the k-th smallest is multiplied by m - k + 1, and none ends below a smaller one. Deciding only where
    the result is at most 0.05 keeps the chance of any wrong decision at 5 %.
    """
    adjusted, reached = [1.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        reached = max(reached, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = reached
    return adjusted
