"""What jobs ask a scheduler for: an evaluation asks for its own threads, memory and time, not for a training's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from softtok.config.settings import RuntimeSettings
from tests.support.project import ROOT, Project, shipped

ON_GPU = {"gpus": 1, "threads": 6, "memory_mb": 80_000, "runtime_min": 1200}


def asked(project: Project) -> dict[str, tuple[int, int, int]]:
    """Returns threads, memory and minutes of the jobs of each rule, in a dry run, and asserts that jobs are told so."""
    listed = project.snakemake("-n", "-p", "--quiet", "host", "--cores", "16")
    assert listed.returncode == 0, listed.stdout
    found: dict[str, tuple[int, int, int]] = {}
    for block in re.split(r"\n(?=rule |localrule )", listed.stdout):
        rule = re.match(r"rule (train|evaluate|choices|model):", block)
        if rule is None:
            continue
        threads = re.search(r"threads: (\d+)", block)
        of_job = [re.search(rf"\b{name}=(\d+)", block) for name in ("mem_mb", "runtime")]
        memory_mb, runtime_min = (int(match[1]) for match in of_job if match)
        told = json.loads(re.search(r"--runtime '(\{.*?\})'", block)[1])  # type: ignore[index]
        found[rule[1]] = (int(threads[1]) if threads else 1, memory_mb, runtime_min)
        if rule[1] != "model":
            assert found[rule[1]] == (told["threads"], told["memory_mb"], told["runtime_min"])
    return found


def test_an_evaluation_asks_for_less_than_a_training(tmp_path: Path) -> None:
    config = shipped()
    config["models"]["toy"]["runtime"] = ON_GPU
    project = Project.create(tmp_path / "project", config, PYTHONPATH=str(ROOT))
    assert asked(project) == {
        "model": (2, 80_000, 1200),
        "train": (6, 80_000, 1200),
        "evaluate": (2, 20_000, 300),
        "choices": (2, 20_000, 300),
    }
    own = {"evaluation_threads": 3, "evaluation_memory_mb": 24_001, "evaluation_runtime_min": 90}
    project.edit(lambda config: config["models"]["toy"].update(runtime=ON_GPU | own))
    found = asked(project)
    assert found["evaluate"] == found["choices"] == (3, 24_001, 90)
    assert found["train"] == (6, 80_000, 1200)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1, 4000, 60)),
        ({"threads": 8, "memory_mb": 30_000, "runtime_min": 600}, (8, 30_000, 150)),
        ({"runtime_min": 30}, (1, 4000, 30)),
        ({"gpus": 1, "threads": 16, "memory_mb": 180_000, "runtime_min": 1440}, (2, 45_000, 360)),
        ({"gpus": 1, "threads": 16, "reward_workers": 4}, (5, 4000, 60)),
        ({"gpus": 1, "memory_mb": 40_000}, (1, 16_000, 60)),
        ({"threads": 2, "evaluation_threads": 4, "evaluation_runtime_min": 500}, (4, 4000, 500)),
    ],
)
def test_an_evaluation_has_its_own_settings_or_a_share_of_a_trainings(
    given: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    """On a CPU the states of many rows take as much memory as an optimizer, and all threads are used."""
    training = RuntimeSettings(**given)
    found = training.for_evaluation
    assert (found.threads, found.memory_mb, found.runtime_min) == expected
    kept = {"threads", "memory_mb", "runtime_min"}
    assert found.model_dump(exclude=kept) == training.model_dump(exclude=kept)
    assert found.for_evaluation.threads == found.threads
