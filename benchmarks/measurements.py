"""Measurements 4, 6 and 8 to 11, each with processes of its own; README.md says what each number means.

The others are in `cells.py` (1, 2, 3 and 5) and `overhead.py` (7).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

from benchmarks import bounds
from benchmarks.driver import Rounds, Row, Side, Times, interleave, workers
from benchmarks.plans import FULL, Plan
from benchmarks.toy import SAMPLES
from benchmarks.work import SIZES
from softtok.config.flops import Load, Size

GSM8K_ANSWERS = 800  # whose decode steps are counted at GSM8K's lengths
PRECISIONS = ("float32", "bfloat16")
RATE_LAYERS = 6  # whose weights are more than the caches hold already
GROWTH_BASE = {"G": 16, "T": 32, "V": 2048, "layers": 2}


def product_rates(plan: Plan, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Returns GFLOP/s of matrix products, by precision and number of rows: those of a decode step, and large ones."""
    say(f"rates of products of size {plan.rates}")
    size, load = dataclasses.replace(SIZES[plan.rates], layers=RATE_LAYERS), Load(8, new_tokens=2)
    options = {"size": dataclasses.asdict(size), "dtypes": list(PRECISIONS)} | dataclasses.asdict(load)
    with workers(plan.threads, rates=("rates", options)) as at:
        large_rows = at["rates"].facts["large_rows"]
        flops = {
            "decode_products": (load.rows, bounds.decode_product_flops(size, load)),
            "large_products": (large_rows, bounds.large_product_flops(size, large_rows)),
        }
        jobs = list(product(PRECISIONS, flops))
        turns: dict[str, Callable[[], dict[str, float]]] = {
            f"{dtype} {what}": partial(at["rates"].turn, dtype=dtype, what=what) for dtype, what in jobs
        }
        rounds = interleave(turns, 0, plan.most)
    found: dict[str, dict[str, float]] = {dtype: {} for dtype in PRECISIONS}
    for dtype, what in jobs:
        rows, operations = flops[what]
        seconds = min(turn["wall_s"] for turn in rounds.turns[f"{dtype} {what}"])
        found[dtype][f"{rows} rows"] = round(operations / seconds / 1e9, 1)
    return found


