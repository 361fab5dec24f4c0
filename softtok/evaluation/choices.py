"""Scores multiple-choice sets, which are out of domain: they tell whether training keeps what the base model knew.

With `letters` the prompt lists the options, and the most likely letter is chosen. With `cloze` the prompt is the
question alone, and the option with the most likely text per token is chosen. In both, the NLL is that of the right
answer's text after the question alone. With the options in the prompt, it would measure copying.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pyarrow as pa
import torch

from softtok.config.manifests import CheckpointManifest, read
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import ChoicesSpec
from softtok.models.devices import announce, peak_memory_mb
from softtok.models.language_model import LanguageModel, causal_mask, in_fp32, left_pad, logits_fp32, refuse_longer
from softtok.models.loading import load
from softtok.models.tokenizer_checks import encode
from softtok.problems.prompt import choice_prompt, cloze_prompt
from softtok.storage.costs import JobCost, parts_of, write_cost
from softtok.storage.files import content_hash, read_columns, write_table
from softtok.storage.locks import Interruption, exclusive_lock
from softtok.storage.progress import job_name, progress, shown_as_running
from softtok.storage.provenance import attempt
from softtok.storage.retries import linked_state, measuring_notes
from softtok.storage.shards import Shard

TOKENS_AT_ONCE = 512  # tokens whose logits are in memory at one time
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "correct": pa.bool_(),
        "predicted": pa.int64(),
        "nll": pa.float64(),
        "tokens": pa.int64(),
        "made_on": pa.string(),
    }
)


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    choices: list[str]
    answer: int


def choices(spec: ChoicesSpec, runtime: RuntimeSettings, run: Path, data: Path, out: Path) -> None:
    """Scores every question of the choice set `data`; writes one row each to the parquet file `out`, and the cost."""
    started = time.monotonic()
    state, job = linked_state(run, runtime.state_folder), job_name(run, out)
    notes = measuring_notes(state, "choices", out)
    with (
        attempt(*notes, notes.saved()),
        shown_as_running(state, job) as note,
        Interruption() as interruption,
    ):
        checkpoint = read(CheckpointManifest, run / "checkpoint" / "checkpoint.json")
        lm = load(run / "checkpoint", runtime)
        made_on = announce(lm.device, lm.dtype)
        columns = [field.name for field in fields(Question)]
        rows = read_columns(data, columns).to_pylist()
        header = {
            "checkpoint": checkpoint.sha256,
            "data": content_hash(rows, 64),
            "choice_format": spec.choice_format,
            "version": spec.version,
        }
        of_set = content_hash(header, 16)
        ready_s, questions = time.monotonic() - started, [Question(**row) for row in rows]
        with (
            exclusive_lock(state / "locks" / of_set, interruption),
            progress("choices", len(questions), unit="questions", note=note) as shown,
        ):
            shard = Shard(state / "shards" / f"{of_set}.jsonl", header)
            found = {line["id"] for line in shard.lines}
            missing = [question for question in questions if question.id not in found]
            shown.skip(len(found))
            score = _letters if spec.choice_format == "letters" else _cloze
            size = max(1, runtime.rollout_rows // 4)  # a question takes about as many rows as it has options
            for start in range(0, len(missing), size):
                part, before = missing[start : start + size], time.monotonic()
                scored = score(lm, part, runtime.rollout_tokens)
                wall_s = (time.monotonic() - before) / len(part)
                made = {"made_on": made_on, "wall_s": wall_s, "peak_memory_mb": peak_memory_mb(lm.device)}
                lines = [_line(*pair) | made for pair in zip(part, scored, strict=True)]
                shard.append(lines)
                shown.advance(len(part), recent={"correct": 100 * sum(line["correct"] for line in lines) / len(part)})
                interruption.exit_if_asked()
        write_cost(out, JobCost(made_on=made_on, ready_s=ready_s, parts=parts_of("", shard.lines)))
        by_id = {line["id"]: line for line in shard.lines}
        records = [{name: by_id[question.id][name] for name in SCHEMA.names} for question in questions]
        write_table(out, pa.Table.from_pylist(records, SCHEMA))  # last, as this tells that the job has finished


def _line(question: Question, scored: tuple[int, float, int]) -> dict[str, Any]:
    """Returns what is noted of one question; `scored` as `_letters` and `_cloze` have it."""
    predicted, nll, tokens = scored
    return {
        "id": question.id,
        "correct": predicted == question.answer,
        "predicted": predicted,
        "nll": nll,
        "tokens": tokens,
    }


def _letters(lm: LanguageModel, questions: Sequence[Question], room: int) -> list[tuple[int, float, int]]:
    """Returns (chosen option, NLL of the right text, its tokens) of each question."""
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
    """Returns the same as `_letters`, but chooses by log-likelihood per token of the options' texts."""
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
    """Returns (log-probability in nats, tokens) of each continuation after its prompt, at temperature 1.

    At most `room` tokens with padding, or one text, are run at a time. Texts that differ only in their last token, as
    with letters, are run once.
    """
    texts: dict[tuple[int, ...], list[int]] = {}  # the tokens to run, all but a pair's last one -> places of its pairs
    rests: list[list[int]] = []
    prompts = encode(lm, [prompt for prompt, _ in pairs])
    for place, (prompt, (_, rest)) in enumerate(zip(prompts, pairs, strict=True)):
        rests.append(lm.tokenizer(rest, add_special_tokens=False)["input_ids"])
        texts.setdefault((*prompt, *rests[-1][:-1]), []).append(place)
    scored: list[tuple[float, int]] = [(0.0, 0)] * len(pairs)
    head_VD, _ = in_fp32(lm, mixtures=False)
    waiting = sorted(texts, key=lambda text: -len(text))
    refuse_longer(lm, max(map(len, waiting), default=0), "a choice set")
    while waiting:
        count = max(1, room // len(waiting[0]))
        part, waiting = waiting[:count], waiting[count:]
        ids, mask, positions = left_pad([list(text) for text in part], lm.device)
        hidden = lm.hidden(lm.embed(ids), causal_mask(mask), positions, None)
        # The state before a token predicts it.
        asked = [
            (row, len(ids[row]) - len(rests[place]) + at, token, place)
            for row, text in enumerate(part)
            for place in texts[text]
            for at, token in enumerate(rests[place])
        ]
        for start in range(0, len(asked), TOKENS_AT_ONCE):
            row, at, token, _ = torch.tensor(asked[start : start + TOKENS_AT_ONCE], device=lm.device).T
            log_p = torch.log_softmax(logits_fp32(hidden[row, at], head_VD), -1)
            known = log_p.gather(1, token[:, None])[:, 0].tolist()
            for (*_, place), value in zip(asked[start : start + TOKENS_AT_ONCE], known, strict=True):
                scored[place] = (scored[place][0] + value, len(rests[place]))
    return scored
