"""`softtok sample` and `softtok compare` print what is in the files of real runs, and nothing else."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from softtok.__main__ import main
from softtok.config.settings import RuntimeSettings
from softtok.errors import UserError
from softtok.evaluation.evaluate import evaluate
from softtok.models.base_model import base_run
from softtok.problems.terminal import Page
from softtok.report.compare import compare_lines, difference, flat
from softtok.report.metrics import bootstrap_interval
from softtok.report.samples import Shown, asked, sample_lines
from softtok.report.thoughts import read_thoughts
from softtok.storage.files import THOUGHTS_SUFFIX, read_manifest, write_manifest
from tests.support.specs import base_spec, evaluation_spec, toy_model

NAME = "eval/sums/six-0123abcd.parquet"
MODES = ("hard-sample", "soft-sample")
PAGE = Page(100)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Path:
    """A run of an untouched toy in a results folder, evaluated in two modes."""
    results = tmp_path_factory.mktemp("looked_at") / "results"
    run = results / "runs/toy/none/base/seed0-0123abcd"
    base_run(base_spec(toy_model()), tiny_toy, run)
    (results / "data/test").mkdir(parents=True)
    shutil.copy(toy_sets["test"], results / "data/test/sums-89abcdef.parquet")
    evaluate(evaluation_spec(*MODES, thoughts=2), RuntimeSettings(), run, toy_sets["test"], run / NAME)
    return run


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(evaluated.parents[4], tmp_path / "results")
    return tmp_path / "results" / evaluated.relative_to(evaluated.parents[4])


ALL = Shown()


def rows_of(frame: pd.DataFrame) -> list[SimpleNamespace]:
    return [SimpleNamespace(**{str(name): value for name, value in row.items()}) for row in frame.to_dict("records")]


def told(run: Path, mode: str, shown: Shown = ALL) -> str:
    return "\n".join(sample_lines(run, "sums", mode, shown, PAGE))


def test_every_sample_is_shown_with_its_question_verdict_and_stop(evaluated: Path, toy_sets: dict[str, Path]) -> None:
    text, samples = told(evaluated, "hard-sample"), pd.read_parquet(evaluated / NAME)
    samples = samples[samples.inference_mode == "hard-sample"]
    problems = rows_of(pd.read_parquet(toy_sets["test"]))
    blocks = re.split(r"(?m)^problem ", text)[1:]
    assert len(blocks) == len(problems) == 6
    for problem in problems:
        (block,) = [one for one in blocks if one.startswith(f"{problem.id}: ")]
        assert " ".join(problem.question.split()) in " ".join(block.split())
        assert f"gold: {problem.gold[0]}" in block
        of_problem = samples[samples.problem_id == problem.id]
        assert f"{of_problem.correct.sum()} of 4 samples right" in block
        for sample in rows_of(of_problem):
            stop = {"phrase": "stop phrase", "eos": "EOS", "cap": "cut off"}[sample.stop]
            line = f"sample {sample.sample}: {sample.status}, CoT ended: {stop}, {sample.cot_tokens} + "
            assert line in block
            assert " ".join(sample.cot.split()) in " ".join(block.split())
            assert f"answer: {sample.answer.strip()}" in block


def test_wrong_samples_and_one_problem_alone(run: Path) -> None:
    every = pd.read_parquet(run / NAME)
    every["correct"] = every.index % 3 == 0
    every["status"] = np.where(every["correct"], "correct", "wrong")
    every.to_parquet(run / NAME, index=False)
    samples = every.query("inference_mode == 'hard-sample'")
    wrong = told(run, "hard-sample", Shown(wrong=True))
    assert 0 < wrong.count("\nsample ") == (~samples.correct).sum() < len(samples)
    assert wrong.count(": wrong,") == (~samples.correct).sum() and ": correct," not in wrong
    name = samples.problem_id.iloc[5]
    one = told(run, "hard-sample", Shown(problem=name))
    assert re.findall(r"(?m)^problem (\S+):", one) == [name]


def test_recorded_steps_take_the_place_of_the_cot(evaluated: Path) -> None:
    steps = read_thoughts(evaluated / NAME)
    assert steps is not None
    text = told(evaluated, "soft-sample", Shown(steps=True))
    assert set(re.findall(r"(?m)^problem (\S+):", text)) == set(steps.problem_id)
    rows = [line for line in text.splitlines() if re.match(r" *\d+ \S", line)]
    assert len(rows) == len(steps)
    for row, step in zip(rows, rows_of(steps), strict=True):
        assert int(row[:4]) == step.step and f"{step.entropy:5.2f} {step.moved:5.2f}" in row


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--test-set", "sum", "--mode", "hard-sample"], "no samples of a test set 'sum'; did you mean 'sums'?"),
        (
            ["--test-set", "sums", "--mode", "hard"],
            "no samples of sums in a mode 'hard'; known: hard-sample, soft-sample",
        ),
        (["--test-set", "sums", "--mode", "hard-sample", "--problem", "x"], "has no problem 'x'"),
        (["--test-set", "sums", "--mode", "hard-sample", "--steps"], "has no steps in hard-sample"),
    ],
)
def test_what_is_not_there_is_one_line(
    words: list[str], message: str, evaluated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(evaluated), *words]) == 1
    assert message in capsys.readouterr().err


def test_questions_are_those_of_the_set_that_was_answered(run: Path) -> None:
    data = run.parents[4] / "data/test"
    ids = set(pd.read_parquet(run / NAME).problem_id)
    known = asked(run, "sums", ids)
    table = pd.read_parquet(data / "sums-89abcdef.parquet")
    table.assign(id="other-" + table.id).to_parquet(data / "sums-00000000.parquet")
    table.assign(id=table.id, question="What?").to_parquet(data / "sums-more-00000000.parquet")
    assert asked(run, "sums", ids) == known, "sets of other problems, and of other names, are passed over"
    table.assign(question="What?").to_parquet(data / "sums-11111111.parquet")
    with pytest.raises(UserError, match=r"several prepared test sets .* --data FILE"):
        asked(run, "sums", ids)
    assert asked(run, "sums", ids, data / "sums-11111111.parquet").popitem()[1].text == "What?"


def test_files_without_thoughts_are_read_as_ever(run: Path) -> None:
    (run / NAME).with_suffix(THOUGHTS_SUFFIX).unlink()
    assert read_thoughts(run / NAME) is None
    assert told(run, "soft-sample")


def test_a_comparison_is_paired_and_names_what_differs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = run.with_name("seed1-0123abcd")
    shutil.copytree(run, other)
    manifest = read_manifest(other / "manifest.json")
    manifest["spec"]["seed"] = 1
    manifest["spec"]["model"]["source"]["toy"]["width"] = 64
    write_manifest(other / "manifest.json", manifest)
    rows = pd.read_parquet(other / NAME)
    here = rows.inference_mode == "hard-sample"
    ids = sorted(rows.problem_id.unique())
    mine = rows.assign(correct=np.where(here, rows.problem_id.isin(ids[:3]), rows.correct))
    mine.to_parquet(run / NAME)
    theirs = rows.assign(correct=np.where(here, rows.problem_id.isin(ids[2:4]) & (rows["sample"] < 2), rows.correct))
    theirs.assign(cot_tokens=rows.cot_tokens + here).to_parquet(other / NAME)
    assert main(["compare", str(run), str(other)]) == 0
    text = capsys.readouterr().out
    settings = text.split("settings that differ\n")[1].split("\n\n")[0].splitlines()
    assert settings == ["  model.source.toy.width: 128 | 64", "  seed: 0 | 1"]
    shares = np.array([[100, 100, 100, 0, 0, 0], [0, 0, 50, 50, 0, 0]], float)
    low, high = bootstrap_interval(shares[1] - shares[0])
    assert f"sums hard-sample  pass@1  50.0  16.7  -33.3 [{low:+.1f}, {high:+.1f}]  n=6" in text
    assert re.search(r"tokens +\S+ +\S+ +\+1\.0 \[\+1\.0, \+1\.0\]", text), "a constant difference has no width"
    assert re.search(r"sums soft-sample  pass@1 +(\S+) +\1 +\+0\.0 \[\+0\.0, \+0\.0\]", text)
    hard = text.split("sums, hard-sample: problems")[1].split("\n\n")[0]
    assert f"only A: 2: {ids[0]} (4/4), {ids[1]} (4/4)\n" in hard
    assert f"only B: 1: {ids[3]} (2/4)" in hard


def test_a_run_compared_with_itself_differs_in_nothing(evaluated: Path) -> None:
    lines = list(compare_lines(evaluated, evaluated, PAGE))
    assert lines[lines.index("settings that differ") + 1] == "  none"
    assert [line for line in lines if "only" in line and "solves" not in line] == ["  only A: 0", "  only B: 0"] * 2


def test_settings_are_named_by_their_place() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_the_interval_is_of_the_differences_within_problems() -> None:
    """Two runs far apart from problem to problem, and always the same way from each other."""
    one = pd.Series([0.0, 50.0, 90.0, 10.0])
    assert difference(one, one + 5) == (37.5, 42.5, 5.0, 5.0, 5.0)
