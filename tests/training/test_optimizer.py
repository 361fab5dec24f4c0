"""AdamW on fp32 masters: small updates survive a bf16 working copy, and state survives a file."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_schedule_with_warmup

from softtok.config.settings import TrainingSettings
from softtok.method import policy_gradient
from softtok.method import rollout as rollout_module
from softtok.method.objectives import objective_of
from softtok.method.policy_gradient import accumulate_gradients
from softtok.method.terms import Experience, Loss, Tiling
from softtok.models.language_model import LanguageModel, in_fp32
from softtok.training.optimizer import MasterAdamW, learning_rate
from tests.support.gradients import MODES, TILING, make_advantages, make_rollout, run_pass
from tests.support.records import change_record, fed
from tests.support.tiny_models import tiny_model, token_mode

SETTINGS = TrainingSettings(steps=40, warmup_steps=4, learning_rate=6e-6)


def small_network(dtype: torch.dtype) -> torch.nn.Linear:
    """A layer whose weights are about 1: there bf16 numbers are 0.004 to 0.008 apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 4)
        layer.weight.data = 1 + torch.rand(4, 8)
    return layer.to(dtype)


def loss_of(layer: torch.nn.Linear, seed: int) -> torch.Tensor:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
    out: torch.Tensor = layer(x.to(layer.weight.dtype))
    return out.float().square().mean()


def train(layer: torch.nn.Linear, optimizer: MasterAdamW, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(layer, step).backward()
        optimizer.step(step, optimizer.gradient_norm())


@given(st.integers(1, 300), st.integers(0, 50))
def test_learning_rate_warms_up_and_ends_near_zero(steps: int, warmup_steps: int) -> None:
    settings = TrainingSettings(steps=steps, warmup_steps=warmup_steps, learning_rate=1e-3)
    rates = [learning_rate(step, settings) for step in range(1, steps + 1)]
    assert all(0 < rate <= 1e-3 for rate in rates)
    for step, rate in enumerate(rates[:warmup_steps], start=1):
        assert rate == pytest.approx(1e-3 * step / warmup_steps)
    if steps > warmup_steps:
        assert rates[warmup_steps] == max(rates) == 1e-3
        cosine = rates[warmup_steps:]
        assert cosine == sorted(cosine, reverse=True)
        # The last step is one step away from the end of half a cosine.
        assert rates[-1] <= 1e-3 * (math.pi / (2 * len(cosine))) ** 2 + 1e-12 or len(cosine) == 1
        assert learning_rate(steps + 1, settings) == pytest.approx(0, abs=1e-12)


def test_learning_rate_is_the_usual_cosine() -> None:
    """That of transformers, but for the warm-up, which here begins at step 1 instead of with a step of nothing."""
    theirs = get_cosine_schedule_with_warmup(
        torch.optim.SGD([torch.zeros(1)], lr=SETTINGS.learning_rate), SETTINGS.warmup_steps, SETTINGS.steps
    )
    for step in range(1, SETTINGS.steps + 1):
        if step > SETTINGS.warmup_steps:
            assert learning_rate(step, SETTINGS) == pytest.approx(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()


@pytest.mark.parametrize("device", [None, "cpu"])
def test_fp32_working_copy_is_the_master(device: str | None) -> None:
    layer = small_network(torch.float32)
    assert all(a is b for a, b in zip(layer.parameters(), MasterAdamW(layer, SETTINGS, device).masters, strict=True))


def test_fp32_steps_are_those_of_adamw() -> None:
    """torch's AdamW with the paper's schedule, clipping and weight decay."""
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-2, "weight_decay": 0.1, "gradient_clip": 0.5})
    layer, twin = small_network(torch.float32), small_network(torch.float32)
    train(layer, MasterAdamW(layer, settings), range(1, 11))
    adamw = torch.optim.AdamW(twin.parameters(), lr=0.0, weight_decay=0.1)
    for step in range(1, 11):
        adamw.zero_grad()
        loss_of(twin, step).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        adamw.param_groups[0]["lr"] = learning_rate(step, settings)
        adamw.step()
    torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-7)


