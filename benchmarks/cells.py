"""Measurements 1, 2, 3 and 5, which share one set of processes for each size and prompt length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import bounds
from benchmarks.driver import Rounds, Row, Side, interleave, workers
from benchmarks.plans import REAL_LONG, REAL_SHORT, Plan
from benchmarks.work import MODES, SIZES
from softtok.config.flops import Load, Size

REAL_SHARE = 0.75  # of what arithmetic allows, at size R where thoughts are long
ROLLOUT_GOALS = {"S": {64: 2.0, 256: 3.0}, "M": {64: 2.0, 256: 3.0}, "L": {64: 1.5, 256: 2.3}}  # by P
STEP_GOALS = {"hard": {64: 2.2, 256: 3.5}, "soft": {64: 1.6, 256: 2.5}, "fuzzy": {64: 1.6, 256: 2.5}}
REAL_ROLLOUT_GOAL = 2.5  # of size R where thoughts are short
REAL_STEP_GOALS = {"hard": 4.0, "soft": 3.0, "fuzzy": 3.0}
FLOOR_GOALS = {"S": 4.0, "L": 1.5}
PRODUCTS = ("prefill", "decode_products", "torch_products", "mixture_products", "large_products")

Turn = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Cell:
    """The rounds of one size and load.

    `steps`: whole steps, ours in all modes and TRL's. `rollouts`: our hard rollout, generate() and our bare products.
    `modes`: our rollouts in all modes.
    """

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
        """What the table calls this cell; T where it is not 64."""
        steps = self.load.new_tokens
        return f"{self.name} P={self.load.prompt}" + (f" T={steps}" if steps != Load.new_tokens else "")

    @property
    def note(self) -> str:
        """What the table adds: the number of parameters, and of prompts where it is not 2."""
        millions = f"{self.parameters / 1e6:.1f}M parameters"
        return f"{millions}, B={self.load.prompts}" if self.load.prompts != 2 else millions

    def least(self, name: str) -> float:
        """Returns the least wall time of a rollout or its like, in seconds."""
        return min(turn["wall_s"] for turn in self.rollouts.turns[name])

    @property
    def rates(self) -> tuple[float, float]:
        """Operations per second of matrix products: those of a decode step, and large ones."""
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
        assert len(digests) == 1, "the weights and prompts differ between the sides"
        ours, trl, generate = (at[role].turn for role in contestants)
        turns: dict[str, Turn] = {"trl": trl}
        turns |= {mode: partial(ours, what="step", mode=mode) for mode in MODES}
        steps = interleave(turns, seconds, plan.most, least=1)
        # Rollouts get rounds of their own, many where TRL's steps leave time for few; ours are warm by now.
        ways: dict[str, Turn] = {mode: partial(ours, what="rollout", mode=mode) for mode in MODES}
        turns = {"generate": generate, "hard": ways["hard"]}
        turns |= {name: partial(ours, what=name) for name in PRODUCTS if name != "torch_products" or has_floor(load)}
        rollouts = interleave(turns, plan.rollouts_s, plan.most, warm=True)
        # Ratios near 1 need turns that follow each other closely, and many of them.
        modes = interleave(ways, plan.modes_s, plan.most, warm=True)
        facts = at["ours"].facts
    return Cell(name, SIZES[name], load, steps, rollouts, modes, facts["parameters"], facts["large_rows"])


def rollout_vs_generate(cell: Cell) -> list[Row]:
    """1: tokens per second of our hard rollout over generate()'s."""
    bound = cell.least("generate") / bounds.least_rollout_s(cell.size, cell.load, "hard", *cell.rates)
    sides = Side("generate()", "generate"), Side("ours", "hard")
    row = cell.rollouts.row("rollout_vs_generate", cell.case, *sides, goal=rollout_goal(cell), bound=bound)
    share = Row(
        row.measurement,
        f"{cell.case}, share of the bound",
        cell.least("generate") / cell.least("hard") / bound,
        bound=1.0,
        goal=0.8 if cell.name == "L" else REAL_SHARE if is_long(cell) else None,
        repeats=row.repeats,
        warm_up=row.warm_up,
    )
    return _noted([row, share], cell)


def soft_vs_hard(cell: Cell) -> list[Row]:
    """2: tokens per second of our soft and fuzzy rollouts over our hard one."""
    hard, product = min(turn["wall_s"] for turn in cell.modes.turns["hard"]), cell.least("mixture_products")
    rows = []
    for mode, predicted, share in (("soft", hard / (hard + product), 0.9), ("fuzzy", 1.0, 0.95)):
        goal, sides = share * predicted, (Side("hard", "hard"), Side(mode, mode))
        rows.append(cell.modes.row(f"{mode}_vs_hard", cell.case, *sides, goal=goal, bound=predicted))
    return _noted(rows, cell)


def step_vs_trl(cell: Cell) -> list[Row]:
    """3: steps per second of ours, in each mode, over TRL's with hard tokens."""
    trl_s = min(turn["wall_s"] for turn in cell.steps.turns["trl"])
    rows = []
    for mode in MODES:
        bound = trl_s / bounds.least_step_s(cell.size, cell.load, mode, *cell.rates)
        sides = Side("TRL", "trl"), Side("ours", mode)
        goal = step_goal(cell, mode)
        rows.append(cell.steps.row("step_vs_trl", f"{cell.case} {mode}", *sides, goal=goal, bound=bound))
    return _noted(rows, cell)


def is_short(cell: Cell) -> bool:
    """Whether the cell is that of size R with short thoughts, whose goals are numbers."""
    return (cell.name, cell.load) == ("R", REAL_SHORT)


def is_long(cell: Cell) -> bool:
    """Whether the cell is that of size R with long thoughts, whose goals are shares of what arithmetic allows."""
    return (cell.name, cell.load) == ("R", REAL_LONG)


def rollout_goal(cell: Cell) -> float | None:
    """Returns the goal of our hard rollout over generate()."""
    if is_long(cell):
        return REAL_SHARE * bounds.rollout_advantage(cell.size, cell.load)
    return REAL_ROLLOUT_GOAL if is_short(cell) else ROLLOUT_GOALS.get(cell.name, {}).get(cell.load.prompt)


def step_goal(cell: Cell, mode: str) -> float | None:
    """Returns the goal of our steps in a mode over TRL's."""
    if is_long(cell):
        return REAL_SHARE * bounds.step_advantage(cell.size, cell.load, mode)
    return REAL_STEP_GOALS[mode] if is_short(cell) else STEP_GOALS[mode].get(cell.load.prompt)


def has_floor(load: Load) -> bool:
    """Whether the floor is measured with this load: once a size is enough, it has little to do with P and T."""
    return load.prompt != 256 and load != REAL_LONG


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
    step, name, goal = Side("decode step", "decode"), cell.name, FLOOR_GOALS.get(cell.name)
    ours, torchs = Side("its products", "decode_products"), Side("its products", "torch_products")
    rows = [
        rounds.row("rollout_floor", name, step, ours, goal=goal, bound=1.0, better="less"),
        rounds.row("rollout_floor", f"{name}, products as PyTorch multiplies", step, torchs, better="less"),
    ]
    return _noted(rows, cell)


def _noted(rows: list[Row], cell: Cell) -> list[Row]:
    """Returns the rows with the cell's note."""
    return [dataclasses.replace(row, note=cell.note) for row in rows]
