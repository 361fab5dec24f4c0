"""The example of an objective: DAPO by hand-computed numbers, and its gradient against the loss written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from examples.dapo import DAPO
from softtok.config.settings import TrainingSettings
from softtok.method.objectives import group_advantages

SETTINGS = TrainingSettings(updates_per_step=2)


def test_advantages_are_in_units_of_the_groups_deviation() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [3.0, 0.0, 0.0, 0.0]])
    got = group_advantages(rewards, DAPO(SETTINGS))
    half, one = 0.5 / (math.sqrt(1 / 3) + 1e-4), 1 / (1.5 + 1e-4)
    wanted = torch.tensor([[half, -half, -half, half], [0.0] * 4, [2.25 * one, *[-0.75 * one] * 3]])
    torch.testing.assert_close(got, wanted)


def test_every_token_of_a_group_with_a_signal_counts_alike() -> None:
    """Rows of 2, 4, 6 and 8 tokens; the third group has no signal, so its 100 tokens do not count."""
    tokens = np.array([[2, 4], [6, 8], [40, 60]])
    advantages = np.array([[1, -1], [0.5, 0], [0, 0]], np.float32)
    np.testing.assert_array_equal(DAPO(SETTINGS).normaliser(tokens, advantages), np.full((3, 2), 20))
    np.testing.assert_array_equal(DAPO(SETTINGS).normaliser(tokens, 0 * advantages), np.full((3, 2), 1))


@pytest.mark.parametrize(
    ("ratio", "advantage", "worth", "moves"),
    [
        (1.25, 1.0, 1.25, True),  # above 1.2, where a symmetric range would clip
        (1.40, 1.0, 1.28, False),
        (0.70, 1.0, 0.70, True),  # the minimum is the unclipped one
        (0.85, -1.0, -0.85, True),
        (0.70, -1.0, -0.80, False),
        (1.40, -1.0, -1.40, True),
    ],
)
def test_ratios_are_clipped_further_above_than_below(ratio: float, advantage: float, worth: float, moves: bool) -> None:
    old = torch.tensor([-2.0])
    new = (old + math.log(ratio)).requires_grad_()
    loss, beyond = DAPO(SETTINGS).surrogate(new, old, torch.tensor([-advantage]))
    assert loss.item() == pytest.approx(-worth, rel=1e-5)
    assert beyond.item() == (not 0.8 < ratio < 1.28)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    assert gradient.item() == pytest.approx(-ratio * advantage if moves else 0.0, rel=1e-5)


def test_gradient_is_that_of_the_loss_written_out() -> None:
    """Token by token in fp64, over groups of which one has no signal and rows of unequal length."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.tensor([[1.0, 0.2, 0.0], [0.2, 0.2, 0.2], [0.0, 1.0, 1.0]])
    tokens = np.array([[3, 5, 1], [4, 4, 9], [2, 7, 6]])
    objective, count = DAPO(SETTINGS), int(tokens.sum())
    old = -torch.rand(count, generator=generator, dtype=torch.float64)
    new = (old + 0.3 * torch.randn(count, generator=generator, dtype=torch.float64)).requires_grad_()

    total, kept, place = torch.zeros((), dtype=torch.float64), 0, 0
    for group, lengths in zip(rewards.tolist(), tokens.tolist(), strict=True):
        mean, deviation = np.mean(group), np.std(group, ddof=1)
        for reward, length in zip(group, lengths, strict=True):
            for token in range(place, place + length):
                if deviation > 1e-6:
                    advantage, ratio = (reward - mean) / (deviation + 1e-4), torch.exp(new[token] - old[token])
                    cut = torch.clip(ratio, 0.8, 1.28)
                    total = total - torch.minimum(ratio * advantage, cut * advantage)
                    kept += 1
            place += length
    (wanted,) = torch.autograd.grad(total / kept, new)

    advantages = group_advantages(rewards, objective).numpy()
    weights = np.repeat((-advantages / objective.normaliser(tokens, advantages)).ravel(), tokens.ravel())
    loss, _ = objective.surrogate(new, old, torch.from_numpy(weights))
    (got,) = torch.autograd.grad(loss.sum(), new)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
    assert ((wanted == 0) & torch.from_numpy(weights != 0)).any(), "some ratios are clipped"