def test_small_updates_are_not_lost_in_bf16() -> None:
    """At 6e-6 no single step moves a bf16 weight near 1; the masters move at each step.

    In the end the working copy moves with them.
    """
    settings = TrainingSettings(steps=100_000, warmup_steps=0, learning_rate=6e-6)
    layer = small_network(torch.bfloat16)
    start = layer.weight.detach().clone()
    optimizer = MasterAdamW(layer, settings)
    master = optimizer.masters[0]
    assert master.dtype == torch.float32
    for step in range(1, 1001):
        optimizer.zero_grad()
        layer.weight.sum().backward()  # a gradient of one everywhere: AdamW moves by the learning rate each step
        optimizer.step(step, optimizer.gradient_norm())
        if step == 1:
            assert torch.equal(layer.weight, start), "a step of 6e-6 is below the resolution of bf16"
            torch.testing.assert_close(start.float() - master, torch.full_like(master, 6e-6), rtol=0.05, atol=0)
    torch.testing.assert_close(start.float() - master, torch.full_like(master, 6e-3), rtol=0.01, atol=0)
    assert torch.equal(layer.weight, master.to(torch.bfloat16)), "the working copy is the rounded master"
    assert not torch.equal(layer.weight, start)


def test_bf16_gradients_add_up_in_fp32() -> None:
    """After a gradient of 1, 256 gradients of 2^-9 add up to a half; in bf16 each of them would be rounded away."""
    layer = small_network(torch.bfloat16)
    optimizer = MasterAdamW(layer, SETTINGS)
    optimizer.zero_grad()
    layer.weight.sum().backward()
    for _ in range(256):
        (layer.weight * 2**-9).sum().backward()
    assert torch.equal(optimizer.gradients[layer.weight], torch.full((4, 8), 1.5))
    assert layer.weight.grad is None, "no second copy of the gradient stays behind"
    assert optimizer.gradient_norm() == pytest.approx(1.5 * 32**0.5)
    optimizer.zero_grad()
    assert optimizer.gradient_norm() == 0


