"""Prints the samples of one run on one test set in one mode: question, gold, thinking, answer and verdict."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.compute as pc

from softtok.config.messages import nearest
from softtok.errors import UserError
from softtok.problems.terminal import Page, Step
from softtok.report.run_files import read_columns
from softtok.report.thoughts import read_thoughts
from softtok.storage.files import THOUGHTS_SUFFIX

COLUMNS = (
    *("inference_mode", "problem_id", "sample", "correct", "status", "answer", "cot"),
    *("cot_tokens", "answer_tokens", "stop"),
)
STOPPED = {"phrase": "stop phrase", "eos": "EOS", "cap": "cut off", "entropy": "sure"}


class Question(NamedTuple):
    """A problem as a person reads it."""

    text: str
    golds: list[str]


@dataclass(frozen=True)
class Shown:
    """Which samples are shown, and how: those of one problem, the wrong ones, with their soft steps."""

    problem: str | None = None
    wrong: bool = False
    steps: bool = False


def tested_on(run: Path) -> list[str]:
    """Returns the test sets of which a run has samples."""
    files = (path for path in (run / "eval").glob("*/*.parquet") if not path.name.endswith(THOUGHTS_SUFFIX))
    return sorted({path.parent.name for path in files})


def sample_files(run: Path, test_set: str) -> list[Path]:
    """Returns the files with a run's samples of a test set, the newest first. Raises UserError if there are none."""
    found = [path for path in (run / "eval" / test_set).glob("*.parquet") if not path.name.endswith(THOUGHTS_SUFFIX)]
    if not found:
        known = tested_on(run)
        told = nearest(test_set, dict.fromkeys(known)) if known else ""
        raise UserError(f"{run} has no samples of a test set {test_set!r}{told}")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def read_samples(run: Path, test_set: str, mode: str) -> tuple[Path, pd.DataFrame]:
    """Returns the newest file with samples in a mode, and these samples. Raises UserError if there are none."""
    known: dict[str, None] = {}
    for path in sample_files(run, test_set):
        table = read_columns(path, COLUMNS)
        chosen = table.filter(pc.equal(table["inference_mode"], mode))
        if chosen.num_rows:
            return path, chosen.to_pandas()
        known |= dict.fromkeys(table["inference_mode"].unique().to_pylist())
    raise UserError(f"{run} has no samples of {test_set} in a mode {mode!r}{nearest(mode, known)}")


def questions(path: Path) -> dict[str, Question]:
    """Returns the problems of a prepared data set by their ids."""
    table = read_columns(path, ("id", "question", "gold")).to_pydict()
    return {
        name: Question(text, golds)
        for name, text, golds in zip(table["id"], table["question"], table["gold"], strict=True)
    }


def asked(run: Path, test_set: str, ids: set[str], data: Path | None = None) -> dict[str, Question]:
    """Returns the questions of these problems: of `data`, or of the prepared set in the results that the run is in.

    Raises UserError if there is none with all of them, or if several differ in these questions.
    """
    folder = Path(*run.resolve().parts[:-5]) / "data" / "test"
    name = re.compile(rf"{re.escape(test_set)}-[0-9a-f]{{8}}\.parquet")
    paths = [data] if data else sorted(path for path in folder.glob("*.parquet") if name.fullmatch(path.name))
    found = [known for known in map(questions, paths) if ids <= known.keys()]
    if not found:
        raise UserError(f"no prepared test set in {data or folder} has these problems; name it: --data FILE")
    if any(other[i] != found[0][i] for other in found[1:] for i in ids):
        raise UserError(f"several prepared test sets in {folder} have these problems; name one: --data FILE")
    return found[0]


def sample_lines(
    run: Path, test_set: str, mode: str, shown: Shown, page: Page, data: Path | None = None
) -> Iterator[str]:
    """Yields what is printed: each problem with all its samples, or those that `shown` asks for."""
    path, samples = read_samples(run, test_set, mode)
    problems = asked(run, test_set, set(samples["problem_id"]), data)
    if shown.problem is not None and shown.problem not in problems:
        raise UserError(f"--problem: {test_set} has no problem {shown.problem!r}{nearest(shown.problem, problems)}")
    steps = _steps(path, mode) if shown.steps else None
    count = 0
    for name, of_problem in samples.sort_values(["problem_id", "sample"]).groupby("problem_id"):
        some = of_problem[~of_problem["correct"]] if shown.wrong else of_problem
        if steps is not None:
            some = some[[(name, sample) in steps for sample in some["sample"]]]
        if some.empty or shown.problem not in (None, name):
            continue
        count += 1
        yield from _problem(str(name), problems[str(name)], of_problem, page)
        for sample in some.itertuples():
            yield from _sample(sample, None if steps is None else steps[name, sample.sample], page)
    if not count:
        yield "no sample is of this kind"


def _steps(path: Path, mode: str) -> dict[tuple[object, object], pd.DataFrame]:
    """Returns the recorded soft steps by problem and sample. Raises UserError if there are none of this mode."""
    thoughts = read_thoughts(path)
    of_mode = None if thoughts is None else thoughts[thoughts["inference_mode"] == mode]
    if of_mode is None or of_mode.empty:
        raise UserError(f"{path.with_suffix(THOUGHTS_SUFFIX)} has no steps in {mode}: not recorded, or tokens are hard")
    return {(name, sample): steps for (name, sample), steps in of_mode.groupby(["problem_id", "sample"])}


def _problem(name: str, question: Question, samples: pd.DataFrame, page: Page) -> Iterator[str]:
    yield page.strong(f"problem {name}: {int(samples['correct'].sum())} of {len(samples)} samples right")
    yield from page.text(question.text, "  ")
    yield from page.text(f"gold: {' or '.join(question.golds)}", "  ")


def _sample(sample: Any, steps: pd.DataFrame | None, page: Page) -> Iterator[str]:
    tokens = f"{sample.cot_tokens} + {sample.answer_tokens} tokens"
    ended = f"CoT ended: {STOPPED.get(sample.stop, sample.stop)}"
    yield f"sample {sample.sample}: {page.verdict(sample.status, sample.correct)}, {ended}, {tokens}"
    if steps is None:
        yield from page.text(sample.cot.strip(), "  ")
    else:
        yield page.heading()
        for step in steps.sort_values("step").to_dict("records"):
            yield from page.step(step["step"], Step(*(step[name] for name in Step._fields)))
    yield from page.text(f"answer: {sample.answer.strip()}", "  ")
    yield ""
