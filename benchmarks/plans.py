"""How much is measured: the plans of `make bench`, its -long, -quick and -real, and the tiny one that tests run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from softtok.config.flops import Load


@dataclass(frozen=True)
class Plan:
    """The cases of each measurement, and the seconds that the rounds of a case may take beyond the first round."""

    name: str
    cells: list[tuple[str, Load, float]]  # size, load, seconds
    rollouts_s: float  # for a case's rounds of rollouts beside generate() and products
    modes_s: float  # for its rounds of rollouts in all modes
    objective: list[tuple[int, float]]  # width, seconds
    objective_vocabulary: int
    problems: int  # of the evaluation cell
    evaluation_s: float
    beginning: tuple[str, Load, float]  # size, problems that begin alike, seconds
    growth: dict[str, list[int]]  # axis -> factors of the base case
    growth_s: float
    cot_lengths: list[int]
    through_s: float
    starts: int  # of a job and of each Snakemake command
    warm_starts: int = 1  # before those, which warm up
    pretraining_steps: int = 100  # of the toy that is evaluated
    study_runs: int = 1000  # of the study whose dry run is timed
    rates: str = "R"  # size of the products whose rates stand in the head
    threads: int = 2
    most: int = 5  # rounds that count


ALL_ROUNDS_S = 1e6  # more than any case takes, so that all rounds are done
# Of size R, the shape of a pretrained model. TRL's activations of all rows at once would take 20 and 30 GB.
REAL_SHORT = Load(170, new_tokens=24, trl_batches=2)
REAL_LONG = Load(170, new_tokens=128, trl_batches=4)
FULL = Plan(
    "full",
    cells=[
        ("S", Load(64), 20),
        ("S", Load(256), 20),
        ("M", Load(64), 20),
        ("M", Load(256), 20),
        # One prompt: TRL's step then holds some 15 GB already, nearly all of it activations.
        ("L", Load(64, prompts=1), 60),
        ("L", Load(256, prompts=1), 60),
    ],
    rollouts_s=16,
    modes_s=12,
    objective=[(64, 5), (512, 5)],
    objective_vocabulary=128_256,
    problems=100,
    evaluation_s=10,
    beginning=("M", Load(64, new_tokens=64, prompts=100, samples=1, common=512), 15),
    growth={"G": [1, 2, 4], "T": [1, 2, 4], "V": [1, 4, 16], "layers": [1, 2, 4]},
    growth_s=25,
    cot_lengths=[4, 32, 128],
    through_s=12,
    starts=5,
)
LONG = dataclasses.replace(
    FULL,
    name="long",
    cells=[
        *[(name, load, ALL_ROUNDS_S) for name, load, _ in FULL.cells if name != "L"],
        ("L", Load(64, trl_batches=2), ALL_ROUNDS_S),
        ("L", Load(256, trl_batches=4), ALL_ROUNDS_S),
    ],
    rollouts_s=ALL_ROUNDS_S,
    modes_s=ALL_ROUNDS_S,
    objective=[(width, ALL_ROUNDS_S) for width, _ in FULL.objective],
    evaluation_s=ALL_ROUNDS_S,
    beginning=(*FULL.beginning[:2], ALL_ROUNDS_S),
    growth_s=ALL_ROUNDS_S,
    through_s=ALL_ROUNDS_S,
)
REAL = dataclasses.replace(
    FULL,
    name="real",
    cells=[("R", REAL_SHORT, 330), ("R", REAL_LONG, 650)],
    rollouts_s=90,
    modes_s=60,
    most=3,
)
QUICK = Plan(
    "quick",
    cells=[("S", Load(64), 10), ("R", Load(170, new_tokens=8, prompts=1, samples=4), 0)],
    rollouts_s=6,
    modes_s=3,
    objective=[(64, 2)],
    objective_vocabulary=16_000,
    problems=16,
    evaluation_s=5,
    beginning=("S", Load(32, new_tokens=16, prompts=32, samples=1, common=256), 2),
    growth={"G": [1, 4]},
    growth_s=3,
    cot_lengths=[32],
    through_s=2,
    starts=1,
    most=3,
)
TINY = Plan(
    "tiny",
    cells=[("S", Load(8, new_tokens=4, samples=4, trl_batches=2), 0)],
    rollouts_s=0,
    modes_s=0,
    objective=[(32, 0)],
    objective_vocabulary=4096,
    problems=2,
    evaluation_s=0,
    beginning=("S", Load(4, new_tokens=2, prompts=8, samples=1, common=32), 0),
    growth={"G": [1, 2]},
    growth_s=0,
    cot_lengths=[2],
    through_s=0,
    starts=1,
    warm_starts=0,
    pretraining_steps=0,
    study_runs=20,
    rates="S",
    most=1,
)
