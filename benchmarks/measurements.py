"""The nine measurements: each returns rows of the table. README.md says what each number means.

Every function gets the `Plan`: which cases, and for how many seconds each. The first three and the fifth share their
processes.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import bounds
from benchmarks.driver import Rounds, Row, Times, interleave, workers
from benchmarks.work import SIZES, Load, Size

ROLLOUT_GOALS = {"S": {64: 2.0, 256: 3.0}, "M": {64: 2.0, 256: 3.0}, "L": {64: 1.5, 256: 2.3}}
STEP_GOALS = {"hard": {64: 2.2, 256: 3.5}, "soft": {64: 1.6, 256: 2.5}, "fuzzy": {64: 1.6, 256: 2.5}}
FLOOR_GOALS = {"S": 4.0, "L": 1.5}
MODES = ("hard", "soft", "fuzzy")
# Without these no job on a model can do; imported as `softtok` imports them.
IMPORTS = "import gc; gc.disable(); import torch, transformers.models.llama.modeling_llama"
PRODUCTS = ("prefill", "decode_products", "torch_products", "mixture_products", "large_products")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how long: seconds bound the rounds of a case beyond the first (which is a whole one)."""

    name: str
    cells: list[tuple[str, Load, float]]  # size, load, seconds
    rollouts_s: float  # for a case's rounds of rollouts beside generate() and products
    modes_s: float  # and of rollouts in all modes
    objective: list[tuple[int, float]]  # width, seconds
    objective_vocabulary: int
    problems: int  # of the evaluation cell
    evaluation_s: float
    growth: dict[str, list[int]]  # axis -> factors of the base case
    growth_s: float
    cot_lengths: list[int]
    through_s: float
    starts: int
    threads: int = 2
    most: int = 5


ALL_ROUNDS_S = 1e6  # more than any case takes: all rounds are done
FULL = Plan(
    "full",
    cells=[
        ("S", Load(64), 20), ("S", Load(256), 20), ("M", Load(64), 20), ("M", Load(256), 20),
        # One prompt: TRL's step then holds some 15 GB already, nearly all of it activations.
        ("L", Load(64, prompts=1), 60), ("L", Load(256, prompts=1), 60),
    ],
    rollouts_s=16, modes_s=12,
    objective=[(64, 5), (512, 5)], objective_vocabulary=128_256,
    problems=100, evaluation_s=10,
    growth={"G": [1, 2, 4], "T": [1, 2, 4], "V": [1, 4, 16], "layers": [1, 2, 4]}, growth_s=25,
    cot_lengths=[4, 32, 128], through_s=12, starts=5,
)  # fmt: skip
LONG = dataclasses.replace(
    FULL, name="long",
    cells=[
        *[(name, load, ALL_ROUNDS_S) for name, load, _ in FULL.cells if name != "L"],
        ("L", Load(64, trl_batches=2), ALL_ROUNDS_S), ("L", Load(256, trl_batches=4), ALL_ROUNDS_S),
    ],
    rollouts_s=ALL_ROUNDS_S, modes_s=ALL_ROUNDS_S, objective=[(width, ALL_ROUNDS_S) for width, _ in FULL.objective],
    evaluation_s=ALL_ROUNDS_S, growth_s=ALL_ROUNDS_S, through_s=ALL_ROUNDS_S,
)  # fmt: skip
QUICK = Plan(
    "quick",
    cells=[("S", Load(64), 10)], rollouts_s=6, modes_s=3,
    objective=[(64, 2)], objective_vocabulary=16_000,
    problems=16, evaluation_s=5,
    growth={"G": [1, 4]}, growth_s=3,
    cot_lengths=[32], through_s=2, starts=1, most=3,
)  # fmt: skip
TINY = dataclasses.replace(
    QUICK, name="tiny", cells=[("S", Load(8, new_tokens=4, samples=4, trl_batches=2), 1)],
    objective=[], growth={}, cot_lengths=[], problems=0, starts=0, most=1,
)  # fmt: skip


# 1, 2, 3 and 5: one set of processes for each size and prompt length


