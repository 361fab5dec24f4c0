"""A reward that fails for some answers: what training logs of it, what it learns from, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from softtok import plugins
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import RunSpec
from softtok.problems.answer_format import AnswerFormat
from softtok.problems.own_reward import DOOR
from softtok.problems.prepare import prepare
from softtok.problems.reward import Answer, Grading, Judge
from softtok.report.run_files import read_training
from softtok.training.train import Trainer, train
from tests.support.specs import HARD, data_spec, train_spec

WORDS = AnswerFormat(extract="all", stop_phrase="The answer is", prefill=" The")
HALF = """
def f(answer, gold):
    if len(answer) % 2 and len(answer) > 3:
        raise ValueError("no idea")
    return len(answer) / 10
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    spec = data_spec("train", {"toy": {"task": "sums", "problems": 40}}).model_copy(update={"columns": True})
    prepare(spec, tmp_path / "train.parquet", {}, None)
    return tmp_path / "train.parquet"


def spec_of(code: str, file: Path, **training: Any) -> RunSpec:
    file.write_text(code, encoding="utf-8")
    grading = Grading.model_validate({"reward": plugins.locate(f"{file}:f", DOOR), "answer_format": WORDS})
    return RunSpec(**dict(train_spec(HARD, **training)) | {"grading": grading})


def test_answers_without_a_verdict_are_logged_and_left_out(tiny_toy: Path, data: Path, tmp_path: Path) -> None:
    train(spec_of(HALF, tmp_path / "mine.py", steps=2), RuntimeSettings(), tiny_toy, data, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["unjudged"] < 100 for line in lines if line["step"])
    frame = read_training(tmp_path / "run" / "metrics.jsonl")
    assert frame["unjudged"].dropna().tolist() == [line["unjudged"] for line in lines if line["step"]]


def test_a_step_without_any_verdict_changes_no_weight(
    tiny_toy: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(spec_of(HALF, tmp_path / "mine.py"), RuntimeSettings(), tiny_toy, data, tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in trainer.lm.model.state_dict().items()}
    given = Judge.grade

    def silent(self: Judge, items: list[Answer]) -> Any:
        verdicts = given(self, items)
        return [self._verdict(verdict.boxed, "timeout") for verdict in verdicts]

    monkeypatch.setattr(Judge, "grade", silent)
    with trainer.judge:
        line = trainer.take_step(1)
    assert (line["reward"], line["correct"], line["unjudged"], line["gradient_norm"]) == (None, None, 100.0, 0.0)
    after = trainer.lm.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert json.loads(json.dumps(line)) == line
