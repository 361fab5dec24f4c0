"""Jobs that tests stop in the middle of their work."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Process = subprocess.Popen[str]

SLOW_JOB = r"""
import sys, time
from softtok.__main__ import main
from softtok.evaluation import choices
from softtok.evaluation.evaluate import Cells
from softtok.models.language_model import LanguageModel
from softtok.training.train import Trainer

NAME, STEP, BEFORE, SECONDS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
owner = {"complete": Cells, "log_likelihoods": choices}.get(NAME, Trainer)
inside, passes = False, 0
method, hidden = getattr(owner, NAME), LanguageModel.hidden

def noted(self, *arguments):
    global inside
    inside = owner is not Trainer or self.state.step == STEP
    made = method(self, *arguments)
    inside = False
    return made

def slow(self, *arguments):
    global passes
    passes += inside
    if passes > BEFORE:
        if passes == BEFORE + 1:
            print("in the middle", flush=True)
        time.sleep(SECONDS)
    return hidden(self, *arguments)

setattr(owner, NAME, noted)
LanguageModel.hidden = slow
sys.exit(main(sys.argv[5:]))
"""


@contextmanager
def slow_job(command: list[str], inside: str, step: int, before: int, seconds: float) -> Iterator[Process]:
    """Starts a job whose passes through the model sleep; yields it in the first of these.

    They are those of a method at a training step, or of an evaluation or a choice set, but for `before` passes.
    """
    script = [sys.executable, "-c", SLOW_JOB, inside, str(step), str(before), str(seconds)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*script, *command], **pipes) as process:
        try:
            assert process.stdout is not None
            found = list(itertools.takewhile(lambda line: line != "in the middle\n", process.stdout))
            assert process.poll() is None, (found, process.communicate())
            yield process
        finally:
            process.kill()


def stop(process: Process, *signals: signal.Signals, apart_s: float = 0) -> tuple[float, str]:
    """Sends signals; returns the seconds until a job has ended, and what it printed."""
    for number in signals:
        begun = time.monotonic()
        process.send_signal(number)
        if number is not signals[-1]:
            time.sleep(apart_s)
    _, printed = process.communicate(timeout=120)
    return time.monotonic() - begun, printed
