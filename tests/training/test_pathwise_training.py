"""A training with the pathwise estimator: what it logs and warns of, and that a resumed one is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from softtok.config.settings import RuntimeSettings
from softtok.method.objectives import group_advantages
from softtok.method.terms import TERMS, Experience
from softtok.training.train import Trainer, prompts_of_step, train
from tests.support.specs import SOFT
from tests.support.specs import train_spec as spec
from tests.support.training_runs import lines, stopped_in_step, weights

EXACT = 15  # iterations for CoTs of 16 tokens


def run(folder: Path, model: Path, data: Path, iterations: int) -> Path:
    """Trains a run and returns its folder."""
    pathwise = spec(SOFT, estimator="pathwise", adjoint_iterations=iterations)
    train(pathwise, RuntimeSettings(), model, data, folder)
    return folder


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "exact", tiny_toy, toy_sets["train"], EXACT)


def test_each_validation_tells_of_both_parts_and_of_the_score(exact: Path) -> None:
    steps = lines(exact)[1:]
    for line in steps:
        parts = {"gradient_norm_direct", "gradient_norm_path", "score_cosine"}
        assert parts & line.keys() == (parts if "validation" in line else set())
        assert ("adjoint_residual" in line) == ("adjoint_growth" in line) == (line["gradient_norm"] > 0)
        assert line.get("adjoint_residual", 0.0) < 1e-6, "with so many iterations the adjoint is exact"
    assert any(line.get("gradient_norm_path", 0.0) > 0 for line in steps)


def test_the_cosine_is_that_of_both_gradients(tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]) -> None:
    pathwise = spec(SOFT, estimator="pathwise", adjoint_iterations=1)
    trainer = Trainer(pathwise, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)
    out = trainer.roll_out(1, prompts_of_step(1, trainer.problems, trainer.settings, trainer.seed))
    rewards_BG = torch.from_numpy(np.random.default_rng(0).normal(size=(len(out.prompts), out.samples)))
    experience = Experience(out, group_advantages(rewards_BG, trainer.objective).flatten().numpy())
    found = []
    for estimator in ("score", "pathwise"):
        trainer.accumulate(experience, TERMS, (estimator,))
        found.append(torch.cat([gradient.flatten() for gradient in trainer.optimizer.gradients.values()]).double())
    score_P, path_P = found
    cosine = float(score_P @ path_P / (score_P.norm() * path_P.norm()))
    assert trainer.score_cosine(experience) == pytest.approx(cosine, abs=1e-3)
    assert abs(cosine) > 0.01, "there is something to compare"
    nothing = Experience(out, np.zeros(len(out.answers)))
    assert trainer.score_cosine(nothing) is None


def test_a_resumed_run_is_the_same(exact: Path, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]) -> None:
    with stopped_in_step(3):
        run(tmp_path / "run", tiny_toy, toy_sets["train"], EXACT)
    run(tmp_path / "run", tiny_toy, toy_sets["train"], EXACT)
    assert lines(tmp_path / "run") == lines(exact)
    expected = weights(exact / "checkpoint")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "run" / "checkpoint").items())


def test_too_few_iterations_are_told_while_the_residual_stays_large(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pathwise = spec(SOFT, estimator="pathwise", adjoint_iterations=0)
    trainer = Trainer(pathwise, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)
    for residuals, told in (([0.2, 0.4], True), ([0.2, 0.04], False), ([None, 0.4], True), ([None, None], False)):
        trainer.state.step = 2
        trainer.state.lines = [
            {"step": step, "adjoint_residual": residual} for step, residual in enumerate(residuals, 1)
        ]
        trainer.warn_of_residual()
        printed = capsys.readouterr().out
        assert ("stayed above 0.05 up to step 2" in printed and "adjoint_iterations: 0 are too few" in printed) == told
    trainer.state.step, trainer.state.lines = 3, [{"step": 3, "adjoint_residual": 0.4}]
    trainer.warn_of_residual()
    assert capsys.readouterr().out == "", "only at validation steps"
