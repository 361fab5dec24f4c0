"""Problems of a prepared data set, rendered, tokenized and put into batches; verdicts on their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from softtok.method.noise_units import RMS_PROMPTS
from softtok.method.stopping import TextRules
from softtok.method.trajectories import Rollout
from softtok.models.language_model import LanguageModel
from softtok.models.prompts import ask
from softtok.problems.prompting import Asking, without_shots
from softtok.problems.reward import Answer, Judge, Verdict
from softtok.storage.files import content_hash, read_columns

RMS_SLICE = "noise"  # the key of a shuffle: the same prompts measure the states that noise is scaled by


@dataclasses.dataclass(frozen=True)
class Problem:
    id: str
    prompt: list[int]
    golds: list[str]
    text: str = ""  # of the prompt
    columns: str = "{}"  # others of the data set, a JSON object, where a user's reward gets them


def read_problems(path: Path, lm: LanguageModel, asking: Asking, columns: bool = False) -> list[Problem]:
    """The problems of a prepared data set, their prompts rendered and tokenized.

    The tokenizer adds its own BOS, if it has one; UserError if that makes two, or a prompt ends in EOS. `columns` also
    reads the other columns, which a set has for a user's reward.
    """
    table = read_columns(path, names_of(columns)).to_pydict()
    texts, prompts = ask(lm, asking, table["question"])
    others = table["columns"] if columns else ["{}"] * len(texts)
    return [Problem(*row) for row in zip(table["id"], prompts, table["gold"], texts, others, strict=True)]


def training_problems(path: Path, lm: LanguageModel, asking: Asking, columns: bool = False) -> list[Problem]:
    """Returns the problems that are no examples in the prompts: their answers could be copied from there.

    Neither training nor validation gets the others, whose number is printed.
    """
    problems = read_problems(path, lm, asking, columns)
    if not asking.shots:
        return problems
    kept = without_shots(asking.shots, read_columns(path, ["question"]).column("question").to_pylist())
    if left_out := len(problems) - len(kept):
        print(f"softtok: {left_out:,} of {len(problems):,} problems are examples in prompts, and left out", flush=True)
    return [problems[place] for place in kept]


def names_of(columns: bool) -> list[str]:
    """Returns the columns that a job reads of a prepared data set; `columns` as in `read_problems`."""
    return ["id", "question", "gold", *(["columns"] if columns else [])]


def problems_hash(path: Path, names: Sequence[str]) -> str:
    """Returns the SHA-256 of these columns of a prepared data set, as JSON.

    It identifies the problems, whatever the bytes of the file are, which another version of its writer may change.
    """
    return content_hash(read_columns(path, names).to_pylist(), 64)


def shuffled(count: int, key: str) -> np.ndarray:
    """Returns a permutation of range(count) that depends on `key` alone."""
    return np.random.default_rng(int(content_hash(key, 16), 16)).permutation(count)


def rms_prompts(problems: list[Problem]) -> list[list[int]]:
    """Returns the fixed prompts after which `noise_units.state_rms` measures the states."""
    return [problems[i].prompt for i in shuffled(len(problems), RMS_SLICE)[:RMS_PROMPTS]]


def to_judge(rules: TextRules, out: Rollout, problems: list[Problem]) -> list[Answer]:
    """Returns the N answers to B problems as a judge takes them."""
    texts = [rules.answer_text(out.prefill(row), answer) for row, answer in enumerate(out.answers)]
    of_row = [problems[row // out.samples] for row in range(len(texts))]
    return [Answer(text, p.golds, p.text, p.columns) for text, p in zip(texts, of_row, strict=True)]


def grade(judge: Judge, rules: TextRules, out: Rollout, problems: list[Problem]) -> list[Verdict]:
    """Returns the verdicts on N answers to B problems."""
    return judge.grade(to_judge(rules, out, problems))


def reward_metrics(verdicts: list[Verdict]) -> dict[str, float | None]:
    """Returns what a step logs of its verdicts: mean reward, and shares in percent.

    `reward` and `correct` are of the answers with a verdict, and None if there are none. `unjudged` is the share of the
    others (`timeout` and `error`).
    """
    rewards = [verdict.reward for verdict in verdicts if verdict.judged]
    correct = [verdict.correct for verdict in verdicts if verdict.judged]
    return {
        "reward": torch.tensor(rewards).mean().item() if rewards else None,
        "correct": 100 * float(np.mean(correct)) if correct else None,
        "boxed": 100 * float(np.mean([verdict.boxed is not None for verdict in verdicts])),
        "unjudged": 100 * float(np.mean([not verdict.judged for verdict in verdicts])),
    }
