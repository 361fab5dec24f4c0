"""Evaluation of one checkpoint on one test set: every inference mode of a set, one record per sample.

The modes of a set share a process, because loading a model costs more than a small cell. Each mode is an append-only
shard of its own under `.state/shards/`, named by what it depends on (checkpoint, test set, mode, settings): an
inference mode that is added later, or a crash, costs only what is missing. Answers are greedy in all modes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from softtok.config.grid import settled
from softtok.config.settings import GenerationSettings, RuntimeSettings, TokenMode
from softtok.errors import UserError
from softtok.method.batches import Problem, batches, grade, read_problems, rms_prompts
from softtok.method.rollout import rollout
from softtok.method.stopping import TextRules, most_steps
from softtok.method.token_modes import CotTokens, bind, embedding_rms, state_rms
from softtok.method.trajectories import INFERENCE_STOPS, Limits, Rollout
from softtok.models.devices import announce
from softtok.models.language_model import LanguageModel, refuse_longer
from softtok.models.loading import load
from softtok.problems.prompt import decode
from softtok.problems.reward import Judge, Verdict
from softtok.storage.files import atomic, content_hash, file_sha256, read_manifest, write_text
from softtok.storage.locks import Interruption, exclusive_lock
from softtok.storage.progress import progress
from softtok.storage.provenance import attempt
from softtok.storage.shards import Shard

SCHEMA = pa.schema(
    {
        "inference_mode": pa.string(),
        "problem_id": pa.string(),
        "sample": pa.int64(),
        "correct": pa.bool_(),
        "boxed": pa.bool_(),
        "status": pa.string(),
        "answer": pa.string(),
        "cot": pa.string(),
        "cot_tokens": pa.int64(),
        "answer_tokens": pa.int64(),
        "stop": pa.string(),
        "made_on": pa.string(),
    }
)


def evaluate(spec: dict[str, Any], runtime: RuntimeSettings, run: Path, data: Path, out: Path) -> None:
    """Runs all inference modes of `spec` and writes `out` (parquet) and, beside it, the entropy profile
    (`.entropy.csv`)."""
    with attempt(run / ".state" / "evaluate.jsonl"), Interruption() as interruption:
        settings = GenerationSettings(**spec["evaluation"])
        checkpoint = read_manifest(run / "checkpoint" / "checkpoint.json")
        lm = load(run / "checkpoint", runtime)
        made_on = announce(lm.device, lm.dtype)
        rules = TextRules(lm)
        problems = read_problems(data, lm, checkpoint["prompt"])
        modes = {
            name: TokenMode(**{field: mode[field] for field in TokenMode.model_fields if field in mode})
            for name, mode in spec["inference_modes"].items()
        }
        rms = noise_rms(lm, checkpoint, modes.values(), problems)
        limits = Limits(settings.max_cot_tokens, settings.max_answer_tokens, 0.0, settings.stop_on)
        refuse_longer(lm, max(len(p.prompt) for p in problems) + most_steps(rules, limits), f"test set {data}")
        # Ids such as "row7" are of many test sets, and draws that these share would make their results go together.
        digest = file_sha256(data)
        keys = f"evaluate|{digest[:16]}|{checkpoint['seed']}"
        shards: dict[str, Shard] = {}
        with Judge(workers=runtime.reward_workers) as judge:
            for name, mode in spec["inference_modes"].items():
                header = {
                    "checkpoint": checkpoint["sha256"], "data": digest,
                    "mode": settled(modes[name].model_dump()), "samples": mode["samples"],
                    "evaluation": spec["evaluation"], "seed": checkpoint["seed"], "version": spec["version"],
                }  # fmt: skip
                shard = content_hash(header, 16)
                with exclusive_lock(run / ".state" / "locks" / shard, interruption):  # inference sets may share a mode
                    shards[name] = Shard(run / ".state" / "shards" / f"{shard}.jsonl", header)
                    _complete(
                        name, shards[name], lm, rules, judge, bind(modes[name], lm, rms), problems,
                        int(mode["samples"]), limits, keys, made_on, runtime, interruption,
                    )  # fmt: skip
        _write(shards, out)


def noise_rms(
    lm: LanguageModel, checkpoint: dict[str, Any], modes: Iterable[TokenMode], problems: list[Problem]
) -> dict[str, float]:
    """The RMS that noise is measured in, by its place. A trained checkpoint carries its base model's. A base has no
    train set: its states are measured behind prompts of the test set, where a mode asks for it."""
    rms = {"embedding": checkpoint["embedding_rms"] or embedding_rms(lm.embedding_VD)}
    rms |= checkpoint.get("state_rms") or {}
    if any(mode.noise_scale > 0 and mode.noise_at not in rms for mode in modes):
        rms |= state_rms(lm, rms_prompts(problems))
    return rms


def _complete(
    name: str,
    shard: Shard,
    lm: LanguageModel,
    rules: TextRules,
    judge: Judge,
    tokens: CotTokens,
    problems: list[Problem],
    samples: int,
    limits: Limits,
    key: str,
    made_on: str,
    runtime: RuntimeSettings,
    interruption: Interruption,
) -> None:
    """Generates the problems that the shard lacks, a batch at a time."""
    done = {line["problem_id"] for line in shard.lines}
    missing = [p for p in problems if p.id not in done]
    with progress(f"evaluate {name}", len(problems), len(problems) - len(missing)) as advance:
        for part in batches(missing, samples, most_steps(rules, limits), runtime):
            keys = [f"{key}|{p.id}|{g}" for p in part for g in range(samples)]
            made = rollout(lm, rules, tokens, [p.prompt for p in part], samples, keys, limits)
            if not made.entropy_NT.isfinite().all():
                raise UserError(f"model {lm.name}: its logits are not finite; its weights are damaged")
            verdicts = grade(judge, rules, made, [p.golds for p in part])
            lines = [_line(lm, rules, made, verdicts, b, problem) for b, problem in enumerate(part)]
            shard.append([line | {"made_on": made_on} for line in lines])
            advance(len(part), correct=float(np.mean([v.correct for v in verdicts])))
            interruption.exit_if_asked()


def _line(
    lm: LanguageModel, rules: TextRules, made: Rollout, verdicts: list[Verdict], b: int, problem: Problem
) -> dict[str, Any]:
    """The finished samples of one problem, and the sums of its entropy profile."""
    rows = range(b * made.samples, (b + 1) * made.samples)
    lengths = made.cot_lengths[rows.start : rows.stop]
    longest = int(lengths.max())
    entropy = made.entropy_NT[rows.start : rows.stop, :longest].cpu().double().numpy()  # Apple's GPUs have no double
    thinking = np.arange(longest) < lengths[:, None]
    return {
        "problem_id": problem.id,
        "samples": [
            {
                "correct": verdicts[row].correct,
                "boxed": verdicts[row].boxed is not None,
                "status": verdicts[row].status,
                "answer": rules.answer_text(made, row),
                "cot": decode(lm.tokenizer, made.cot(row)),
                "cot_tokens": len(made.cot(row)),
                "answer_tokens": len(made.answers[row]),
                "stop": INFERENCE_STOPS[made.stops[row]],
            }
            for row in rows
        ],
        "entropy_sum": [round(float(value), 6) for value in (entropy * thinking).sum(0)],
        "entropy_count": thinking.sum(0).tolist(),
    }


def _write(shards: dict[str, Shard], out: Path) -> None:
    """Gathers the shards into the job's two outputs, problems in the order of their ids."""
    records, profile = [], []
    for name, shard in shards.items():
        total, count = np.zeros(0), np.zeros(0, np.int64)
        for line in sorted(shard.lines, key=lambda line: line["problem_id"]):
            shared = {"inference_mode": name, "problem_id": line["problem_id"], "made_on": line.get("made_on")}
            records += [{**shared, "sample": sample, **record} for sample, record in enumerate(line["samples"])]
            longer = max(len(total), len(line["entropy_sum"]))
            total = np.pad(total, (0, longer - len(total)))
            count = np.pad(count, (0, longer - len(count)))
            total[: len(line["entropy_sum"])] += line["entropy_sum"]
            count[: len(line["entropy_count"])] += line["entropy_count"]
        profile += [(name, i, f"{s / c:.6f}", c) for i, (s, c) in enumerate(zip(total, count, strict=True))]
    write_text(
        out.with_suffix(".entropy.csv"),
        "inference_mode,index,entropy,count\n" + "".join(",".join(map(str, row)) + "\n" for row in profile),
    )
    with atomic(out) as temporary:
        pyarrow.parquet.write_table(pa.Table.from_pylist(records, SCHEMA), temporary)