def test_bf16_model_hands_over_the_whole_gradient() -> None:
    """The pass reaches E and head by several ways; all of them end in the masters.

    The same weights and trajectories in fp32 give the same gradient within bf16's accuracy.
    """
    lm = tiny_model(dtype=torch.bfloat16, spread=0.1)  # smaller weights, smaller rounding errors
    tokens = token_mode(lm, MODES["soft"])
    out = make_rollout(lm, tokens)
    assert fed(out).dtype == torch.bfloat16
    advantages = make_advantages(len(out.answers))
    optimizer = MasterAdamW(lm.model, SETTINGS)
    optimizer.zero_grad()
    loss = Loss(TrainingSettings(), objective_of(TrainingSettings()), Tiling(40, TILING.tile_tokens))
    accumulate_gradients(lm, tokens, Experience(out, advantages), loss, gradients=optimizer.gradients)

    exact = tiny_model(spread=0.1)
    exact.model.load_state_dict(lm.model.state_dict())
    change_record(out, x_NTD=fed(out).float())
    run_pass((exact, tokens, out, advantages), TrainingSettings())
    for (name, parameter), summed in zip(exact.model.named_parameters(), optimizer.gradients.values(), strict=True):
        assert parameter.grad is not None
        gap = (summed - parameter.grad).norm() / parameter.grad.norm()
        assert gap < 0.05, f"{name}: relative difference {gap:.3f}"


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_only_mixtures_have_a_copy_of_the_embedding(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large model with its own head, a copy and a sum of its gradients are gigabytes."""
    lm = tiny_model(dtype=torch.bfloat16, tied=False)
    tokens = token_mode(lm, MODES[mode])
    asked: list[bool] = []

    def noted(lm: LanguageModel, mixtures: bool) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(mixtures)
        return in_fp32(lm, mixtures)

    for module in (rollout_module, policy_gradient):
        monkeypatch.setattr(module, "in_fp32", noted)
    out = make_rollout(lm, tokens)
    sums = policy_gradient.trained_vocabulary(lm, tokens.mixes, True, {})[1]
    run_pass((lm, tokens, out, make_advantages(len(out.answers))), TrainingSettings())
    assert asked == [mode == "soft"] * 3
    assert (lm.embedding_VD in sums) == (mode == "soft") and lm.head_VD in sums


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_head_and_embedding_are_never_rounded_to_bf16(tied: bool) -> None:
    """They add up in the optimizer's own fp32 sums, beside one fp32 copy of each matrix."""
    lm = tiny_model(dtype=torch.bfloat16, spread=0.1, tied=tied)
    head_VD, embedding_VD = in_fp32(lm)
    assert (head_VD is embedding_VD) == tied
    head_VD, embedding_VD = in_fp32(lm, mixtures=False)
    assert embedding_VD.data_ptr() == lm.embedding_VD.data_ptr(), "rows are looked up in E as it is"
    embedding_VD = embedding_VD.float()
    assert torch.equal(head_VD, lm.head_VD.float()) and torch.equal(embedding_VD, lm.embedding_VD.float())
    found = []
    for own in (True, False):
        lm = tiny_model(dtype=torch.bfloat16, spread=0.1, tied=tied)
        tokens = token_mode(lm, MODES["soft"])
        out = make_rollout(lm, tokens)
        optimizer = MasterAdamW(lm.model, SETTINGS)
        optimizer.zero_grad()
        experience, settings = Experience(out, make_advantages(len(out.answers))), TrainingSettings()
        loss = Loss(settings, objective_of(settings), TILING)
        accumulate_gradients(lm, tokens, experience, loss, gradients=optimizer.gradients if own else None)
        found.append([optimizer.gradients[parameter] for parameter in (lm.head_VD, lm.embedding_VD)])
    for summed, handed_over in zip(*found, strict=True):
        assert not torch.equal(summed, summed.bfloat16().float())
        assert (summed - handed_over).norm() < 0.01 * summed.norm(), "but for rounding they are the same"


def test_what_a_failed_pass_left_behind_is_forgotten() -> None:
    """A pass can end between autograd's addition and the hook's."""
    layer = small_network(torch.bfloat16)
    optimizer = MasterAdamW(layer, SETTINGS)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.zero_grad()
    layer.weight.sum().backward()
    assert torch.equal(optimizer.gradients[layer.weight], torch.ones(4, 8))


def test_a_large_gradient_is_clipped_as_a_whole() -> None:
    """AdamW's first step does not show the gradient's size, its second moment does."""
    layer = small_network(torch.float32)
    optimizer = MasterAdamW(layer, SETTINGS)
    optimizer.zero_grad()
    (1000 * loss_of(layer, 0)).backward()
    assert optimizer.gradient_norm() > 100
    optimizer.step(1, optimizer.gradient_norm())
    squares = sum(optimizer.adamw.state[master]["exp_avg_sq"].sum() for master in optimizer.masters) / 0.001
    assert float(squares) ** 0.5 == pytest.approx(SETTINGS.gradient_clip, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_saved_state_goes_on_as_if_nothing_had_happened(dtype: torch.dtype) -> None:
    """Through a file, into a fresh model: masters, moments and the working copy, bit for bit.

    So it is at once and twenty steps later.
    """
    settings = SETTINGS.model_copy(update={"learning_rate": 1e-3})
    layer = small_network(dtype)
    optimizer = MasterAdamW(layer, settings)
    train(layer, optimizer, range(1, 11))
    file = io.BytesIO()
    torch.save(optimizer.state(), file)
    file.seek(0)

    fresh = small_network(dtype)
    resumed = MasterAdamW(fresh, settings)
    resumed.load_state(torch.load(file, weights_only=True))
    for steps in (range(0), range(11, 31)):
        train(layer, optimizer, steps)
        train(fresh, resumed, steps)
        held, found = [*layer.parameters(), *optimizer.masters], [*fresh.parameters(), *resumed.masters]
        assert all(torch.equal(a, b) for a, b in zip(held, found, strict=True))
