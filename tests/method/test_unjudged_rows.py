"""Rows without a verdict: they are no part of their group's baseline, and their own gradient is exactly zero."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softtok.config.settings import TrainingSettings
from softtok.method.batches import reward_metrics
from softtok.method.objectives import group_advantages, leave_one_out, objective_of
from softtok.method.policy_gradient import accumulate_gradients
from softtok.method.terms import Experience, Loss
from softtok.models.language_model import LanguageModel
from softtok.problems.verdict import STATUSES, UNJUDGED, Verdict
from tests.support.gradients import MODES, TILING, make_advantages, make_rollout, take_gradients
from tests.support.tiny_models import tiny_model, token_mode

NAMES = ("rloo", "ppo-clip", "grpo")


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"answer_temperature": 1.3} | changes)


def advantages_of(rewards: list[list[float]], name: str = "rloo") -> torch.Tensor:
    return group_advantages(torch.tensor(rewards), objective_of(settings(objective=name)))


values = st.sampled_from([0.0, 10.0, 100.0, 0.1, 0.7])
groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.one_of(values, st.just(math.nan)), min_size=size, max_size=size), min_size=1, max_size=4
    )
)


@given(groups, st.sampled_from(NAMES))
def test_a_group_is_its_rows_with_a_verdict(rewards: list[list[float]], name: str) -> None:
    """As if the other rows did not exist, for each objective; and exactly zero in their own places."""
    advantages = advantages_of(rewards, name)
    for group, found in zip(rewards, advantages, strict=True):
        rest = [reward for reward in group if not math.isnan(reward)]
        places = [place for place, reward in enumerate(group) if not math.isnan(reward)]
        wanted = torch.zeros(len(group))
        if len(rest) > 1:
            wanted[places] = advantages_of([rest], name)[0]
        assert torch.equal(found, wanted)


@given(groups)
def test_the_baseline_is_leave_one_out_over_the_rows_with_a_verdict(rewards: list[list[float]]) -> None:
    for group, found in zip(rewards, advantages_of(rewards).tolist(), strict=True):
        judged = [reward for reward in group if not math.isnan(reward)]
        for reward, advantage in zip(group, found, strict=True):
            if math.isnan(reward) or len(judged) < 2:
                assert advantage == 0
            else:
                others = (math.fsum(judged) - reward) / (len(judged) - 1)
                assert advantage == pytest.approx(reward - others, abs=1e-4)


@given(groups, st.sampled_from(NAMES))
def test_with_all_verdicts_the_numbers_are_the_objectives_own(rewards: list[list[float]], name: str) -> None:
    whole = torch.tensor(rewards).nan_to_num(3.0)
    objective = objective_of(settings(objective=name))
    found = group_advantages(whole, objective)
    signal = (whole != whole[:, :1]).any(1)
    assert torch.equal(found[signal], objective.advantages(whole)[signal])
    assert not found[~signal].any()


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        ([math.nan, math.nan, math.nan], [0, 0, 0]),
        ([100.0, math.nan, math.nan], [0, 0, 0]),
        ([100.0, math.nan, 10.0], [90, 0, -90]),
        ([10.0, math.nan, 10.0], [0, 0, 0]),
        ([100.0, 10.0, 10.0], [90, -45, -45]),
    ],
)
def test_few_rows_with_a_verdict(group: list[float], wanted: list[float]) -> None:
    assert advantages_of([group, [100.0, 10.0, 10.0]]).tolist() == [wanted, [90, -45, -45]]


def pass_of(lm: LanguageModel, experience: Experience, chosen: TrainingSettings) -> dict[str, torch.Tensor]:
    lm.model.zero_grad()
    reference = tiny_model(seed=1) if chosen.kl_coefficient else None
    loss = Loss(chosen, objective_of(chosen), TILING, reference)
    accumulate_gradients(lm, token_mode(lm, MODES["hard"]), experience, loss)
    return take_gradients(lm)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "grpo"},
        {"entropy_bonus": 0.1},
        {"kl_coefficient": 0.1},
        {"updates_per_step": 2, "objective": "grpo"},
    ],
    ids=str,
)
def test_what_a_row_without_a_verdict_says_changes_no_gradient(changes: dict[str, Any]) -> None:
    lm, chosen = tiny_model(), settings(**changes)
    out = make_rollout(lm, token_mode(lm, MODES["hard"]))
    count = len(out.answers)
    row = next(row for row, answer in enumerate(out.answers) if len(answer) > 1)
    other = dataclasses.replace(
        out,
        answers=[[(token + 1) % 9 for token in answer] if r == row else answer for r, answer in enumerate(out.answers)],
    )
    judged = np.arange(count) != row
    advantages = np.where(judged, make_advantages(count) + 0.5, 0.0)
    gradients = [pass_of(lm, Experience(made, advantages, judged_N=judged), chosen) for made in (out, other)]
    assert any(gradient.any() for gradient in gradients[0].values())
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    told = np.where(judged, advantages, 0.3)
    seen = [pass_of(lm, Experience(made, told), chosen) for made in (out, other)]
    assert not all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0]), "with a verdict it would"


def test_n_counts_all_rows() -> None:
    """The gradient of the other rows is divided by B G, whoever has no verdict."""
    lm, chosen = tiny_model(), settings()
    out = make_rollout(lm, token_mode(lm, MODES["hard"]))
    advantages = make_advantages(len(out.answers))
    judged = advantages != 0
    assert not judged.all()
    told, untold = (pass_of(lm, Experience(out, advantages, judged_N=mask), chosen) for mask in (judged, None))
    assert all(torch.equal(told[name], untold[name]) for name in told)


def verdict(status: Any, reward: float = 10.0) -> Verdict:
    return Verdict(reward, status == "correct", "1", status)


def test_what_a_step_logs() -> None:
    verdicts = [verdict("correct", 100.0), verdict("wrong"), verdict("timeout", math.nan), verdict("error", math.nan)]
    logged = reward_metrics(verdicts)
    assert logged == {"reward": 55.0, "correct": 50.0, "boxed": 100.0, "unjudged": 50.0}
    assert reward_metrics(verdicts[2:]) == {"reward": None, "correct": None, "boxed": 100.0, "unjudged": 100.0}


@given(st.lists(values, min_size=4, max_size=64).filter(lambda found: len(found) % 2 == 0))
def test_the_mean_reward_is_that_of_all_rows_where_all_have_a_verdict(rewards: list[float]) -> None:
    logged = reward_metrics([verdict("wrong", reward) for reward in rewards])["reward"]
    assert logged == torch.tensor(rewards).view(2, -1).mean().item()


def test_statuses_without_a_verdict() -> None:
    assert {status for status in STATUSES if not verdict(status).judged} == set(UNJUDGED) == {"timeout", "error"}
    assert leave_one_out(torch.tensor([[math.nan, 1.0]])).isnan().all(), "a reward that is not there spoils a mean"
