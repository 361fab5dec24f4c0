"""What an evaluation is expected to take, from two slices of its problems."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from softtok.config.settings import DeviceSettings, RuntimeSettings
from softtok.config.work import ProblemsCost
from softtok.evaluation import choices as choices_module
from softtok.evaluation import evaluate as module
from softtok.evaluation.measure import line, measure_choices, measure_evaluation
from softtok.method.stream import Finished, Room, stream
from softtok.method.trajectories import Batch, Policy
from softtok.models.base_model import base_run
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from tests.support.specs import base_spec, choices_spec, evaluation_spec, toy_model


@pytest.fixture
def run(tmp_path: Path, tiny_toy: Path) -> Path:
    base_run(base_spec(toy_model()), tiny_toy, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stands in for the time that passes: 7 seconds to load a model, half a second for each answer."""
    passed: list[float] = []

    def loading(folder: Path, settings: DeviceSettings) -> LanguageModel:
        passed.append(7)
        return load(folder, settings)

    def generating(policy: Policy, batch: Batch, room: Room) -> Iterator[Finished]:
        passed.append(0.5 * len(batch.keys))
        yield from stream(policy, batch, room)

    monkeypatch.setattr(module, "load", loading)
    monkeypatch.setattr(choices_module, "load", loading)
    monkeypatch.setattr(module, "stream", generating)
    monkeypatch.setattr(time, "perf_counter", lambda: float(sum(passed)))
    return passed


def test_an_evaluation_costs_its_start_and_its_problems(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, clock: list[float]
) -> None:
    before = sorted(run.rglob("*"))
    spec = evaluation_spec("hard-greedy", "soft-sample")
    (tmp_path / "place").mkdir()
    cost = measure_evaluation(spec, RuntimeSettings(), run, toy_sets["test"], tmp_path / "place")
    assert cost == ProblemsCost(ready_s=7.0, problem_s=0.5 * (1 + 4))
    assert sorted(run.rglob("*")) == before, "nothing is left in the run, which would be taken for results"


def test_a_choice_set_costs_its_start_at_the_least(
    run: Path, toy_sets: dict[str, Path], tmp_path: Path, clock: list[float]
) -> None:
    (tmp_path / "place").mkdir()
    cost = measure_choices(choices_spec("letters"), RuntimeSettings(), run, toy_sets["choice"], tmp_path / "place")
    assert 8 * cost.problem_s + cost.ready_s == 7.0


@pytest.mark.parametrize(
    ("slices", "cost"),
    [
        ((2, 5.0, 8, 11.0), (3.0, 1.0)),
        ((2, 1.0, 8, 13.0), (0.0, 2.0)),
        ((2, 6.0, 8, 5.0), (0.0, 0.625)),
        ((3, 6.0, 3, 6.0), (0.0, 2.0)),
    ],
)
def test_the_line_through_two_slices_is_never_below_zero(
    slices: tuple[int, float, int, float], cost: tuple[float, float]
) -> None:
    found = line(*slices)
    assert (found.ready_s, found.problem_s) == cost
