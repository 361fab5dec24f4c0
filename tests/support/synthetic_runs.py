"""Made-up runs in the shape that training and evaluation leave behind, with known success rates per problem.

`write_study` writes the files of a whole study below a folder and returns a sketch of its report spec, a plain mapping
that tests may change and `report_specs.py` completes. The rates of all problems come from `rates`, so that a test can
compare what the report says with the truth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from softtok.config.specs import ReportSpec
from tests.support.specs import base_spec, hub_model, toy_model

MADE_ON = "cpu, fp32"
INFERENCE_MODES: dict[str, dict[str, Any]] = {
    "hard-greedy": {"tokens": "hard", "temperature": 0.0, "noise_scale": 0.0, "samples": 1},
    "hard-sample": {"tokens": "hard", "temperature": 1.0, "noise_scale": 0.0, "samples": 32},
    "soft-greedy": {"tokens": "soft", "temperature": 0.5, "noise_scale": 0.0, "samples": 1},
    "soft-sample": {"tokens": "soft", "temperature": 0.5, "noise_scale": 0.33, "samples": 32},
    "fuzzy-greedy": {"tokens": "soft", "temperature": 1e-4, "noise_scale": 0.0, "samples": 1},
    "fuzzy-sample": {"tokens": "soft", "temperature": 1e-4, "noise_scale": 0.33, "samples": 32},
}
_SKILL = {"base": -0.9, "hard": 0.5, "soft": -0.1, "fuzzy": 0.4}  # mean logit of success under sampling
_SPREAD = {"base": 1.3, "hard": 2.6, "soft": 1.6, "fuzzy": 1.8}  # over problems: a wide one means lost diversity
_ENTROPY = {"base": 0.9, "hard": 0.35, "soft": 0.8, "fuzzy": 0.75}


def rates(mode: str, inference_mode: str, test_set: str, problems: int) -> np.ndarray:
    """Returns the chance of success of each problem, the same for all seeds."""
    shift = -2.2 if test_set.startswith("long") else 0.0
    shift += {"soft": -0.4, "fuzzy": -0.2}.get(inference_mode.split("-")[0], 0.0) if mode != "base" else 0.0
    shift += 1.0 if inference_mode.endswith("greedy") else 0.0
    quantiles = (np.arange(problems) + 0.5) / problems
    logits = _SKILL.get(mode, 0.2) + shift + _SPREAD.get(mode, 1.5) * np.log(quantiles / (1 - quantiles)) / 1.8
    return 1 / (1 + np.exp(-logits))


def write_study(
    root: Path,
    models: tuple[str, ...] = ("toy",),
    train_sets: tuple[str, ...] = ("sums",),
    modes: tuple[str, ...] = ("hard", "soft", "fuzzy"),
    seeds: int = 3,
    test_sets: tuple[str, ...] = ("sums", "long-sums"),
    choice_sets: tuple[str, ...] = ("order",),
    inference_modes: dict[str, dict[str, Any]] = INFERENCE_MODES,
    problems: int = 120,
    steps: int = 200,
    cot: int = 48,
    toy: bool = True,
    diverged: tuple[tuple[str, int], ...] = (),
    wobble: float = 0.12,
) -> dict[str, Any]:
    """Writes runs, evaluations and choices below `root` and returns the sketch of a report's spec.

    `wobble` is the standard deviation of a seed's logit around the known rates.
    """
    rng = np.random.default_rng(7)
    runs = []
    for model in models:
        plan = [("none", "base", 0), *((t, m, s) for t in train_sets for m in modes for s in range(seeds))]
        for train_set, mode, seed in plan:
            path = f"results/runs/{model}/{train_set}/{mode}/seed{seed}-0123abcd"
            runs.append({"model": model, "train_set": train_set, "mode": mode, "seed": seed, "path": path})
            run = root / path
            (run / "eval").mkdir(parents=True)
            _write_training(run, model, mode, seed, steps, cot, toy, rng, (mode, seed) in diverged)
            for test_set in test_sets:
                _write_cell(run / "eval" / test_set, mode, test_set, inference_modes, problems, cot, wobble, rng)
            for choice_set in choice_sets:
                _write_choices(run / "choices", choice_set, mode, problems, rng)
    return {
        "study": "demo",
        "version": 1,
        "title": "A tiny grid, end to end",
        "runs": runs,
        "tests": {test_set: {"six": "89ab4567"} for test_set in test_sets},
        "choices": {choice_set: "cdef0123" for choice_set in choice_sets},
        "inference_modes": inference_modes,
        "order": {
            "models": list(models),
            "train_sets": list(train_sets),
            "training_modes": list(modes),
            "test_sets": list(test_sets),
            "choice_sets": list(choice_sets),
        },
        "data": {"train": {}, "test": {}},
        "paper": {},
        "config": {
            "models": {
                model: {"toy": {"width": 128, "layers": 4}} if toy else {"hub": f"org/{model}"} for model in models
            },
            "training": {"steps": steps, "prompts_per_step": 2, "samples_per_prompt": 32, "learning_rate": 1e-5},
            "inference_modes": inference_modes,
            "studies": {"demo": {"training_modes": list(modes), "seeds": list(range(seeds))}},
        },
    }


def write_data(root: Path, spec: ReportSpec) -> None:
    """Writes prepared data sets of a spec, as far as a report reads them, with questions of their own."""
    for kind, paths in spec.data.items():
        for name, path in paths.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame({"question": [f"{kind} {name} {i}" for i in range(3)]}).to_parquet(root / path)


def write_planned(
    root: Path, spec: ReportSpec, problems: int = 4, steps: int = 4, cot: int = 8,
    diverged: tuple[tuple[str, int], ...] = (),
) -> None:  # fmt: skip
    """Writes below `root` just what a study's own report spec plans, at its own paths."""
    rng = np.random.default_rng(7)
    write_data(root, spec)
    for entry in spec.runs:
        run, mode = root / entry.path, entry.training_mode
        (run / "eval").mkdir(parents=True)
        _write_training(run, entry.model, mode, entry.seed, steps, cot, False, rng, (mode, entry.seed) in diverged)
        for test_set, sets in entry.tests.items():
            for name, h8 in sets.items():
                modes = {one: spec.inference_modes[one].model_dump() for one in spec.inference_sets[name]}
                for settings in modes.values():
                    settings["samples"] = min(settings["samples"], spec.samples.get(test_set, settings["samples"]))
                cell = run / "eval" / test_set
                _write_cell(cell, mode, test_set, modes, problems, cot, 0.1, rng, f"{name}-{h8}")
        for choice_set, h8 in entry.choices.items():
            _write_choices(run / "choices", choice_set, mode, problems, rng, h8)


