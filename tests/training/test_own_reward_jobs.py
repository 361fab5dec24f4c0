"""Training and evaluation with a reward and an answer format of the user's own, from prepared data to records."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from softtok import plugins
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import EvaluationSpec, RunSpec
from softtok.errors import UserError
from softtok.evaluation.evaluate import evaluate
from softtok.method.stopping import TextRules
from softtok.models.base_model import base_run
from softtok.models.loading import load
from softtok.problems.answer_format import AnswerFormat
from softtok.problems.own_reward import DOOR
from softtok.problems.prepare import prepare
from softtok.problems.reward import Grading
from softtok.problems.spec import Kind
from softtok.training.train import train
from tests.support.specs import HARD, base_spec, data_spec, evaluation_spec, toy_model, train_spec

WORDS = AnswerFormat(extract="all", stop_phrase="The answer is", prefill=" The")  # that the toy's tokenizer knows


def graded(code: str, file: Path) -> Grading:
    """The grading of a function `f` with this code."""
    file.write_text(code, encoding="utf-8")
    return Grading.model_validate(
        {"reward": plugins.locate(f"{file}:f", DOOR), "answer_format": WORDS, "solved_at": 0.25}
    )


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Path]:
    """A train and a test set with the columns that a reward of the user's own gets."""
    counts: dict[Kind, int] = {"train": 40, "test": 6}
    for kind, count in counts.items():
        spec = data_spec(kind, {"toy": {"task": "sums", "problems": count}})
        prepare(spec.model_copy(update={"columns": True}), tmp_path / f"{kind}.parquet", {}, None)
    return {kind: tmp_path / f"{kind}.parquet" for kind in counts}


TRL = """
def f(prompts, completions, question, gold, **columns):
    assert all(q in p for q, p in zip(question, prompts))
    return [len(c) % 3 / 2 for c in completions]
"""


def test_training_takes_the_functions_numbers(tiny_toy: Path, data: dict[str, Path], tmp_path: Path) -> None:
    spec = RunSpec(**dict(train_spec(HARD, steps=2)) | {"grading": graded(TRL, tmp_path / "mine.py")})
    train(spec, RuntimeSettings(), tiny_toy, data["train"], tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    assert len(steps) == 2
    assert all(0 < line["reward"] < 1 for line in steps), "between 0 and 1, not 0, 10 or 100"
    assert all(line["correct"] >= 100 * line["reward"] for line in steps), "0.5 and 1 count as solved"


def test_an_edited_reward_judges_anew(tiny_toy: Path, data: dict[str, Path], tmp_path: Path) -> None:
    """The answers of an evaluation are kept by what they depend on, and that is the reward too."""
    run = tmp_path / "base"
    base_run(base_spec(toy_model()), tiny_toy, run)
    found = {}
    for value in ("1.0", "0.0"):
        grading = graded(f"def f(completions, **kw): return [{value}] * len(completions)", tmp_path / "mine.py")
        spec = EvaluationSpec(**dict(evaluation_spec("hard-sample")) | {"grading": grading})
        evaluate(spec, RuntimeSettings(), run, data["test"], tmp_path / f"{value}.parquet")
        found[value] = pq.read_table(tmp_path / f"{value}.parquet").to_pylist()
    assert {row["correct"] for row in found["1.0"]} == {True}
    assert {row["correct"] for row in found["0.0"]} == {False}
    assert [row["cot"] for row in found["1.0"]] == [row["cot"] for row in found["0.0"]]


def test_the_format_reaches_the_rollout(tiny_toy: Path, data: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "base"
    base_run(base_spec(toy_model()), tiny_toy, run)
    grading = graded("def f(answer, gold): return not answer.startswith('The')", tmp_path / "mine.py")
    spec = EvaluationSpec(**dict(evaluation_spec("hard-sample")) | {"grading": grading})
    evaluate(spec, RuntimeSettings(), run, data["test"], tmp_path / "out.parquet")
    for row in pq.read_table(tmp_path / "out.parquet").to_pylist():
        assert row["answer"].startswith(" The" if row["stop"] == "phrase" else " The answer is The")
        assert row["status"] in ("correct", "unboxed"), "the prefilled words are no part of the answer"


def test_words_that_a_tokenizer_does_not_know_are_refused(
    tiny_toy: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "base"
    base_run(base_spec(toy_model()), tiny_toy, run)
    grading = Grading(reward="exact", answer_format=AnswerFormat(extract="all", prefill=" Zürich:"))
    spec = EvaluationSpec(**dict(evaluation_spec("hard-sample")) | {"grading": grading})
    with pytest.raises(UserError, match="for the prefilled ' Zürich:'; take another answer_format"):
        evaluate(spec, RuntimeSettings(), run, data["test"], tmp_path / "out.parquet")


def test_a_broken_reward_ends_a_job_before_its_model_is_loaded(data: dict[str, Path], tmp_path: Path) -> None:
    grading = graded("def f(answer, gold): return None", tmp_path / "mine.py")
    spec = RunSpec(**dict(train_spec(HARD)) | {"grading": grading})
    with pytest.raises(UserError, match=r"mine\.py, line 1: f returns None"):
        train(spec, RuntimeSettings(), tmp_path / "no model", data["train"], tmp_path / "run")


def test_the_format_says_when_a_cot_and_an_answer_end(tiny_toy: Path) -> None:
    lm = load(tiny_toy, RuntimeSettings())
    paper, words = TextRules(lm), TextRules(lm, WORDS)
    closed = lm.tokenizer.encode(" 5}", add_special_tokens=False)
    assert (paper.answer_ends(closed), words.answer_ends(closed)) == (True, False)
    for phrase, ends in (("The final answer is:", ("phrase", None)), ("The answer is", (None, "phrase"))):
        ids = np.array(lm.tokenizer.encode(f"so {phrase}", add_special_tokens=False))
        assert (paper.stop(ids), words.stop(ids)) == ends