def objective_memory(plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """4: peak memory and time of the training pass, the vocabulary in tiles over all at once."""
    rows = []
    memory_goal = 1 / 5 if plan.objective_vocabulary == FULL.objective_vocabulary else None
    for width, seconds in plan.objective:
        case = f"d={width} V={plan.objective_vocabulary}"
        say(f"objective {case}: tiled and not")
        size = Size(width, 1, 4, 4, 2 * width, plan.objective_vocabulary)
        load = {"prompt": 16, "new_tokens": 256, "prompts": 2, "samples": 8, "size": dataclasses.asdict(size)}
        contestants = {
            name: ("objective", load | {"tile": tile}) for name, tile in (("tiled", 512), ("untiled", 10**9))
        }
        with workers(plan.threads, **contestants) as at:
            rounds = interleave({name: at[name].turn for name in at}, seconds, plan.most, least=1)
        sides = Side("tiled", "tiled"), Side("untiled", "untiled")
        rows += [
            rounds.memory_row("objective_memory", f"{case} memory", *contestants, goal=memory_goal, better="less"),
            rounds.row("objective_memory", f"{case} time", *sides, goal=1.3, better="less"),
        ]
    return rows


def evaluate_throughput(plan: Plan, toy: Path, say: Callable[[str], None]) -> list[Row]:
    """6: a whole evaluation cell, by what becomes of the places of finished rows."""
    fewer, rows = min(SAMPLES, GSM8K_ANSWERS // plan.problems), []
    for case, lengths, samples, ways, goal in (
        (f"{plan.problems} x {SAMPLES}", "toy", SAMPLES, ("kept", "dropped", "replaced"), 1.5),
        (f"{plan.problems} x {fewer}, GSM8K's lengths", "gsm8k", fewer, ("dropped", "replaced"), None),
    ):
        say(f"evaluation: {case}, finished rows {', '.join(ways)}")
        options = {"folder": str(toy), "lengths": lengths, "samples": samples}
        with workers(plan.threads, **{way: ("evaluation", options | {"rows": way}) for way in ways}) as at:
            rounds = interleave({way: at[way].turn for way in ways}, plan.evaluation_s, plan.most, least=1)
        turns = {way: rounds.turns[way][0] for way in ways}
        for before, after in itertools.pairwise(ways):
            what = "decode_rows" if before == "kept" else "decode_steps"
            least = turns[before][what] / turns[after][what]
            row = rounds.row(
                "evaluate_throughput",
                f"{case}: {before} over {after}",
                Side(before, before),
                Side(after, after),
                goal=goal if before == "kept" else None,
                bound=least,
            )
            row.note = (
                f"{turns[after][what]:.0f} of {turns[before][what]:.0f} {what.replace('decode', 'decoded')};"
                " bound: their ratio"
            )
            rows.append(row)
        if lengths == "gsm8k":
            goal = 1.8 if samples * plan.problems == GSM8K_ANSWERS else None
            steps = Row("evaluate_throughput", f"{case}: decode steps, dropped over replaced", least, goal)
            steps.note, steps.repeats = "counted, not timed", rows[-1].repeats
            rows.append(steps)
    return rows


def shared_beginning(plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """11: a rollout of problems whose prompts begin alike: each prompt whole over the beginning once."""
    size, load, seconds = plan.beginning
    case = f"{size} {load.prompts} x {load.common}+{load.prompt} T={load.new_tokens}"
    say(f"prompts that begin alike: {case}")
    options = {"size": size} | dataclasses.asdict(load)
    contestants = {name: ("beginning", options | {"shared": name == "shared"}) for name in ("whole", "shared")}
    with workers(plan.threads, **contestants) as at:
        assert at["whole"].facts["digest"] == at["shared"].facts["digest"]
        rounds = interleave({name: at[name].turn for name in at}, seconds, plan.most)
    sides = Side("each prompt whole", "whole"), Side("ours", "shared")
    return [rounds.row("shared_beginning", case, *sides, goal=3.0 if load == FULL.beginning[1] else None)]


def growth(plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """8: time and memory of a soft step as one number grows and the others stay; all points take turns."""
    say(f"growth: {', '.join(plan.growth)}")
    points = [
        (axis, factor, GROWTH_BASE | {axis: GROWTH_BASE[axis] * factor})
        for axis, factors in plan.growth.items()
        for factor in factors
    ]
    contestants = {}  # by all their numbers, for the axes share their first point
    for _, _, now in points:
        size = dataclasses.asdict(Size(128, now["layers"], 4, 2, 384, now["V"]))
        options = {"prompt": 64, "new_tokens": now["T"], "prompts": 2, "samples": now["G"], "size": size}
        contestants[str(now)] = ("growth", options)
    with workers(plan.threads, **contestants) as at:
        rounds = interleave({name: at[name].turn for name in at}, plan.growth_s, plan.most)
    rows = []
    for axis, factor, now in points:
        rows += _growth_rows(rounds, f"{axis}={now[axis]}", str(now), factor)
    return rows


def _growth_rows(rounds: Rounds, case: str, contestant: str, factor: int) -> list[Row]:
    """Returns a point's time and memory over those of the base, `factor` times as large along one axis."""
    base, goal = str(GROWTH_BASE), 1.15 * factor if factor > 1 else None
    time = rounds.row(
        "growth", f"{case} time", Side("ours", contestant), Side("base", base), goal=goal, bound=factor, better="less"
    )
    memory = rounds.memory_row("growth", f"{case} memory", contestant, base, goal=goal, bound=factor, better="less")
    times = Times.of(rounds.turns[contestant])
    time = dataclasses.replace(time, note=f"{times.wall_min:.2f} s", sides={"ours": times})
    return [time, memory]


def bptt_cost(plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """9: back-propagation through the whole CoT over the one teacher-forced pass; all lengths take turns."""
    say(f"back-propagation through {', '.join(map(str, plan.cot_lengths))} CoT steps, and the teacher-forced pass")
    contestants = {}
    for length in plan.cot_lengths:
        size = dataclasses.asdict(SIZES["S"])
        options = {"prompt": 16, "new_tokens": length + 1, "prompts": 1, "samples": 8, "size": size}
        contestants[f"through {length}"] = ("through_time", options | {"through": True})
        contestants[f"pass {length}"] = ("through_time", options | {"through": False})
    with workers(plan.threads, **contestants) as at:
        rounds = interleave({name: at[name].turn for name in at}, plan.through_s, plan.most)
    rows = []
    for length in plan.cot_lengths:
        case, through = f"{length} CoT tokens", Side("through time", f"through {length}")
        only_pass, whole = Side("pass", f"pass {length}", "pass_"), Side("step", f"pass {length}")
        rows += [
            rounds.row("bptt_cost", f"{case} time", through, only_pass),
            rounds.row("bptt_cost", f"{case} time, rollout and update counted", through, whole),
            rounds.memory_row("bptt_cost", f"{case} memory", through.contestant, whole.contestant),
        ]
    return rows


ITERATIONS = (0, 1, 2)  # K


def pathwise_cost(plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """10: the pathwise pass with K products over the score's, for CoT lengths and a head that is E or is not."""
    rows = []
    for tied, length in product((True, False), plan.cot_lengths):
        case = f"{length} CoT tokens{'' if tied else ', untied'}"
        say(f"pathwise and score over {case}")
        size = dataclasses.asdict(dataclasses.replace(SIZES["S"], tied=tied))
        load = {"prompt": 16, "new_tokens": length + 1, "prompts": 1, "samples": 32, "size": size}
        contestants = {name: ("estimator", load | {"estimator": name}) for name in ("score", "pathwise")}
        with workers(plan.threads, **contestants) as at:
            turns: dict[str, Callable[[], dict[str, float]]] = {"score": at["score"].turn}
            turns |= {f"K={k}": partial(at["pathwise"].turn, iterations=k) for k in ITERATIONS}
            rounds = interleave(turns, plan.through_s, plan.most)
        for k in ITERATIONS:
            rows += pathwise_rows(rounds, case, k)
    return rows


def pathwise_rows(rounds: Rounds, case: str, k: int) -> list[Row]:
    """Returns the ratios of the passes' time and memory.

    A pathwise pass has the score's forward pass, and its backward part may take 1 + 0.7 (K + 1) of the score's. The
    goal of the whole follows from the score's own parts.
    """
    ours, score = Side("pathwise", f"K={k}", "pass_"), Side("score", "score", "pass_")
    fastest, most = min(rounds.turns["score"], key=lambda turn: turn["pass_wall_s"]), 1 + 0.7 * (k + 1)
    whole, backward = fastest["pass_wall_s"], fastest["backward_wall_s"]
    goal = (whole - backward + most * backward) / whole
    time = rounds.row("pathwise_cost", f"{case}, K={k} time", ours, score, goal=goal, better="less")
    part = (time.sides["pathwise"].wall_min - (whole - backward)) / backward
    time.note = (
        f"backward part {part:.2f} of the score's (goal {most:.1f}), which is {backward / whole:.0%} of its pass"
    )
    memory = rounds.memory_row(
        "pathwise_cost", f"{case}, K={k} memory", ours.contestant, score.contestant, goal=1.2, better="less"
    )
    return [time, memory]
