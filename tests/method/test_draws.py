"""Random numbers depend on key, purpose and step alone, and have their distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from softtok.method.draws import DRAW_BLOCK, Draws


def at(draws: Draws, step: int, rows: list[int]) -> torch.Tensor:
    drawn = draws.at(step, np.array(rows))
    assert drawn is not None
    return drawn


def every(draws: Draws, steps: int, rows: list[int]) -> torch.Tensor:
    return torch.stack([at(draws, step, rows).clone() for step in range(steps)], 1)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_draws_depend_on_key_purpose_and_step_alone(kind: str) -> None:
    steps, cpu = 2 * DRAW_BLOCK + 5, torch.device("cpu")
    keys = ["a", "b", "c", "d"]
    all_rows = every(Draws(keys, "cot", kind, 16, cpu), steps, [0, 1, 2, 3])
    assert all_rows.shape == (4, steps, 16)
    assert torch.equal(every(Draws(["x", "c", "y"], "cot", kind, 16, cpu), steps, [0, 1, 2])[1], all_rows[2])
    # Rows leave: at every step, those that stay see what they would have seen.
    leaving = Draws(keys, "cot", kind, 16, cpu)
    for step in range(steps):
        rows = [0, 1, 2, 3] if step < 3 else [1, 3] if step < DRAW_BLOCK + 2 else [3]
        assert torch.equal(at(leaving, step, rows), all_rows[rows, step])
    # Everything else gives other numbers.
    flat = all_rows.reshape(4 * steps, 16)
    assert len(flat.unique(dim=0)) == 4 * steps, "no row repeats another, no block repeats the one before"
    assert not torch.isin(every(Draws(keys, "answer", kind, 16, cpu), steps, [0, 1, 2, 3]), all_rows).all(-1).any()


def test_draws_have_their_distributions() -> None:
    keys, cpu = [str(i) for i in range(300)], torch.device("cpu")
    normal = every(Draws(keys, "cot", "normal", 8, cpu), 40, list(range(300))).flatten().numpy()
    uniform = every(Draws(keys, "cot", "uniform", 1, cpu), 40, list(range(300)))
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert uniform.min() >= 0 and uniform.max() < 1
    first = uniform[:, 0, 0].numpy()
    assert abs(stats.pearsonr(first[:-1], first[1:]).statistic) < 4 / math.sqrt(300), "neighbouring keys are unrelated"
    assert abs(stats.pearsonr(first, uniform[:, DRAW_BLOCK, 0].numpy()).statistic) < 4 / math.sqrt(300), "so are blocks"
    assert Draws(keys, "cot", "none", 8, cpu).at(0, np.arange(300)) is None
