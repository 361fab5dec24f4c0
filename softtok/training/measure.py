"""Measures what the parts of a training cost on this machine, with its own model, data and settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from softtok.config.settings import RuntimeSettings
from softtok.config.specs import RunSpec
from softtok.config.work import TrainingCost, training_counts
from softtok.training.train import Trainer

MOST_PROBLEMS = 32  # of a validation; more of them take proportionally longer


def measure_training(
    spec: RunSpec, runtime: RuntimeSettings, model: Path, data: Path, folder: Path, shots: Path | None = None
) -> TrainingCost:
    """Starts a training in an empty folder, and takes one of each of its parts; what it writes there is of no use."""
    start = time.perf_counter()
    trainer = Trainer(spec, runtime, model, data, folder, shots)
    ready_s = time.perf_counter() - start
    counts = training_counts(trainer.settings, runtime.save_every)
    held_out = len(trainer.validation)
    trainer.validation = trainer.validation[:MOST_PROBLEMS]
    with trainer.judge:
        validation_s = seconds(trainer.validate) * held_out / len(trainer.validation)
        step_s = seconds(lambda: trainer.take_step(1))
        # The gradient's norms are measured in the steps before validations.
        of_interest = trainer.settings.validate_every
        measured_step_s = seconds(lambda: trainer.take_step(of_interest)) if counts.measured_steps else step_s
    weights_s = seconds(trainer.state.save_weights)
    save_s = seconds(trainer.state.save) if counts.saves else 0.0  # what training waits; a thread writes the save
    trainer.state.settle(wait=True)
    return TrainingCost(
        ready_s=ready_s,
        step_s=step_s,
        measured_step_s=measured_step_s,
        validation_s=validation_s,
        save_s=save_s,
        weights_s=weights_s,
    )


def seconds(part: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    part()
    return time.perf_counter() - start