@dataclass(frozen=True)
class Cell:
    """The rounds of one size and load: whole steps, ours and TRL's; our hard rollout, generate() and our bare products;
    our rollouts in all modes."""

    name: str
    size: Size
    load: Load
    steps: Rounds
    rollouts: Rounds
    modes: Rounds
    parameters: int
    large_rows: int

    @property
    def case(self) -> str:
        return f"{self.name} P={self.load.prompt}"

    @property
    def note(self) -> str:
        millions = f"{self.parameters / 1e6:.1f}M parameters"
        return f"{millions}, B={self.load.prompts}" if self.load.prompts != 2 else millions

    def least(self, name: str) -> float:
        """The least wall time that was seen of a rollout or its like, in seconds."""
        return min(turn["wall_s"] for turn in self.rollouts.turns[name])

    @property
    def rates(self) -> tuple[float, float]:
        """Operations per second of matrix products: those of a decode step, large ones."""
        decode = bounds.decode_product_flops(self.size, self.load) / self.least("decode_products")
        large = bounds.large_product_flops(self.size, self.large_rows) / self.least("large_products")
        return decode, max(decode, large)


def run_cell(plan: Plan, name: str, load: Load, seconds: float, say: Callable[[str], None]) -> Cell:
    """Times one cell of the plan."""
    say(f"{name} P={load.prompt} T={load.new_tokens} B={load.prompts} G={load.samples}: ours, TRL, generate()")
    options = {"size": name} | dataclasses.asdict(load)
    contestants = {role: (role, options) for role in ("ours", "trl", "generate")}
    with workers(plan.threads, **contestants) as at:
        digests = {worker.facts["digest"] for worker in at.values()}
        assert len(digests) == 1, "the same weights and prompts on all sides"
        ours, trl, generate = (at[role].turn for role in contestants)
        turns: dict[str, Callable[[], dict[str, float]]] = {"trl": trl}
        turns |= {mode: partial(ours, what="step", mode=mode) for mode in MODES}
        steps = interleave(turns, seconds, plan.most, least=1)
        # Rollouts get rounds of their own, many where TRL's steps leave time for few; ours are warm by now.
        ways: dict[str, Callable[[], dict[str, float]]] = {
            mode: partial(ours, what="rollout", mode=mode) for mode in MODES
        }
        turns = {"generate": generate, "hard": ways["hard"]}
        turns |= {name: partial(ours, what=name) for name in PRODUCTS if name != "torch_products" or has_floor(load)}
        rollouts = interleave(turns, plan.rollouts_s, plan.most, warm=True)
        # Ratios near 1 need turns that follow each other closely, and many.
        modes = interleave(ways, plan.modes_s, plan.most, warm=True)
        facts = at["ours"].facts
    return Cell(name, SIZES[name], load, steps, rollouts, modes, facts["parameters"], facts["large_rows"])


def rollout_vs_generate(cell: Cell) -> list[Row]:
    """1: tokens per second of our hard rollout over generate()'s."""
    decode_rate, large_rate = cell.rates
    least = bounds.least_rollout_s(cell.size, cell.load, "hard", decode_rate, large_rate)
    row = cell.rollouts.row(
        "rollout_vs_generate", cell.case, ("generate", ""), ("hard", ""), ("generate()", "ours"),
        goal=ROLLOUT_GOALS[cell.name].get(cell.load.prompt), bound=cell.least("generate") / least, note=cell.note,
    )  # fmt: skip
    assert row.ratio is not None and row.bound is not None
    share = Row(
        row.measurement, f"{cell.case}, share of the bound", row.ratio / row.bound, bound=1.0,
        goal=0.8 if cell.name == "L" else None, repeats=row.repeats, warm_up=row.warm_up, note=cell.note,
    )  # fmt: skip
    return [row, share]


def soft_vs_hard(cell: Cell) -> list[Row]:
    """2: tokens per second of our soft and fuzzy rollouts over our hard one's."""
    hard, product = min(turn["wall_s"] for turn in cell.modes.turns["hard"]), cell.least("mixture_products")
    predicted = {"soft": hard / (hard + product), "fuzzy": 1.0}
    return [
        cell.modes.row(
            f"{mode}_vs_hard", cell.case, ("hard", ""), (mode, ""), ("hard", mode),
            goal=share * predicted[mode], bound=predicted[mode], note=cell.note,
        )
        for mode, share in (("soft", 0.9), ("fuzzy", 0.95))
    ]  # fmt: skip


