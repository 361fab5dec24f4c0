"""Multiple choice, out of domain: does training keep what the base model knew?

`letters`: the options stand in the prompt, and the most likely letter is the choice. `cloze`: the option whose text is
most likely per token after the bare question is the choice. In both, the NLL is that of the right answer's text after
the bare question: with the options in the prompt it would measure copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch

from softtok.models import LanguageModel, causal_mask, left_pad, load, logits_fp32
from softtok.progress import progress
from softtok.prompt import choice_prompt, cloze_prompt
from softtok.settings import RuntimeSettings
from softtok.state import atomic, attempt, read_columns

SCHEMA = pa.schema(
    {"id": pa.string(), "correct": pa.bool_(), "predicted": pa.int64(), "nll": pa.float64(), "tokens": pa.int64()}
)


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    choices: list[str]
    answer: int


def choices(spec: dict[str, Any], runtime: RuntimeSettings, run: Path, data: Path, out: Path) -> None:
    """Scores every question of the choice set `data` and writes one row each to the parquet file `out`."""
    with attempt(run / ".state" / "choices.jsonl"):
        lm = load(run / "checkpoint", runtime)
        columns = [field.name for field in fields(Question)]
        questions = [Question(**row) for row in read_columns(data, columns).to_pylist()]
        score = _letters if spec["evaluation"]["choice_format"] == "letters" else _cloze
        records = []
        size = max(1, runtime.rollout_rows // 4)  # a question takes about as many rows as it has options
        room = runtime.rollout_tokens
        with progress("choices", len(questions)) as advance:
            for start in range(0, len(questions), size):
                part = questions[start : start + size]
                for question, (predicted, nll, tokens) in zip(part, score(lm, part, room), strict=True):
                    correct = predicted == question.answer
                    records.append(
                        {"id": question.id, "correct": correct, "predicted": predicted, "nll": nll, "tokens": tokens}
                    )
                advance(len(part))
        with atomic(out) as temporary:
            pyarrow.parquet.write_table(pa.Table.from_pylist(records, SCHEMA), temporary)


def _letters(lm: LanguageModel, questions: Sequence[Question], room: int) -> list[tuple[int, float, int]]:
    """(chosen option, NLL of the right text, its tokens) of each question."""
    pairs = [
        (choice_prompt(q.question, q.choices), f" {letter}")
        for q in questions
        for letter in ascii_uppercase[: len(q.choices)]
    ]
    letters = iter(log_likelihoods(lm, pairs, room))
    texts = log_likelihoods(lm, [(cloze_prompt(q.question), f" {q.choices[q.answer]}") for q in questions], room)
    scored = []
    for question, (text, tokens) in zip(questions, texts, strict=True):
        options = [next(letters)[0] for _ in question.choices]
        scored.append((max(range(len(options)), key=options.__getitem__), -text, tokens))
    return scored


def _cloze(lm: LanguageModel, questions: Sequence[Question], room: int) -> list[tuple[int, float, int]]:
    """As `_letters`, choosing by log-likelihood per token of the options' texts."""
    pairs = [(cloze_prompt(q.question), f" {choice}") for q in questions for choice in q.choices]
    texts = iter(log_likelihoods(lm, pairs, room))
    scored = []
    for question in questions:
        options = [next(texts) for _ in question.choices]
        chosen = max(range(len(options)), key=lambda i: options[i][0] / options[i][1])
        right, tokens = options[question.answer]
        scored.append((chosen, -right, tokens))
    return scored


@torch.no_grad()
def log_likelihoods(lm: LanguageModel, pairs: Sequence[tuple[str, str]], room: int) -> list[tuple[float, int]]:
    """(log-probability in nats, tokens) of each continuation after its prompt, at temperature 1. At most `room`
    tokens, padding too, are run at a time (or one pair)."""
    prompts = [lm.tokenizer(prompt)["input_ids"] for prompt, _ in pairs]
    rests = [lm.tokenizer(rest, add_special_tokens=False)["input_ids"] for _, rest in pairs]
    texts = [prompt + rest for prompt, rest in zip(prompts, rests, strict=True)]
    scored: dict[int, tuple[float, int]] = {}
    waiting = sorted(range(len(pairs)), key=lambda place: -len(texts[place]))
    while waiting:
        count = max(1, room // len(texts[waiting[0]]))
        part, waiting = waiting[:count], waiting[count:]
        ids, mask, positions = left_pad([texts[place] for place in part], lm.device)
        hidden = lm.hidden(lm.embed(ids), causal_mask(mask), positions, None)
        for row, place in enumerate(part):
            rest = rests[place]
            logits = logits_fp32(hidden[row, -len(rest) - 1 : -1], lm.head_VD)  # the state before a token predicts it
            target = torch.tensor(rest, device=lm.device)
            log_p = torch.log_softmax(logits, -1).gather(1, target[:, None])
            scored[place] = (log_p.sum().item(), len(rest))
    return [scored[place] for place in range(len(pairs))]
