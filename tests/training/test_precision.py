"""Precision on CPU: a run with a bf16 working copy is sane, and its log says how far the two passes are apart.

Small updates are not lost, rollout and training forward agree on the argmax but for a few steps, and whatever is as
wide as the vocabulary is fp32. Exactness in fp32 is tested with rollout and objective.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from softtok.config.settings import RuntimeSettings, TokenMode, TrainingSettings
from softtok.method.token_modes import SoftTokens
from softtok.training.optimizer import MasterAdamW
from softtok.training.train import Trainer, train
from tests.support.gradients import MODES, make_advantages, make_rollout, run_pass
from tests.support.records import means
from tests.support.specs import FUZZY, HARD, SOFT
from tests.support.specs import train_spec as spec
from tests.support.tiny_models import tiny_model, token_mode

BF16 = RuntimeSettings(precision="bf16", device="cpu")


@pytest.mark.parametrize("mode", [HARD, SOFT, FUZZY], ids=["hard", "soft", "fuzzy"])
def test_a_run_logs_how_near_the_two_passes_are(
    mode: TokenMode, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]
) -> None:
    """Every step logs near-ties and the gradient's norm.

    Soft modes log the recomputation gap |h_train - h_rollout| / sigma, shadow flips and the noise check
    E|x-h|^2 / (D sigma^2) where anything was recomputed; validations log the norms of the CoT's and the answers'
    gradients.
    """
    train(spec(mode, steps=4), BF16, tiny_toy, toy_sets["train"], tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][1:]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    learned = [line for line in lines if line["gradient_norm"] > 0]
    assert learned, "some step had something to learn from"
    for line in lines:
        assert {"near_ties", "gradient_norm", "entropy", "reward", "learning_rate"} <= line.keys()
        apart = {"gradient_norm_cot", "gradient_norm_answer"} & line.keys()
        assert len(apart) == (2 if line["step"] % 2 == 0 else 0)
    for line in learned:
        soft = {"recomputation_gap", "shadow_flips", "noise_check"}
        assert soft & line.keys() == (soft if mode.tokens == "soft" else set())
    if mode is SOFT:
        # bf16 keeps 8 bits: the two passes differ, by less than the noise. Squares add: x - h is noise plus that gap.
        assert all(0 < line["recomputation_gap"] < 1 for line in learned)
        assert all(line["noise_check"] == pytest.approx(1, abs=0.2) for line in learned)
    saved = load_file(tmp_path / "run/checkpoint/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}, "a checkpoint is the working copy"


def test_small_updates_add_up_over_a_run(tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]) -> None:
    """bf16 neighbours of a weight of 1/8 or more are at least 2^-10 apart.

    A step of AdamW at 1e-4 moves a weight by
    3.2e-4 at most, which rounding to the nearest loses; over 30 steps many such weights move, because the masters keep
    what rounding hides.
    """
    settings: dict[str, Any] = {
        "steps": 30,
        "learning_rate": 1e-4,
        "warmup_steps": 0,
        "validation_problems": 1,
        "validate_every": 30,
    }
    trainer = Trainer(spec(SOFT, **settings), BF16, tiny_toy, toy_sets["train"], tmp_path / "run")

    def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.detach().flatten() for tensor in tensors])

    start = flat(trainer.lm.model.parameters())
    large = start.abs() >= 0.125
    assert start.dtype == torch.bfloat16 and large.sum() > 1000
    masters, moved = [start.float()], []
    with trainer.judge:
        for step in range(1, 31):
            trainer.take_step(step)
            masters.append(flat(trainer.optimizer.masters))
            moved.append(int((flat(trainer.lm.model.parameters()) != start)[large].sum()))
    assert masters[-1].dtype == torch.float32
    updates = torch.stack([(after - before)[large].abs().max() for before, after in pairwise(masters)])
    assert 0 < updates.max() < 2**-11, "every single update is below the resolution"
    assert moved[0] == 0 and moved[-1] > 200
    assert torch.equal(flat(trainer.lm.model.parameters()), masters[-1].bfloat16()), "the masters, rounded once"


def agreement(mode: str, dtype: torch.dtype) -> tuple[float, float]:
    """Returns (share of CoT steps with the rollout's argmax in the training forward, largest gap of h in sigma).

    The bodies are random and hear every bit of their input, the worst case.
    """
    tokens_seen, flips, gap = 0, 0, 0.0
    for seed in range(4):
        lm = tiny_model(dtype=dtype, seed=seed, vocabulary=64, spread=0.1)
        tokens = token_mode(lm, MODES[mode])
        out = make_rollout(lm, tokens)
        MasterAdamW(lm.model, TrainingSettings()).zero_grad()
        seen = run_pass((lm, tokens, out, make_advantages(len(out.answers))), TrainingSettings())
        tokens_seen, flips, gap = tokens_seen + seen.tokens, flips + seen.flips, max(gap, seen.gap)
    return 1 - flips / tokens_seen, gap


@pytest.mark.parametrize("mode", ["soft", "fuzzy"])
def test_rollout_and_training_forward_agree_on_the_argmax(mode: str) -> None:
    """Both run the same bf16 weights without autocast. In fp32 they agree everywhere."""
    rounded, gap = agreement(mode, torch.bfloat16)
    exact, exact_gap = agreement(mode, torch.float32)
    print(
        f"{mode}: argmax agreement {100 * rounded:.1f} % in bf16, {100 * exact:.1f} % in fp32;"
        f" largest gap {gap:.2g} and {exact_gap:.2g} sigma"
    )
    assert rounded > 0.9
    assert exact == 1
    if mode == "soft":
        assert exact_gap < 1e-3 < gap < 0.5


class OneWidth(TorchDispatchMode):
    """Notes the dtypes of all tensors whose last dimension is the vocabulary's, and whether autocast was ever on."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width, self.autocast = width, False
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.autocast |= torch.is_autocast_enabled("cpu")
        for made in out if isinstance(out, tuple | list) else [out]:
            if isinstance(made, torch.Tensor) and made.ndim > 1 and made.shape[-1] == self.width:
                self.dtypes.add(made.dtype)
        return out


@pytest.mark.parametrize("mode", MODES)
def test_what_is_as_wide_as_the_vocabulary_is_fp32_in_a_bf16_run(mode: str) -> None:
    """Logits, softmax, mixture weights and log-densities, forward and backward, in rollout and training."""
    lm = tiny_model(dtype=torch.bfloat16, vocabulary=89, tied=False)
    tokens = token_mode(lm, MODES[mode])
    with OneWidth(89) as seen:
        out = make_rollout(lm, tokens)
        optimizer = MasterAdamW(lm.model, TrainingSettings())
        optimizer.zero_grad()
        run_pass((lm, tokens, out, make_advantages(len(out.answers))), TrainingSettings())
    assert torch.float32 in seen.dtypes
    assert not {torch.bfloat16, torch.float16} & seen.dtypes
    assert not seen.autocast
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.bfloat16}, "one working copy"
    if isinstance(tokens, SoftTokens):
        assert means(out).dtype == torch.float32


class Copies(TorchDispatchMode):
    """Counts conversions to fp32 of matrices as large as E."""

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        conversion = func in (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
        if conversion and out.dtype == torch.float32 and out.dtype != args[0].dtype and out.numel() == self.size:
            self.count += 1
        return out


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ["hard", "soft", "fuzzy"])
def test_a_rollout_copies_the_vocabulary_once(mode: str, tied: bool) -> None:
    """And not at every step: of a model of 3B parameters a copy has 1.6 GB."""
    lm = tiny_model(dtype=torch.bfloat16, vocabulary=89, tied=tied)
    tokens = token_mode(lm, MODES[mode])
    with Copies(lm.embedding_VD.numel()) as copies:
        make_rollout(lm, tokens)
    assert copies.count == (2 if mode != "hard" and not tied else 1), "of E only where rows of it are mixed"
