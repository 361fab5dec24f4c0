"""What runs in a contestant's process: a function for each role.

It builds its work, says so in one line of JSON, and then takes turns: a line of JSON comes in, the work is done and
timed, a line goes out. Between turns it sleeps, so that contestants can wait side by side. Whatever libraries print
goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch
from transformers import TrainerCallback

from benchmarks import evaluation as cell
from benchmarks.work import LARGE_ROWS, SIZES, Ours, clocks, make_generate, make_trl, timed_backward
from softtok.config.flops import Load, Size
from softtok.models import language_model


class Turns:
    """The worker's side of the conversation."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.out, flush=True)

    def begin(self) -> dict[str, Any] | None:
        """Waits for a turn and starts the clocks; None when there are no more."""
        line = sys.stdin.readline()
        self.started = clocks()
        return json.loads(line) if line else None

    def end(self, **facts: Any) -> None:
        """Stops the clocks and reports."""
        wall, cpu = clocks() - self.started
        self.say(wall_s=wall, cpu_s=cpu, **facts)

    def serve(self, work: Callable[..., Any], **facts: Any) -> None:
        """Turns of `work`, which gets what the driver sends and may return facts."""
        self.say(**facts)
        while (job := self.begin()) is not None:
            self.end(**(work(**job) or {}))


class PeakMemory:
    """How far this process's memory grows while the block runs, in MB above what it held before (Linux)."""

    def __enter__(self) -> PeakMemory:
        with contextlib.suppress(OSError, AttributeError):  # what was freed and is kept by the allocator goes back
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.before = psutil.Process().memory_info().rss
        with open("/proc/self/clear_refs", "w") as file:  # the peak starts afresh
            file.write("5")
        return self

    def __exit__(self, *_: object) -> None:
        with open("/proc/self/status") as file:
            peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        self.mb = (peak * 1024 - self.before) / 1e6


TINY = (Size(32, 1, 2, 2, 32, 64), Load(prompt=4, new_tokens=4, samples=2))
"""What a process warms up on before its first turn: libraries import much at their first use."""


MICRO_BATCH_TOKENS = {"R": 4096}  # as the study smollm2 sets them: thirty layers' activations of all rows are 12 GB
"""By size; elsewhere the default."""


def ours(turns: Turns, size: str, **load: int) -> None:
    """softtok: steps in a mode, and the bare products that bounds are made of."""
    Ours(*TINY).step("soft")
    sizes: dict[str, Any] = {"micro_batch_tokens": MICRO_BATCH_TOKENS[size]} if size in MICRO_BATCH_TOKENS else {}
    work = Ours(SIZES[size], Load(**load), **sizes)

    def turn(what: str, mode: str = "") -> dict[str, float] | None:
        if what == "step":
            return work.step(mode)
        getattr(work, what)(*[mode] if mode else [])
        return None

    parameters = sum(parameter.numel() for parameter in work.lm.model.parameters())
    turns.serve(turn, digest=work.digest, parameters=parameters, large_rows=LARGE_ROWS)


def rates(turns: Turns, size: dict[str, Any], dtypes: list[str], **load: int) -> None:
    """Bare products of a size in several precisions, as softtok multiplies in each."""
    work = {name: Ours(Size(**size), Load(**load), getattr(torch, name)) for name in dtypes}

    def turn(what: str, dtype: str) -> None:
        getattr(work[dtype], what)()

    turns.serve(turn, large_rows=LARGE_ROWS)


def generate(turns: Turns, size: str, **load: int) -> None:
    """transformers' `generate()`."""
    make_generate(*TINY)[0]()
    once, digest = make_generate(SIZES[size], Load(**load))
    turns.serve(once, digest=digest)


def trl(turns: Turns, size: str, **load: int) -> None:
    """TRL's trainer, whose own loop waits for its turns at the beginning of a step."""

    class Waiting(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if turns.begin() is None:
                os._exit(0)  # in the middle of its loop; nothing is to be kept

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.end()

    with tempfile.TemporaryDirectory() as folder:
        make_trl(*TINY, folder, steps=1)[0].train()
        trainer, digest = make_trl(SIZES[size], Load(**load), folder, callbacks=[Waiting()])
        turns.say(digest=digest)
        trainer.train()


def growth(turns: Turns, size: dict[str, Any], **load: int) -> None:
    """A soft step on a size of its own, with its peak memory."""
    Ours(*TINY).step("soft")
    work = Ours(Size(**size), Load(**load))

    def turn() -> dict[str, float]:
        with PeakMemory() as memory:
            work.step("soft")
        return {"mb": memory.mb}

    turns.serve(turn)


def objective(turns: Turns, size: dict[str, Any], tile: int, **load: int) -> None:
    """The teacher-forced pass over one soft rollout, with its peak memory; `tile` tokens at a time."""
    Ours(*TINY).step("soft")
    work = Ours(Size(**size), Load(**load), tile_tokens=tile)
    out = work.rollout("soft")
    work.optimizer.zero_grad()

    def turn() -> dict[str, float]:
        with PeakMemory() as memory:
            work.update("soft", out)
        return {"mb": memory.mb}

    turns.serve(turn)


def estimator(turns: Turns, size: dict[str, Any], estimator: str, **load: int) -> None:
    """The teacher-forced pass over one soft rollout, its gradient by an estimator: its peak memory, and its parts."""
    Ours(*TINY).step("soft")
    work = Ours(Size(**size), Load(**load))
    out = work.rollout("soft")
    work.optimizer.zero_grad()

    def turn(iterations: int = 0) -> dict[str, float]:
        work.estimate(estimator, iterations)
        with PeakMemory() as memory, timed_backward() as backward:
            started = clocks()
            work.update("soft", out)
            whole = clocks() - started
        (wall, cpu), (backward_wall, _) = whole, backward
        return {"mb": memory.mb, "pass_wall_s": wall, "pass_cpu_s": cpu, "backward_wall_s": backward_wall}

    turns.serve(turn)


def through_time(turns: Turns, size: dict[str, Any], through: bool, **load: int) -> None:
    """Back-propagation through the whole CoT, or the teacher-forced pass (and the rollout that it needs)."""
    Ours(*TINY).step("soft")
    work = Ours(Size(**size), Load(**load))

    def turn() -> dict[str, float]:
        with PeakMemory() as memory:
            parts: dict[str, float] = {}
            if through:
                work.back_propagate_through()
            else:
                parts = work.step("soft")
        return {"mb": memory.mb, **parts}

    turns.serve(turn)


def beginning(turns: Turns, size: str, shared: bool, **load: int) -> None:
    """softtok's hard rollout of prompts that begin alike; not shared, each prompt is run and held whole."""
    Ours(*TINY).step("soft")
    work = Ours(SIZES[size], Load(**load))
    whole = mock.patch.object(language_model, "common_tokens", return_value=0)

    def turn() -> None:
        work.rollout("hard")

    with contextlib.nullcontext() if shared else whole:
        turns.serve(turn, digest=work.digest)


def evaluation(turns: Turns, folder: str, **options: Any) -> None:
    """One cell of `softtok evaluate` from a fresh start, hard tokens; options as in `evaluation.py`."""
    turns.serve(cell.evaluation(Path(folder), torch.get_num_threads(), **options))


ROLES = {
    role.__name__: role
    for role in (ours, rates, generate, trl, growth, objective, estimator, through_time, beginning, evaluation)
}


def main() -> None:
    """Takes its role and options from the command line."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ROLES[sys.argv[1]](Turns(), **json.loads(sys.argv[2]))
