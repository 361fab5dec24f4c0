"""The claims in a line each, for a report's first screen: the verdict on all tests of a claim, and a forest plot.

A claim is supported if all its tests are, and contradicted if one of them is. The line shows the test that decides
this: the one furthest from support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from softtok.report.claims import CLAIMS, CONTRADICTED, INCONCLUSIVE, NOT_RUN, SUPPORTED, Verdict
from softtok.report.palette import VARIABLES, Look

WIDTH, LINE = 180, 11  # of a forest plot: units across, and from one test to the next


@dataclass(frozen=True)
class ClaimLine:
    """One claim; `deciding` is None if no test was run, and `reason` says why."""

    name: str
    title: str
    verdict: str
    count: str
    deciding: Verdict | None
    forest: str
    remark: str
    reason: str


def claim_lines(
    found: Iterable[Verdict], remarks: Mapping[str, str], looks: Mapping[str, Look], names: Mapping[str, str]
) -> list[ClaimLine]:
    """Returns the lines of all claims, from the verdicts on their tests; `names` are the study's for the paper's."""
    tests = [verdict for verdict in found if not verdict.contrast.beside]
    limits = scales(tests)
    lines = []
    for name, claim in CLAIMS.items():
        of_claim = [verdict for verdict in tests if verdict.contrast.claim == name]
        run = [verdict for verdict in of_claim if verdict.verdict != NOT_RUN]
        supported = sum(verdict.verdict == SUPPORTED for verdict in run)
        count = f"{supported} of {len(run)} tests" + (
            f", {len(of_claim) - len(run)} not run" * (len(run) < len(of_claim))
        )
        deciding = min(run, key=_rank) if run else None
        reasons = dict.fromkeys(verdict.reason for verdict in of_claim if verdict.verdict == NOT_RUN)
        drawn = [verdict for verdict in run if verdict.effect is not None]
        picture = forest(drawn, limits, [looks.get(names.get(one.contrast.run, one.contrast.run)) for one in drawn])
        told = remarks.get(name, "") if run else ""
        lines.append(
            ClaimLine(name, claim.title, overall(of_claim), count, deciding, picture, told, "; ".join(reasons))
        )
    return lines


def overall(tests: Sequence[Verdict]) -> str:
    """Returns the verdict on a claim: that of all its tests together."""
    found = {verdict.verdict for verdict in tests}
    if found <= {NOT_RUN}:
        return NOT_RUN
    if CONTRADICTED in found:
        return CONTRADICTED
    return SUPPORTED if found == {SUPPORTED} else INCONCLUSIVE


def _rank(verdict: Verdict) -> tuple[int, float]:
    """Orders tests from the furthest from support: a sure contradiction first, then the least sure, then support."""
    place = (CONTRADICTED, INCONCLUSIVE, SUPPORTED).index(verdict.verdict)
    p = 1.0 if verdict.p_holm is None else verdict.p_holm
    return place, p if verdict.verdict == CONTRADICTED else -p


def scales(tests: Iterable[Verdict]) -> dict[str, float]:
    """Returns where the axis of each unit ends: beyond all effects and margins; intervals may go on beyond it."""
    reached: dict[str, float] = {}
    for one in tests:
        if one.effect is not None and one.low is not None and one.high is not None:
            needed = max(1.25 * abs(one.effect), 1.6 * one.contrast.margin)
            unit = one.contrast.measure.unit
            reached[unit] = max(reached.get(unit, 0.0), needed)
    return {unit: _round_up(value) for unit, value in reached.items()}


def _round_up(value: float) -> float:
    """Returns the next of 1, 1.5, 2, 3, 5 and 7 times a power of ten."""
    power = 1e-6
    while value > 10 * power:
        power *= 10
    return (
        next(float(f"{step * power:.9g}") for step in (1, 1.5, 2, 3, 5, 7, 10) if step * power >= value)
        if value
        else 1.0
    )


def forest(tests: Sequence[Verdict], limits: Mapping[str, float], looks: Sequence[Look | None]) -> str:
    """Returns an SVG element: a line for each test with its effect and interval; the zero; the margin as a band."""
    if not tests:
        return ""
    unit, height = tests[0].contrast.measure.unit, LINE * len(tests) + 14
    limit, middle = limits[unit], WIDTH / 2

    def place(value: float) -> float:
        return round(middle + max(-1.0, min(1.0, value / limit)) * (middle - 8), 1)

    words = "; ".join(f"{one.contrast.compared}: {one.shown(one.effect)} ({one.interval_text})" for one in tests)
    parts = [f'<svg class="forest" viewBox="0 0 {WIDTH} {height}" role="img" aria-label={quoteattr(words)}>']
    for number, one in enumerate(tests):
        if one.contrast.margin:
            left, right = place(-one.contrast.margin), place(one.contrast.margin)
            parts.append(
                f'<rect class="margin" x="{left}" y="{number * LINE}" width="{right - left:.1f}" height="{LINE}"/>'
            )
    parts.append(f'<path class="zero" d="M{middle:g} 0V{LINE * len(tests)}"/>')
    for number, (one, look) in enumerate(zip(tests, looks, strict=True)):
        colour = f"var({VARIABLES[look.colour]})" if look else "var(--ink)"
        parts.append(_interval(one, place, limit, number * LINE + LINE / 2, colour))
    below = f'y="{height - 2}"'
    parts.append(f'<text x="8" {below} text-anchor="start">−{limit:g}</text><text x="{middle:g}" {below}>0</text>')
    parts.append(f'<text x="{WIDTH - 2}" {below} text-anchor="end">{limit:g} {unit}</text></svg>')
    return "".join(parts)


def _interval(one: Verdict, place: Callable[[float], float], limit: float, y: float, colour: str) -> str:
    """Returns a test's interval with its effect; an end beyond the axis is an arrow."""
    assert one.effect is not None and one.low is not None and one.high is not None
    low, high = place(one.low), place(one.high)
    drawn = [f'<path d="M{low} {y}H{high}" stroke="{colour}"/>']
    for beyond, x, way in ((one.low < -limit, low, 1), (one.high > limit, high, -1)):
        tip = f"M{x + 4 * way} {y - 3}L{x} {y}L{x + 4 * way} {y + 3}" if beyond else f"M{x} {y - 3}V{y + 3}"
        drawn.append(f'<path d="{tip}" stroke="{colour}"/>')
    drawn.append(f'<circle cx="{place(one.effect)}" cy="{y}" r="2.8" fill="{colour}"/>')
    return "".join(drawn)