def _write_training(
    run: Path,
    model: str,
    mode: str,
    seed: int,
    steps: int,
    cot: int,
    toy: bool,
    rng: np.random.Generator,
    diverged: bool,
) -> None:
    lines: list[dict[str, Any]] = []
    if mode != "base":
        lines = [{"step": 0, "validation": 68.0 + rng.normal(0, 0.5)}]
        gain = {"hard": 24, "soft": 10, "fuzzy": 20}.get(mode, 15)
        last = steps // 2 if diverged else steps
        for step in range(1, last + 1):
            learned = 1 - np.exp(-3 * step / steps)
            line = {
                "step": step,
                "reward": float(np.clip(38 + gain * learned + rng.normal(0, 12), 0, 100)),
                "unjudged": 0.0,
                "cot_tokens": float(cot * (0.62 - 0.12 * learned) + rng.normal(0, 1.5)),
                "entropy": float(max(0.02, 0.9 + (_ENTROPY.get(mode, 0.8) - 0.9) * learned + rng.normal(0, 0.04))),
                "rollout_s": 0.25,
                "reward_s": 0.05,
                "update_s": 0.2,
            }
            if step % max(1, steps // 8) == 0:
                line["validation"] = float(68 + gain * 0.6 * learned + rng.normal(0, 1.2))
            lines.append(line)
        if diverged:
            lines[-1] |= {"entropy": float("inf"), "cot_tokens": float("nan")}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = {
        "spec": base_spec(toy_model() if toy else hub_model(f"org/{model}")).model_dump(mode="json") | {"seed": seed},
        "steps": max(len(lines) - 1, 0),
        "best_step": steps // 2 if lines else None,
        "best_validation": 79.3,
        "diverged": {"step": steps // 2, "reason": "loss is not finite"} if diverged else None,
        "checkpoint_sha256": "00ff" * 16,
        "wall_s": 73.4 if lines else 0.1,
        "attempts": [{"event": "start"}, {"event": "failed"}, {"event": "start"}],
        "provenance": {
            "softtok": "0.1.0", "commit": "0a1b2c3d4e5f", "python": "3.11.9", "torch": "2.13.0",
            "transformers": "5.23.0", "device": "cpu (4 cores)", "host": "secret-host",
        },
    }  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest))


