"""Rollouts and gradients are the same whether what prompts begin with is run once or once a prompt."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from softtok.method.noise_units import RMS_PROMPTS, RMS_PROMPTS_AT_ONCE, state_rms
from softtok.method.trajectories import Batch
from softtok.models import decoding
from tests.support import gradients, pathwise
from tests.support.beginnings import ALIKE, COMMON, UNLIKE, WITHIN, positions_run, sharing
from tests.support.gradients import SETTINGS, SMALL_TILES, TILING, Case, assert_same, make_advantages, pass_gradients
from tests.support.records import fed
from tests.support.rollouts import KEYS, MODES, SAMPLES, SPREAD, roll
from tests.support.tiny_models import tiny_model, token_mode

PROMPTS = {"alike": ALIKE, "within": WITHIN, "unlike": UNLIKE}
BODIES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)]


def make_case(mode: str, family: str = "llama", tied: bool = True, prompts: list[list[int]] = ALIKE) -> Case:
    """Returns a case whose rollout, too, shares the beginning."""
    lm = tiny_model(family, tied=tied)
    tokens = token_mode(lm, gradients.MODES[mode])
    with sharing(True):
        out = gradients.make_rollout(lm, tokens, prompts=prompts)
    return lm, tokens, out, make_advantages(len(out.answers))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("family", "tied"), BODIES)
def test_rollouts_are_the_same(mode: str, family: str, tied: bool) -> None:
    """Rows end and are dropped at different steps, also all rows of a prompt."""
    for prompts in PROMPTS.values():
        lm, batch = tiny_model(family, tied=tied, spread=SPREAD.get(mode, 0.12)), Batch(prompts, SAMPLES, KEYS)
        with sharing(False), positions_run() as run:
            wanted = roll(lm, mode, batch)
        with sharing(True), positions_run() as run_shared:
            got = roll(lm, mode, batch)
        width = max(map(len, prompts))
        assert run[0] == (3, width)
        assert run_shared[0] == ((3, width) if prompts is UNLIKE else (1, min(map(len, prompts)) - 1))
        same = np.array([wanted.cot(i) == got.cot(i) and wanted.answers[i] == got.answers[i] for i in range(len(KEYS))])
        assert same[wanted.near_ties == 0].all() and same.sum() >= len(KEYS) - 2
        for row in np.flatnonzero(same):
            length = wanted.cot_lengths[row]
            if mode.startswith("hard"):
                seen = got.entropy_NT[row, :length], wanted.entropy_NT[row, :length]
                torch.testing.assert_close(*seen, rtol=0, atol=1e-4)
            elif mode.startswith("soft"):
                torch.testing.assert_close(fed(got)[row, :length], fed(wanted)[row, :length], rtol=0, atol=1e-3)


@pytest.mark.parametrize("mode", gradients.MODES)
@pytest.mark.parametrize(("family", "tied"), BODIES)
def test_gradients_are_those_of_the_plain_loss(mode: str, family: str, tied: bool) -> None:
    """The plain loss runs each row by itself, whole; also in micro-batches, which add up in the beginning."""
    case = make_case(mode, family, tied)
    lm, tokens, out, advantages = case
    exact = gradients.in_double(lm)
    gradients.naive_loss(exact, tokens, out, advantages).backward()
    wanted = {name: gradient.float() for name, gradient in gradients.take_gradients(exact).items()}
    tolerance = {"hard": 1e-5, "soft": 1e-4, "fuzzy": 1e-4, "half-fuzzy": 5e-2}[mode]
    for tiling in (TILING, SMALL_TILES):
        with sharing(True), positions_run() as run:
            assert_same(pass_gradients(case, tiling=tiling), wanted, tolerance)
        assert run[:2] == [(1, len(COMMON)), (3, 5)], "the beginning once, and the rests"
        assert len(run) == 3 if tiling is TILING else len(run) > 8
    if not tied:
        rows = wanted["model.embed_tokens.weight"][[60, 61, 62, 33]]
        assert (rows.norm(dim=-1) > 0).all(), "tokens that only the beginning has learn too"


@pytest.mark.parametrize("prompts", [WITHIN, UNLIKE])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_gradients_are_the_same_for_other_prompts(mode: str, prompts: list[list[int]]) -> None:
    case = make_case(mode, prompts=prompts)
    with sharing(False):
        wanted = pass_gradients(case)
    with sharing(True):
        assert_same(pass_gradients(case), wanted, 1e-4)


@pytest.mark.parametrize("place", pathwise.PLACES)
@pytest.mark.parametrize("tied", [True, False])
def test_pathwise_gradients_are_the_same(place: str, tied: bool) -> None:
    lm = tiny_model("qwen2", tied=tied, spread=0.2, seed=7)
    tokens = token_mode(lm, pathwise.PLACES[place])
    out = gradients.make_rollout(lm, tokens, prompts=ALIKE)
    case, settings = (lm, tokens, out, make_advantages(len(out.answers))), pathwise.pathwise(6)
    with sharing(False):
        wanted = pass_gradients(case, settings)
    with sharing(True), positions_run() as run:
        assert_same(pass_gradients(case, settings), wanted)
        assert run[0] == (1, len(COMMON))
        assert_same(pass_gradients(case, settings, tiling=SMALL_TILES), wanted)


def test_prompts_without_a_signal_leave_a_longer_beginning() -> None:
    """The pass runs the other prompts alone, and what those begin with."""
    prompts = [[*COMMON, 3, 4, 5, 6], [2, 60, 9], [*COMMON, 3, 4, 7]]
    case = make_case("soft", prompts=prompts)
    case[3][SAMPLES : 2 * SAMPLES] = 0
    with sharing(False):
        wanted = pass_gradients(case)
    with sharing(True), positions_run() as run:
        assert_same(pass_gradients(case), wanted, 1e-4)
    assert run[:2] == [(1, len(COMMON) + 2), (2, 2)]


def test_a_frozen_base_shares_too() -> None:
    case = make_case("soft")
    settings, base = SETTINGS.model_copy(update={"kl_coefficient": 0.1}), tiny_model(seed=3)
    with sharing(False):
        wanted = pass_gradients(case, settings, reference=base)
    with sharing(True), positions_run() as run:
        assert_same(pass_gradients(case, settings, reference=base), wanted, 1e-4)
    assert run.count((1, len(COMMON))) == 2, "the model and its base"


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_recorded_steps_give_the_same_rollout(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is called again stands for a graph: the beginning is read in it as well."""
    monkeypatch.setattr(decoding, "record", lambda once, device: once)
    monkeypatch.setattr(decoding, "WINDOW", 16)
    lm, batch = tiny_model(spread=SPREAD.get(mode, 0.12)), Batch(ALIKE, SAMPLES, KEYS)
    with sharing(True):
        eager, replayed = roll(lm, mode, batch), roll(dataclasses.replace(lm, cuda_graphs=True), mode, batch)
    same = np.array([eager.cot(row) == replayed.cot(row) for row in range(len(KEYS))])
    assert same[eager.near_ties == 0].all() and same.sum() >= len(KEYS) - 2


def test_units_of_noise_run_the_beginning_once() -> None:
    """Not once for each part of the prompts, which are run a few at a time."""
    lm, generator = tiny_model(), np.random.default_rng(0)
    prompts = [[*COMMON, *generator.integers(2, 64, 1 + i % 7).tolist()] for i in range(RMS_PROMPTS)]
    with sharing(False):
        wanted = state_rms(lm, prompts)
    with sharing(True), positions_run() as run:
        got = state_rms(lm, prompts)
    assert got == pytest.approx(wanted, rel=1e-5)
    assert run == [(1, len(COMMON)), *[(RMS_PROMPTS_AT_ONCE, 7)] * (RMS_PROMPTS // RMS_PROMPTS_AT_ONCE)]