def step_vs_trl(cell: Cell) -> list[Row]:
    """3: steps per second of ours, in each mode, over TRL's with hard tokens."""
    return [
        cell.steps.row(
            "step_vs_trl", f"{cell.case} {mode}", ("trl", ""), (mode, ""), ("TRL", "ours"),
            goal=STEP_GOALS[mode].get(cell.load.prompt), note=cell.note,
            bound=min(turn["wall_s"] for turn in cell.steps.turns["trl"])
            / bounds.least_step_s(cell.size, cell.load, mode, *cell.rates),
        )
        for mode in MODES
    ]  # fmt: skip


def has_floor(load: Load) -> bool:
    """Whether the floor is measured with this load: once a size is enough, it has little to do with the prompt."""
    return load.prompt != 256


def rollout_floor(cell: Cell) -> list[Row]:
    """5: a decode step over its bare matrix products with the weights."""
    if not has_floor(cell.load):
        return []
    steps = cell.load.new_tokens
    turns, clocks = cell.rollouts.turns, ("wall_s", "cpu_s")
    decode = [
        {clock: (turn[clock] - first[clock]) / steps for clock in clocks}
        for turn, first in zip(turns["hard"], turns["prefill"], strict=True)
    ]
    bare = {name: [{clock: turn[clock] / steps for clock in clocks} for turn in turns[name]] for name in PRODUCTS}
    rounds = Rounds({"decode": decode, **bare}, cell.rollouts.warm_up)

    def over(name: str, case: str, goal: float | None, bound: float | None) -> Row:
        return rounds.row(
            "rollout_floor", case, ("decode", ""), (name, ""), ("decode step", "its products"),
            goal=goal, bound=bound, better="less", note=cell.note,
        )  # fmt: skip

    return [
        over("decode_products", cell.name, FLOOR_GOALS.get(cell.name), 1.0),
        over("torch_products", f"{cell.name}, products as PyTorch multiplies", None, None),
    ]


# 4


