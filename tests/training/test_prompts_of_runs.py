"""Prompts of training and evaluation: whose examples they hold, and that no example is learned or tested."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from softtok.config.manifests import CheckpointManifest, read
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import EvaluationSpec, RunSpec
from softtok.errors import UserError
from softtok.evaluation import evaluate as evaluation
from softtok.method.batches import Problem, read_problems
from softtok.models.base_model import base_run
from softtok.problems.prepare import prepare
from softtok.problems.prompting import Asking, Prompting, Shot
from softtok.problems.spec import DataSpec, WorkedRule
from softtok.training.train import Trainer, train
from tests.support.specs import HARD, TEMPLATE, base_spec, data_spec, evaluation_spec, toy_model, train_spec

CPU = RuntimeSettings()
OTHER = Shot(question="What is 1 + 1?", worked="1 + 1 = 2.", answer="2")


def shots_spec(count: int) -> DataSpec:
    """The first toy problems as examples."""
    spec = data_spec("train", {"toy": {"task": "sums", "problems": 40, "steps": [1, 2]}}, limit=count)
    return spec.model_copy(update={"fields": spec.fields.model_copy(update={"worked": WorkedRule(field="worked")})})


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    prepare(shots_spec(5), tmp_path / "shots.parquet", {}, None)
    return tmp_path / "shots.parquet"


def with_prompting(spec: Any, **prompting: Any) -> Any:
    """Returns the spec of a run or an evaluation, whose data set says this of its prompts."""
    return spec.model_copy(update={"prompting": Prompting(**prompting)})


def test_examples_are_neither_trained_on_nor_validated(
    tiny_toy: Path, toy_sets: dict[str, Path], shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec: RunSpec = with_prompting(train_spec(HARD), shots=shots_spec(5))
    trainer = Trainer(spec, CPU, tiny_toy, toy_sets["train"], tmp_path / "run", shots)
    assert "softtok: 5 of 40 problems are examples in prompts, and left out" in capsys.readouterr().out
    ids = pq.read_table(toy_sets["train"]).column("id").to_pylist()
    seen = {problem.id for problem in (*trainer.problems, *trainer.validation)}
    assert seen == set(ids[5:])
    shown = pq.read_table(shots).to_pylist()
    for problem in (*trainer.problems, *trainer.validation):
        assert all(f"User: {row['question']} Assistant: {row['worked']} The final" in problem.text for row in shown)


def test_other_examples_leave_all_problems(tiny_toy: Path, toy_sets: dict[str, Path], tmp_path: Path) -> None:
    spec = with_prompting(train_spec(HARD), shots=[OTHER])
    trainer = Trainer(spec, CPU, tiny_toy, toy_sets["train"], tmp_path / "run")
    assert len(trainer.problems) + len(trainer.validation) == 40
    assert trainer.state.key != Trainer(train_spec(HARD), CPU, tiny_toy, toy_sets["train"], tmp_path / "run").state.key


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asking]:
    """How each evaluation asked its questions."""
    noted: list[Asking] = []

    def reading(path: Path, lm: Any, asking: Asking, columns: bool = False) -> list[Problem]:
        noted.append(asking)
        return read_problems(path, lm, asking, columns)

    monkeypatch.setattr(evaluation, "read_problems", reading)
    return noted


def run_of(model_says: Prompting | None, tiny_toy: Path, out: Path) -> Path:
    """The run of an untouched model that says this of its prompts."""
    base_run(base_spec(toy_model().model_copy(update={"prompting": model_says})), tiny_toy, out)
    return out


def test_a_test_sets_prompts_go_before_those_of_the_model_in_the_checkpoint(
    tiny_toy: Path, toy_sets: dict[str, Path], shots: Path, asked: list[Asking], tmp_path: Path
) -> None:
    run = run_of(Prompting(shots=shots_spec(5), system="Think."), tiny_toy, tmp_path / "run")
    spec: EvaluationSpec = evaluation_spec("hard-greedy")
    evaluation.evaluate(spec, CPU, run, toy_sets["test"], tmp_path / "one.parquet", shots)
    own = with_prompting(spec, shots=[OTHER], prompt="Q: {question}")
    evaluation.evaluate(own, CPU, run, toy_sets["test"], tmp_path / "two.parquet")
    none = with_prompting(spec, shots=[])
    evaluation.evaluate(none, CPU, run, toy_sets["test"], tmp_path / "three.parquet")
    one, two, three = asked
    assert len(one.shots) == 5 and one.template == TEMPLATE and one.system == "Think."
    assert two == Asking("Q: {question}", "Think.", (OTHER,))
    assert three == replace(one, shots=())
    assert len(list((run / ".state" / "shards").glob("*.jsonl"))) == 3, "answers to other prompts are other answers"


def test_a_trained_checkpoint_asks_as_its_model(
    tiny_toy: Path, toy_sets: dict[str, Path], asked: list[Asking], tmp_path: Path
) -> None:
    """And not as its train set: that is the train set's own."""
    says = Prompting(system="Think.")
    spec = with_prompting(train_spec(HARD, steps=1), shots=[OTHER])
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"prompting": says})})
    train(spec, CPU, tiny_toy, toy_sets["train"], tmp_path / "run")
    assert read(CheckpointManifest, tmp_path / "run/checkpoint/checkpoint.json").prompting == says
    evaluation.evaluate(evaluation_spec("hard-greedy"), CPU, tmp_path / "run", toy_sets["test"], tmp_path / "x.parquet")
    assert asked == [Asking(TEMPLATE, "Think.")]


def test_a_test_question_as_an_example_is_refused_before_the_model_is_loaded(
    tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluation, "load", pytest.fail)
    run = run_of(None, tiny_toy, tmp_path / "run")
    question = pq.read_table(toy_sets["test"]).column("question")[3].as_py()
    spec = with_prompting(evaluation_spec("hard-greedy"), shots=[Shot(question=f" {question}", answer="1")])
    with pytest.raises(UserError, match="is a question of test set"):
        evaluation.evaluate(spec, CPU, run, toy_sets["test"], tmp_path / "x.parquet")
