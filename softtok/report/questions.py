"""Controls by the question that they answer: a training mode against the one of the paper's that it varies.

The question is the setting in which the two differ. So a study's own variants find their place too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from softtok.report.differences import difference, key_of, problem_counts, seed_values, step_of
from softtok.report.palette import PAPER_MODES
from softtok.report.study import Row, Study
from softtok.report.tables import Table, difference_text

QUESTIONS = {
    "cot_term": "Is it the term of the CoT that teaches?",
    "estimator": "Does another estimate of the gradient teach more?",
    "adjoint_iterations": "How far must the gradient go through the CoT?",
    "objective": "Does another objective give another picture?",
    "entropy_bonus": "Does a bonus on entropy do what soft tokens do?",
    "kl_coefficient": "Does a KL term to the base do what soft tokens do?",
    "samples_per_prompt": "How many samples per prompt are needed?",
    "embedding_gradient": "Does the gradient of the embedding matter?",
    "stop_on": "Does it matter how a CoT ends?",
    "noise": "Does Gumbel noise do the same?",
    "noise_at": "Where should the noise be?",
    "noise_scale": "How much noise is right?",
    "temperature": "Which temperature is right?",
    "learning_rate": "Is the learning rate right?",
}


@dataclass(frozen=True)
class Answer:
    """One control: its row, the mode that it is compared with, and (difference, interval, sure) of each column."""

    row: Row
    reference: str
    texts: list[tuple[str, str, bool]]


@dataclass(frozen=True)
class Question:
    text: str
    answers: list[Answer]


def questions(study: Study, table: Table, metrics: pd.DataFrame) -> list[Question]:
    """Returns the questions that a study's training modes answer, with differences in the columns of `table`."""
    values, problems = seed_values(metrics), problem_counts(metrics)
    found: dict[str, list[Answer]] = {}
    for row in study.rows:
        varied = variation(study, row)
        if varied is None:
            continue
        reference, question = varied
        texts = []
        for column in table.columns:
            ours, theirs = (values.get(key_of(one, column), {}) for one in (row, reference))
            apart = difference(ours, theirs, False, step_of(study, column, problems))
            texts.append(difference_text(apart, column.digits))
        found.setdefault(question, []).append(Answer(row, reference.training_mode, texts))
    return [Question(text, answers) for text, answers in sorted(found.items(), key=lambda item: _place(item[0]))]


def _place(question: str) -> int:
    texts = list(QUESTIONS.values())
    return texts.index(question) if question in texts else len(texts)


def variation(study: Study, row: Row) -> tuple[Row, str] | None:
    """Returns the row of the paper's that a row varies, and the question; None for the base and the paper's own."""
    names = study.paper.get("training_modes", {})
    if row.training_mode == "base" or names.get(row.training_mode, row.training_mode) in PAPER_MODES:
        return None
    ours = study.settings(row)
    candidates = [
        other
        for other in study.rows
        if other[:2] == row[:2] and names.get(other.training_mode, other.training_mode) in PAPER_MODES
    ]
    alike = [other for other in candidates if study.settings(other).get("tokens") == ours.get("tokens")]
    if not alike:
        return None
    reference = min(alike, key=lambda other: len(differing(ours, study.settings(other))))
    settings = differing(ours, study.settings(reference))
    if not settings:
        return None
    first = next((name for name in QUESTIONS if name in settings), settings[0])
    return reference, QUESTIONS.get(first, f"What does {first.replace('_', ' ')} change?")


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Returns the settings in which two modes differ."""
    return [name for name in dict.fromkeys((*one, *other)) if str(one.get(name)) != str(other.get(name))]