def objective_memory(plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """4: peak memory and time of the training pass, the vocabulary in tiles over all at once."""
    rows = []
    for width, seconds in plan.objective:
        say(f"objective d={width} V={plan.objective_vocabulary}: tiled and not")
        size = Size(width, 1, 4, 4, 2 * width, plan.objective_vocabulary)
        load = {"prompt": 16, "new_tokens": 256, "prompts": 2, "samples": 8, "size": dataclasses.asdict(size)}
        tiles = {"tiled": 512, "untiled": 10**9}
        contestants = {name: ("objective", load | {"tile": tile}) for name, tile in tiles.items()}
        with workers(plan.threads, **contestants) as at:
            rounds = interleave({name: at[name].turn for name in tiles}, seconds, plan.most, least=1)
        case = f"d={width} V={plan.objective_vocabulary}"
        rows += [
            _memory(
                rounds, "objective_memory", f"{case} memory", ("tiled", "untiled"), better="less",
                goal=1 / 5 if plan.objective_vocabulary == FULL.objective_vocabulary else None,
            ),
            rounds.row(
                "objective_memory", f"{case} time", ("tiled", ""), ("untiled", ""), ("tiled", "untiled"),
                goal=1.3, better="less",
            ),
        ]  # fmt: skip
    return rows


def _memory(rounds: Rounds, measurement: str, case: str, names: tuple[str, str], **facts: Any) -> Row:
    """The ratio of two contestants' peak memory (above what they held before)."""
    above, below = (max(turn["mb"] for turn in rounds.turns[name]) for name in names)
    return Row(
        measurement, case, above / below, repeats=rounds.repeats, warm_up=rounds.warm_up,
        note=f"{above:.0f} MB over {below:.0f} MB", **facts,
    )  # fmt: skip


# 6


def evaluate_throughput(plan: Plan, toy: Path, say: Callable[[str], None]) -> list[Row]:
    """6: a whole evaluation cell, finished rows dropped or not."""
    if not plan.problems:
        return []
    say(f"evaluation: {plan.problems} problems x 32 samples, rows dropped and not")
    options = {"folder": str(toy)}
    kept, dropped = options | {"drop_rows": False}, options | {"drop_rows": True}
    with workers(plan.threads, dropped=("evaluation", dropped), kept=("evaluation", kept)) as at:
        rounds = interleave({name: at[name].turn for name in at}, plan.evaluation_s, plan.most, least=1)
    decoded = {name: turns[0]["decode_rows"] for name, turns in rounds.turns.items()}
    return [
        rounds.row(
            "evaluate_throughput", f"{plan.problems} x 32", ("kept", ""), ("dropped", ""), ("all rows", "ours"),
            goal=1.5, bound=decoded["kept"] / decoded["dropped"],
            note=f"{decoded['dropped']:.0f} of {decoded['kept']:.0f} row steps; bound: their ratio",
        )
    ]  # fmt: skip


# 7


def workflow_overhead(plan: Plan, toy: Path, results: Path, say: Callable[[str], None]) -> list[Row]:
    """7: start-up of one job; what the demo's grid took beyond its jobs' work; dry run and check of what is done."""
    if not plan.starts:
        return []
    say("workflow: start-up of a job, dry runs")
    command = [
        sys.executable, "-m", "benchmarks.toy", "start", "train", "--spec", (toy / "train.json").read_text(),
        "--runtime", "{}", "--model", toy / "model", "--data", toy / "train.parquet",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        turns = [
            (_timed([*command, "--out", out]), _timed([sys.executable, "-c", IMPORTS])) for _ in range(plan.starts + 1)
        ][1:]
    startup, imports = (Times.of(list(times)) for times in zip(*turns, strict=True))
    rows = [
        Row(
            "workflow_overhead", "start-up of `softtok train`", startup.wall_min, goal=2.5, better="less", unit="s",
            spread=(startup.wall_min, startup.wall_max), median=startup.wall_median, repeats=plan.starts,
            sides={"start-up": startup, "libraries": imports},
            note=f"importing torch and transformers' Llama alone takes {imports.wall_min:.2f} s",
        )
    ]  # fmt: skip
    rows.append(grid_overhead(results, startup.wall_median))
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    rows.append(_snakemake("dry run of `paper`", [snakemake, "-n", "paper"], "paper", "", plan.starts))
    check, done = "check of a finished demo", "Nothing to be"
    row = _snakemake(check, [snakemake, "-n", "demo"], "demo", done, 1)
    if row.ratio is not None:  # a real run, which has nothing to do
        row = _snakemake(check, [snakemake, "--cores", "1", "demo"], "demo", done, plan.starts)
    return [*rows, row]


def _timed(command: list[Any]) -> dict[str, float]:
    """Wall and CPU time of a command; raises when it fails."""
    before, started = os.times(), time.perf_counter()
    made = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    wall, after = time.perf_counter() - started, os.times()
    if made.returncode:
        raise RuntimeError(f"{command[:4]}: status {made.returncode}: {made.stderr[-500:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": wall, "cpu_s": cpu}


def _snakemake(case: str, command: list[str], study: str, expected: str, repeats: int) -> Row:
    """Time of calls of Snakemake; no number when there is no such study or one does not say what is `expected`."""
    row = Row("workflow_overhead", case, None, goal=5.0, better="less", unit="s")
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        started = time.perf_counter()
        made = subprocess.run(command, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        text = made.stdout + made.stderr
        if "MissingRuleException" in text:
            row.note = f"config.yaml has no study {study}"
        elif made.returncode:
            row.note = "; ".join(text.strip().splitlines()[-1:])
        elif expected not in text:
            row.note = f"{study} is not finished here: `snakemake {study}` first"
        if row.note:
            return row
    warm = seconds[1:]
    row.ratio, row.median, row.spread, row.repeats = min(warm), statistics.median(warm), (min(warm), max(warm)), repeats
    return row


def grid_overhead(results: Path, startup_s: float) -> Row:
    """Of the demo's grid: 1 - (what its jobs worked) / (wall time x cores), from Snakemake's records of a finished one.

    A job's work is its time without the start-up, which one warm process would not have. The wall time runs from the
    first job's start to the last one's end, without times at which no job ran; the cores are those that were in use
    at most, for more than a second (a record's time ends a little after its job). Pretraining has two threads, all
    others one.
    """
    row = Row(
        "workflow_overhead", "demo grid: share not spent in work", None, goal=0.25, better="less", bound=0.0, unit=""
    )
    jobs = []  # start, end, threads
    for path in [*results.glob("benchmarks/models/toy-*.tsv"), *results.glob("benchmarks/runs/toy/*/**/*.tsv")]:
        seconds = float(path.read_text().splitlines()[1].split("\t")[0])
        end = path.stat().st_mtime
        jobs.append((end - seconds, end, 2 if path.parent.name == "models" else 1))
    if not (results / "reports" / "demo" / "report.html").exists() or not jobs:
        row.note = f"no finished demo in {results}: `make run` first"
        return row
    moments = sorted({moment for start, end, _ in jobs for moment in (start, end)})
    busy = [
        (after - before, sum(threads for start, end, threads in jobs if start <= before and after <= end))
        for before, after in pairwise(moments)
    ]
    wall = sum(span for span, load in busy if load)
    cores = max((load for span, load in busy if span > 1), default=1)
    work = sum(max(0.0, end - start - startup_s) * threads for start, end, threads in jobs)
    row.ratio, row.repeats = 1 - work / (wall * cores), 1
    row.note = f"{len(jobs)} jobs worked {work:.0f} of {wall:.0f} s x {cores} cores"
    return row


# 8


def growth(plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """8: time and memory of a soft step as one number grows and the others stay; all points take turns."""
    base = {"G": 16, "T": 32, "V": 2048, "layers": 2}
    points = {
        axis: {f"{axis}={base[axis] * factor}": base | {axis: base[axis] * factor} for factor in factors}
        for axis, factors in plan.growth.items()
    }
    if not points:
        return []
    say(f"growth: {', '.join(points)}")
    contestants = {}  # by all their numbers, for the axes share their first point
    for now in (now for axis in points.values() for now in axis.values()):
        size = dataclasses.asdict(Size(128, now["layers"], 4, 2, 384, now["V"]))
        options = {"prompt": 64, "new_tokens": now["T"], "prompts": 2, "samples": now["G"], "size": size}
        contestants[str(now)] = ("growth", options)
    with workers(plan.threads, **contestants) as at:
        rounds = interleave({name: at[name].turn for name in at}, plan.growth_s, plan.most)
    wall_s = {name: min(turn["wall_s"] for turn in turns) for name, turns in rounds.turns.items()}
    mb = {name: max(turn["mb"] for turn in turns) for name, turns in rounds.turns.items()}
    rows: list[Row] = []
    for axis, factors in plan.growth.items():
        for (name, now), factor in zip(points[axis].items(), factors, strict=True):
            for what, seen, form in (("time", wall_s, "{:.2f} s"), ("memory", mb, "{:.0f} MB")):
                row = Row(
                    "growth", f"{name} {what}", seen[str(now)] / seen[str(base)],
                    goal=1.15 * factor if factor > 1 else None, better="less", bound=float(factor),
                    repeats=rounds.repeats, warm_up=rounds.warm_up, note=form.format(seen[str(now)]),
                    sides={"ours": Times.of(rounds.turns[str(now)])} if what == "time" else {},
                )  # fmt: skip
                rows.append(row)
    return rows


# 9


def bptt_cost(plan: Plan, say: Callable[[str], None]) -> list[Row]:
    """9: back-propagation through the whole CoT over the one teacher-forced pass; all lengths take turns."""
    if not plan.cot_lengths:
        return []
    say(f"back-propagation through {', '.join(map(str, plan.cot_lengths))} CoT steps, and the teacher-forced pass")
    contestants = {}
    for length in plan.cot_lengths:
        options = {
            "prompt": 16, "new_tokens": length + 1, "prompts": 1, "samples": 8, "size": dataclasses.asdict(SIZES["S"])
        }  # fmt: skip
        contestants[f"through {length}"] = ("through_time", options | {"through": True})
        contestants[f"pass {length}"] = ("through_time", options | {"through": False})
    with workers(plan.threads, **contestants) as at:
        rounds = interleave({name: at[name].turn for name in at}, plan.through_s, plan.most)
    rows = []
    for length in plan.cot_lengths:
        case, through, short = f"{length} CoT tokens", f"through {length}", f"pass {length}"
        rows += [
            rounds.row("bptt_cost", f"{case} time", (through, ""), (short, "pass_"), ("through time", "pass")),
            rounds.row(
                "bptt_cost", f"{case} time, rollout and update counted", (through, ""), (short, ""),
                ("through time", "step"),
            ),
            _memory(rounds, "bptt_cost", f"{case} memory", (through, short)),
        ]  # fmt: skip
    return rows


def make_toy(plan: Plan, folder: Path, say: Callable[[str], None]) -> Path:
    """The toy of measurements 6 and 7, made once and kept."""
    toy = folder / f"toy-{plan.problems}"
    if plan.problems and not (toy / "train.json").exists():
        say("pretraining a toy for the evaluation cell")
        _timed([sys.executable, "-m", "benchmarks.toy", "make", toy, plan.problems])
    return toy
