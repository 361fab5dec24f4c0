"""Shared by the whole suite: one thread (as the demo runs), real data where it is, a toy model trained for a moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from tests.support.examples import load_profile
from tests.support.specs import data_spec, toy_model

if TYPE_CHECKING:
    from softtok.method.stream import Finished, Room
    from softtok.method.trajectories import Batch, Policy, Rollout
    from softtok.problems.spec import Kind

# A shell starts background jobs with SIGINT ignored, and so CI may start this suite; its tests send that signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
load_profile()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that SOFTTOK_TEST_DATA names; tests of it skip where it is not set."""
    folder = os.environ.get("SOFTTOK_TEST_DATA")
    if not folder:
        pytest.skip("real data: set SOFTTOK_TEST_DATA to a folder with gsm8k/, math/, ...")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like results/models/toy-*: a toy model of a few pretraining steps, enough to be right now and then."""
    from softtok.config.settings import RuntimeSettings, ToySettings
    from softtok.models.base_model import make_model

    folder = tmp_path_factory.mktemp("models") / "toy"
    settings = ToySettings(
        width=32, layers=2, heads=2, mlp_width=64, steps=150, batch=16, learning_rate=4e-3, threads=1
    )
    make_model(toy_model(**settings.model_dump()), RuntimeSettings(), folder, None)
    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The pretrained model as `softtok model` converts it, once for all workers, and the command's CPU seconds."""
    from tests.support.pretrained import converted

    base = tmp_path_factory.getbasetemp()
    return converted(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session")
def toy_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared toy data: `train` (40 problems), `test` (6) and `choice` (8)."""
    from softtok.problems.prepare import prepare

    folder = tmp_path_factory.mktemp("data")
    sets: list[tuple[Kind, str, int]] = [("train", "sums", 40), ("test", "sums", 6), ("choice", "choice", 8)]
    for kind, task, count in sets:
        toy = {"task": task, "problems": count} | ({"steps": [1, 2]} if task == "sums" else {})
        prepare(data_spec(kind, {"toy": toy}), folder / f"{kind}.parquet", {}, None)
    return {kind: folder / f"{kind}.parquet" for kind in ("train", "test", "choice")}


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """What each rollout and each stream of a training run or an evaluation was asked for.

    The entropies that it gives are made 2 at thinking steps and 99 behind them, where they mean nothing.
    """
    import torch

    from softtok.evaluation import evaluate
    from softtok.method.rollout import rollout
    from softtok.method.stream import stream
    from softtok.training import train

    asked = []

    def note(policy: Policy, batch: Batch, record: bool) -> None:
        tokens, limits = policy.tokens, policy.limits
        asked.append(
            SimpleNamespace(tokens=tokens, prompts=batch.prompts, keys=batch.keys, limits=limits, record=record)
        )

    def marked(out: Rollout) -> Rollout:
        thinking = torch.arange(out.entropy_NT.shape[1]) < torch.from_numpy(out.cot_lengths)[:, None]
        out.entropy_NT = torch.where(thinking, 2.0, 99.0)
        return out

    def noted(policy: Policy, batch: Batch, record: bool = False) -> Rollout:
        note(policy, batch, record)
        return marked(rollout(policy, batch, record=record))

    def noted_stream(policy: Policy, batch: Batch, room: Room) -> Iterator[Finished]:
        note(policy, batch, False)
        for finished in stream(policy, batch, room):
            yield [(b, marked(out)) for b, out in finished]

    monkeypatch.setattr(evaluate, "stream", noted_stream)
    monkeypatch.setattr(train, "stream", noted_stream)
    monkeypatch.setattr(train, "rollout", noted)
    return asked
