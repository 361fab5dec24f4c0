"""Recorded decode steps.

A tape of PyTorch's operations stands in for a CUDA graph: it, too, keeps what Python said at
the recording and reads from step to step nothing but tensors.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from softtok.config.settings import RuntimeSettings
from softtok.errors import UserError
from softtok.models import decoding
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from tests.support.records import fed
from tests.support.rollouts import KEYS, LIMITS, MODES, SPREAD, roll
from tests.support.tiny_models import FAMILIES, tiny_model

WAITS = ("item", "_local_scalar_dense", "nonzero", "equal", "is_nonzero", "unique")  # for the device: not recordable


class Tape(TorchDispatchMode):
    """Writes down every operation and repeats them on call, on the memory that they had."""

    def __init__(self, once: Callable[[], torch.Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        with self:
            self.out = once()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        out = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, out))
        return out

    def __call__(self) -> torch.Tensor:
        now: dict[int, torch.Tensor] = {}  # what an operation gave at the recording -> what it gave this time

        def present(x: torch.Tensor) -> torch.Tensor:
            return now.get(id(x), x)

        for func, args, kwargs, out in self.done:
            again = func(*tree_map_only(torch.Tensor, present, args), **tree_map_only(torch.Tensor, present, kwargs))
            for old, new in zip(*map(torch.utils._pytree.tree_leaves, (out, again)), strict=True):
                if isinstance(old, torch.Tensor) and id(old) not in {id(x) for x in (*args, *kwargs.values())}:
                    now[id(old)] = new
        return self.out.copy_(now[id(self.out)])


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each recording so far was made for; a small window, so that there are several."""
    made: list[int] = []

    def record(once: Any, device: torch.device) -> Tape:
        tape = Tape(once)
        made.append(len(tape.out))
        return tape

    monkeypatch.setattr(decoding, "record", record)
    monkeypatch.setattr(decoding, "WINDOW", 16)
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_replayed_steps_give_the_same_rollout(family: str, mode: str, recordings: list[int]) -> None:
    """Rows of three prompts, padded, that end and are dropped at different steps, over several windows."""
    lm = tiny_model(family, spread=SPREAD.get(mode, 0.12))
    eager, replayed = roll(lm, mode), roll(dataclasses.replace(lm, cuda_graphs=True), mode)
    assert len(recordings) >= 3 and recordings[0] == len(KEYS), "one for each window, at least"
    same = np.array(
        [
            eager.cot(row) == replayed.cot(row) and eager.answers[row] == replayed.answers[row]
            for row in range(len(KEYS))
        ]
    )
    assert same[eager.near_ties == 0].all() and same.sum() >= len(KEYS) - 2
    if mode.startswith("soft"):
        for row in np.flatnonzero(same):
            length = eager.cot_lengths[row]
            torch.testing.assert_close(fed(replayed)[row, :length], fed(eager)[row, :length], rtol=0, atol=1e-3)


def test_a_graph_holds_until_half_of_its_rows_have_ended(recordings: list[int]) -> None:
    lm = dataclasses.replace(tiny_model(), cuda_graphs=True)
    out = roll(lm, "hard")
    assert len(set(out.cot_lengths)) > 3, "rows end at different steps"
    rows = list(dict.fromkeys(recordings))
    assert rows == sorted(rows, reverse=True) and all(b <= a / 2 for a, b in itertools.pairwise(rows))
    recordings.clear()
    roll(lm, "hard", drop_rows=False)
    assert set(recordings) == {len(KEYS)}
    steps = LIMITS.max_cot_tokens + 2 + LIMITS.max_answer_tokens
    assert len(recordings) == int(np.ceil(steps / decoding.WINDOW))


def test_unwritten_memory_is_never_read(recordings: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory may hold anything, and 0 times NaN is NaN."""
    new_empty = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, *size: Any, **kwargs: Any) -> torch.Tensor:
        return new_empty(self, *size, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    lm = dataclasses.replace(tiny_model(), cuda_graphs=True)
    assert torch.isfinite(roll(lm, "soft").entropy_NT).all()


def test_what_cannot_be_recorded_is_told(recordings: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = dataclasses.replace(tiny_model(), cuda_graphs=True)
    hidden = LanguageModel.hidden

    def waiting(self: LanguageModel, x: torch.Tensor, mask: Any, *others: Any) -> torch.Tensor:
        if mask is None:
            x.sum().item()
        return hidden(self, x, mask, *others)

    monkeypatch.setattr(LanguageModel, "hidden", waiting)
    with pytest.raises(UserError, match=r"tiny llama: its decode step cannot be recorded .* set runtime.cuda_graphs"):
        roll(lm, "hard")


def test_graphs_without_a_gpu_are_refused(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"runtime\.cuda_graphs: asked for, but the device is cpu"):
        load(tmp_path, RuntimeSettings(device="cpu", cuda_graphs=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mode", MODES)
def test_graphs_give_the_same_rollout_on_a_gpu(mode: str) -> None:
    lm = tiny_model(spread=SPREAD.get(mode, 0.12))
    lm.model.to("cuda")  # type: ignore[arg-type]
    eager, replayed = roll(lm, mode), roll(dataclasses.replace(lm, cuda_graphs=True), mode)
    assert sum(eager.cot(row) == replayed.cot(row) for row in range(len(KEYS))) >= len(KEYS) - 2