def _write_cell(
    folder: Path, mode: str, test_set: str, inference_modes: dict[str, dict[str, Any]], problems: int, cot: int,
    wobble: float, rng: np.random.Generator, name: str = "six-89ab4567",
) -> None:  # fmt: skip
    folder.mkdir(exist_ok=True)
    frames, profiles = [], []
    seed_shift = 0.0 if mode == "base" else rng.normal(0, wobble)
    for inference_mode, settings in inference_modes.items():
        samples = settings["samples"]
        known = rates(mode, inference_mode, test_set, problems)
        shifted = 1 / (1 + (1 - known) / known * np.exp(-seed_shift))
        correct = rng.random((problems, samples)) < shifted[:, None]
        lengths = np.clip(rng.normal(cot * 0.55, cot * 0.12, (problems, samples)), 2, cot).astype(int)
        frames.append(
            pd.DataFrame(
                {
                    "inference_mode": inference_mode,
                    "problem_id": np.repeat([f"{test_set}-{place:05d}" for place in range(problems)], samples),
                    "sample": np.tile(np.arange(samples), problems),
                    "correct": correct.ravel(),
                    "boxed": True,
                    "status": np.where(correct.ravel(), "correct", "wrong"),
                    "other_status": "",
                    "answer": np.where(correct.ravel(), r"\boxed{42}", r"\boxed{7}"),
                    "cot": "3 + 4 = 7",
                    "cot_tokens": lengths.ravel(),
                    "answer_tokens": 2,
                    "stop": "phrase",
                    "made_on": MADE_ON,
                }
            )
        )
        index = np.arange(lengths.max())
        count = (lengths.ravel()[:, None] > index).sum(0)
        level = _ENTROPY.get(mode, 0.6)
        wave = level * (0.55 + 0.45 * np.exp(-index / (cot * 0.3))) * (1 + 0.25 * np.sin(index / 2.5))
        noise = rng.normal(0, 0.25, len(index)) / np.sqrt(count) + rng.normal(0, 0.015)
        profiles.append(
            pd.DataFrame(
                {"inference_mode": inference_mode, "index": index, "entropy": np.abs(wave + noise), "count": count}
            )
        )
    pd.concat(frames).to_parquet(folder / f"{name}.parquet", index=False)
    pd.concat(profiles).to_csv(folder / f"{name}.entropy.csv", index=False)


def _write_choices(
    folder: Path, choice_set: str, mode: str, problems: int, rng: np.random.Generator, h8: str = "cdef0123"
) -> None:
    folder.mkdir(exist_ok=True)
    tokens = rng.integers(1, 6, problems)
    per_token = {"base": 1.10, "hard": 1.32, "soft": 1.14, "fuzzy": 1.11}.get(mode, 1.2)
    frame = pd.DataFrame(
        {
            "id": [f"{choice_set}-{place}" for place in range(problems)],
            "correct": rng.random(problems) < 0.7,
            "predicted": rng.integers(0, 4, problems),
            "nll": tokens * rng.gamma(8, per_token / 8, problems),
            "tokens": tokens,
            "made_on": MADE_ON,
        }
    )
    frame.to_parquet(folder / f"{choice_set}-{h8}.parquet", index=False)
