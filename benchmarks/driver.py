"""The driver's tools: contestants in fresh processes that take turns, and what their times add up to.

Contestants of a measurement live side by side, each in a process of its own that sleeps between its turns. A round is
one turn of each; every other round goes backwards, so that a machine that slows down slows all alike. The first round
warms up and is forgotten, unless it is a long one and there is time for no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict, Unpack

ROUNDS = 5  # that count
LONG_ROUND_S = 15.0


@dataclass(frozen=True)
class Times:
    """Wall and CPU seconds of one side over the rounds that count."""

    wall_min: float
    wall_median: float
    wall_max: float
    cpu_min: float
    cpu_median: float

    @classmethod
    def of(cls, turns: list[dict[str, float]], part: str = "") -> Times:
        """`part`: of a turn, as in "rollout_"."""
        wall, cpu = ([turn[f"{part}{clock}_s"] for turn in turns] for clock in ("wall", "cpu"))
        return cls(min(wall), statistics.median(wall), max(wall), min(cpu), statistics.median(cpu))


@dataclass
class Row:
    """One line of the table.

    `ratio` is that of the minima of wall time, unless `note` says otherwise; `spread` are the lowest and the highest
    ratio of single rounds.
    """

    measurement: str
    case: str
    ratio: float | None
    goal: float | None = None
    better: str = "more"  # or "less"
    bound: float | None = None
    spread: tuple[float, float] | None = None
    median: float | None = None
    unit: str = "x"
    repeats: int = 0
    warm_up: bool = True
    sides: dict[str, Times] = field(default_factory=dict)
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is; None without a goal or a number."""
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio >= self.goal if self.better == "more" else self.ratio <= self.goal

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"reached": self.reached}


class Worker:
    """A contestant's process, from the driver's side."""

    def __init__(self, role: str, threads: int, **options: Any):
        self.role, self.log = role, tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", role, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | environment,
        )
        self.facts: dict[str, Any] = {}

    def ready(self) -> None:
        """Waits until its work is built."""
        self.facts = self._listen()

    def turn(self, **job: Any) -> dict[str, float]:
        """One turn; what it took."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_listen` tells why
            print(json.dumps(job), file=self.process.stdin, flush=True)
        return self._listen()

    def _listen(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"{self.role}: ended with status {self.process.wait()}\n{self.log.read()[-2000:]}")
        facts: dict[str, Any] = json.loads(line)
        return facts

    def close(self) -> None:
        self.process.communicate()  # closes its stdin, and so ends it
        self.log.close()


@contextlib.contextmanager
def workers(threads: int, **contestants: tuple[str, dict[str, Any]]) -> Iterator[dict[str, Worker]]:
    """Processes by name, all of them built before the first turn; each is (role, options)."""
    started: dict[str, Worker] = {}
    try:
        for name, (role, options) in contestants.items():
            started[name] = Worker(role, threads, **options)
        for worker in started.values():
            worker.ready()
        yield started
    finally:
        for worker in started.values():
            worker.close()


class Facts(TypedDict, total=False):
    """What a measurement says of a row besides its numbers; the fields are `Row`'s."""

    goal: float | None
    better: str
    bound: float | None


@dataclass(frozen=True)
class Side:
    """One side of a ratio: what it is called in the results, whose turns it takes, and which part of each turn."""

    label: str
    contestant: str
    part: str = ""


@dataclass(frozen=True)
class Rounds:
    """The turns of each contestant that count, and whether a round before them warmed up."""

    turns: dict[str, list[dict[str, float]]]
    warm_up: bool

    @property
    def repeats(self) -> int:
        return len(next(iter(self.turns.values())))

    def row(self, measurement: str, case: str, over: Side, under: Side, **facts: Unpack[Facts]) -> Row:
        """Returns the ratio of two sides' wall times; `over` is the numerator."""
        above, below = ([turn[f"{side.part}wall_s"] for turn in self.turns[side.contestant]] for side in (over, under))
        singles = [a / b for a, b in zip(above, below, strict=True)]
        return Row(
            measurement,
            case,
            min(above) / min(below),
            spread=(min(singles), max(singles)),
            median=statistics.median(above) / statistics.median(below),
            repeats=self.repeats,
            warm_up=self.warm_up,
            sides={side.label: Times.of(self.turns[side.contestant], side.part) for side in (over, under)},
            **facts,
        )

    def memory_row(self, measurement: str, case: str, over: str, under: str, **facts: Unpack[Facts]) -> Row:
        """Returns the ratio of two contestants' peak memory above what they held before."""
        above, below = (max(turn["mb"] for turn in self.turns[name]) for name in (over, under))
        return Row(
            measurement,
            case,
            above / below if below > 0 else None,
            repeats=self.repeats,
            warm_up=self.warm_up,
            note=f"{above:.0f} MB over {below:.0f} MB",
            **facts,
        )


def interleave(
    contestants: dict[str, Callable[[], dict[str, float]]],
    seconds: float,
    most: int = ROUNDS,
    least: int = 2,
    warm: bool = False,
) -> Rounds:
    """Runs rounds of one turn each, while the next would end within `seconds`.

    At most `most` and at least `least` rounds count. The first warms up, unless all contestants are `warm`; it counts
    if it took more than `LONG_ROUND_S` and the time allows no other, because warming up is then a small part of it.
    """
    started = time.perf_counter()
    rounds: list[dict[str, dict[str, float]]] = []
    forgotten = 0 if warm else 1
    while len(rounds) < most + forgotten:
        began = time.perf_counter()
        names = list(contestants)[:: -1 if len(rounds) % 2 else 1]
        rounds.append({name: contestants[name]() for name in names})
        now = time.perf_counter()
        enough = len(rounds) >= min(least, most) + forgotten or (not warm and now - began > LONG_ROUND_S)
        if enough and now - started + (now - began) > seconds:
            break
    counted = rounds[forgotten:] or rounds
    return Rounds({name: [turns[name] for turns in counted] for name in contestants}, warm or len(rounds) > 1)
