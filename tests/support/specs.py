"""Specs of short training runs and small evaluations of a toy model."""

from __future__ import annotations

from typing import Any

from softtok.config.settings import GenerationSettings, TrainingSettings

TEMPLATE = "User: {question} Assistant:"
HARD: dict[str, Any] = {"tokens": "hard", "temperature": 1.0, "noise_scale": 0.0}
SOFT: dict[str, Any] = {"tokens": "soft", "temperature": 0.5, "noise_scale": 0.33}
FUZZY: dict[str, Any] = {"tokens": "soft", "temperature": 1e-4, "noise_scale": 0.33}
EVALUATION_MODES: dict[str, dict[str, Any]] = {
    "hard-greedy": {"tokens": "hard", "temperature": 0.0, "noise_scale": 0.0, "samples": 1},
    "hard-sample": {"tokens": "hard", "temperature": 1.0, "noise_scale": 0.0, "samples": 4},
    "soft-sample": {"tokens": "soft", "temperature": 0.5, "noise_scale": 0.33, "samples": 4},
    "fuzzy-greedy": {"tokens": "soft", "temperature": 1e-4, "noise_scale": 0.0, "samples": 1},
}
EVALUATION = GenerationSettings(max_cot_tokens=16, max_answer_tokens=4).model_dump()


def train_spec(mode: dict[str, Any] = SOFT, **training: Any) -> dict[str, Any]:
    """Returns the spec of six training steps in a mode; settings by name change it."""
    settings: dict[str, Any] = {
        "steps": 6, "samples_per_prompt": 8, "learning_rate": 1e-4, "warmup_steps": 2, "max_cot_tokens": 16,
        "max_answer_tokens": 4, "validation_problems": 8, "validate_every": 2,
    }  # fmt: skip
    resolved = TrainingSettings(**(settings | training)).model_dump()
    return {"model": {"prompt": TEMPLATE}, "mode": mode, "training": resolved, "seed": 0, "version": 1}


def evaluation_spec(*names: str) -> dict[str, Any]:
    """Returns the spec of an evaluation in these of `EVALUATION_MODES`."""
    return {"inference_modes": {name: EVALUATION_MODES[name] for name in names}, "evaluation": EVALUATION, "version": 1}
