"""Evaluation of one checkpoint on one test set: every inference mode of a set, one record per sample.

The modes of a set share a process, because loading a model takes longer than a small mode. The records of each mode are
appended to its own shard under `.state/shards/`, named by a hash of what it depends on (checkpoint, test set, mode,
settings). So after a crash, or with a further inference mode, only missing records are made. Answers are greedy in all
modes. Of a few problems the soft steps are recorded too (`thoughts.py`).
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from softtok.config.manifests import CheckpointManifest, read
from softtok.config.settings import RuntimeSettings, TokenMode
from softtok.config.specs import EvaluationSpec
from softtok.errors import UserError
from softtok.evaluation.thoughts import chosen, lacks_thoughts, latest, noted, watch, write_thoughts
from softtok.method.batches import Problem, names_of, problems_hash, read_problems, rms_prompts, to_judge
from softtok.method.dry_check import check_method
from softtok.method.noise_units import embedding_rms, state_rms
from softtok.method.stopping import TextRules
from softtok.method.stream import Room, stream
from softtok.method.token_modes import bind
from softtok.method.trajectories import INFERENCE_STOPS, Batch, Limits, Policy, Rollout
from softtok.models.devices import announce, peak_memory_mb
from softtok.models.language_model import LanguageModel, refuse_longer
from softtok.models.loading import load
from softtok.problems.dry_check import check_reward
from softtok.problems.prompt import decode
from softtok.problems.prompting import Asking, asking, refuse_tested
from softtok.problems.reward import Judge, Verdict
from softtok.problems.workers import BrokenWorkersError
from softtok.storage.costs import JobCost, parts_of, write_cost
from softtok.storage.files import ENTROPY_KEY, content_hash, read_columns, text_hash, write_table, write_text
from softtok.storage.locks import Interruption, exclusive_lock
from softtok.storage.progress import Progress, job_name, progress, shown_as_running
from softtok.storage.provenance import attempt
from softtok.storage.retries import linked_state, measuring_notes
from softtok.storage.shards import Shard

SCHEMA = pa.schema(
    {
        "inference_mode": pa.string(),
        "problem_id": pa.string(),
        "sample": pa.int64(),
        "correct": pa.bool_(),
        "boxed": pa.bool_(),
        "status": pa.string(),
        "other_status": pa.string(),  # of `math` beside `math-strict` or the reverse, where one alone says correct
        "answer": pa.string(),
        "cot": pa.string(),
        "cot_tokens": pa.int64(),
        "answer_tokens": pa.int64(),
        "stop": pa.string(),
        "made_on": pa.string(),
    }
)


def evaluate(
    spec: EvaluationSpec, runtime: RuntimeSettings, run: Path, data: Path, out: Path, shots: Path | None = None
) -> None:
    """Runs all inference modes of `spec`; writes `out` (parquet), and beside it the entropy profile and the cost.

    `shots` is the prepared train set of the examples in prompts, if there are any.
    """
    started = time.monotonic()
    state, job = linked_state(run, runtime.state_folder), job_name(run, out)
    notes = measuring_notes(state, "evaluate", out)
    with (
        attempt(*notes, notes.saved()),
        shown_as_running(state, job) as note,
        Interruption() as interruption,
    ):
        settings = spec.evaluation
        checkpoint = read(CheckpointManifest, run / "checkpoint" / "checkpoint.json")
        prompts = _asked(spec, checkpoint, data, shots)
        check_reward(spec.grading, data, prompts.template)
        check_method(spec.inference_modes.values())
        lm = load(run / "checkpoint", runtime)
        made_on = announce(lm.device, lm.dtype)
        rules = TextRules(lm, spec.grading.answer_format)
        problems = read_problems(data, lm, prompts, columns=spec.grading.wants_columns)
        rms = noise_rms(lm, checkpoint, spec.inference_modes.values(), problems)
        limits = Limits(settings.max_cot_tokens, settings.max_answer_tokens, 0.0, settings.stop_on)
        policies = {name: Policy(lm, rules, bind(mode, rms), limits) for name, mode in spec.inference_modes.items()}
        longest = max(len(p.prompt) for p in problems) + max(policy.most_steps for policy in policies.values())
        refuse_longer(lm, longest, f"test set {data}")
        # Many test sets have ids such as "row7". If they shared their draws, their results would be correlated. Golds
        # do not count: answers judged by other golds stay the same answers.
        questions = problems_hash(data, ["id", "question"])
        key = f"evaluate|{questions[:16]}|{checkpoint.seed}"
        header = _header(spec, checkpoint, problems_hash(data, names_of(spec.grading.wants_columns)), prompts)
        shards: dict[str, Shard] = {}
        ready_s, recorded = time.monotonic() - started, chosen(problems, settings.thoughts)
        answers = len(problems) * sum(mode.samples for mode in spec.inference_modes.values())
        with (
            saved_if_stopped(interruption),
            Judge(workers=runtime.reward_workers, grading=spec.grading) as judge,
            progress("evaluate", answers, unit="answers", note=note) as shown,
        ):
            cells = Cells(problems, judge, runtime, key, made_on, interruption, shown, recorded, rms["embedding"])
            for name, mode in spec.inference_modes.items():
                of_mode = header | {"mode": mode.model_dump(mode="json")}
                shard = content_hash(of_mode, 16)
                with exclusive_lock(state / "locks" / shard, interruption):  # inference sets may share a mode
                    shards[name] = Shard(state / "shards" / f"{shard}.jsonl", of_mode)
                    cells.complete(name, shards[name], policies[name], mode.samples)
        write_thoughts(shards, recorded, lm.tokenizer, out)
        parts = [part for name, shard in shards.items() for part in parts_of(name, shard.lines)]
        write_cost(out, JobCost(made_on=made_on, ready_s=ready_s, parts=parts))
        _write(shards, out)  # last, as this tells that the job has finished


def _header(spec: EvaluationSpec, checkpoint: CheckpointManifest, data: str, prompts: Asking) -> dict[str, Any]:
    """Returns what the samples of all modes depend on. How many thoughts are recorded changes no sample."""
    return {
        "checkpoint": checkpoint.sha256,
        "data": data,
        "evaluation": spec.evaluation.model_dump(mode="json", exclude={"thoughts"}),
        "seed": checkpoint.seed,
        "version": spec.version,
        "grading": spec.grading.model_dump(mode="json"),
    } | prompts.mark(checkpoint.prompt)


def _asked(spec: EvaluationSpec, checkpoint: CheckpointManifest, data: Path, shots: Path | None) -> Asking:
    """Returns how the test set's questions are asked. Raises UserError if one of them is an example in the prompts."""
    prompts = asking(spec.prompting, checkpoint.asks, spec.grading.answer_format, shots)
    if prompts.shots:
        questions = read_columns(data, ["question"]).column("question").to_pylist()
        refuse_tested(prompts.shots, questions, f"test set {data}")
    return prompts


@contextlib.contextmanager
def saved_if_stopped(interruption: Interruption) -> Iterator[None]:
    """Exits with 75 if the reward's workers break while a signal asks the job to stop; finished problems are saved."""
    try:
        yield
    except BrokenWorkersError:
        interruption.exit_if_asked()
        raise


def noise_rms(
    lm: LanguageModel, checkpoint: CheckpointManifest, modes: Iterable[TokenMode], problems: list[Problem]
) -> dict[str, float]:
    """Returns the RMS that is the unit of noise, by the place of the noise.

    A trained checkpoint carries those of its base model. An untouched model has no train set, so its states are
    measured after prompts of the test set, if a mode needs them.
    """
    rms = {"embedding": checkpoint.embedding_rms or embedding_rms(lm.embedding_VD)}
    rms |= checkpoint.state_rms
    if {mode.noise_place for mode in modes} - {None, *rms}:
        rms |= state_rms(lm, rms_prompts(problems))
    return rms


@dataclass(frozen=True)
class Cells:
    """Makes the records of inference modes; the attributes are what all modes of a job share."""

    problems: list[Problem]
    judge: Judge
    runtime: RuntimeSettings
    key: str  # of the job's random numbers
    made_on: str
    interruption: Interruption
    shown: Progress
    recorded: frozenset[str]  # problems whose thoughts are recorded
    unit: float  # RMS(E) of the base model

    def complete(self, name: str, shard: Shard, policy: Policy, samples: int) -> None:
        """Generates the problems that the shard lacks, and appends each as soon as it is finished.

        What lacks its thoughts, as it was made before they were asked for, is made again.
        """
        found = latest(shard)
        done = {name for name, line in found.items() if not lacks_thoughts(line, self.recorded, policy.tokens)}
        missing = [p for p in self.problems if p.id not in done]
        self.shown.skip((len(self.problems) - len(missing)) * samples)
        keys = [f"{self.key}|{p.id}|{g}" for p in missing for g in range(samples)]
        batch = Batch([p.prompt for p in missing], samples, keys, watch(missing, keys, self.recorded, self.unit))
        before = time.monotonic()
        for finished in stream(policy, batch, Room.of(self.runtime)):
            problems, made = [missing[b] for b, _ in finished], [out for _, out in finished]
            if not all(out.entropy_NT.isfinite().all() for out in made):
                raise UserError(f"model {policy.lm.name}: its logits are not finite; its weights are damaged")
            verdicts = self._verdicts(policy, problems, made)
            parts = zip(problems, made, verdicts, strict=True)
            now = time.monotonic()
            cost = {"wall_s": (now - before) / len(made), "peak_memory_mb": peak_memory_mb(policy.lm.device)}
            shard.append([_line(policy, *part) | {"made_on": self.made_on} | cost for part in parts])
            before = now
            correct = 100 * float(np.mean([v.correct for pairs in verdicts for v, _ in pairs]))
            tokens = sum(int(out.cot_lengths.sum()) + sum(map(len, out.answers)) for out in made)
            self.shown.advance(len(made) * samples, tokens, {"correct": correct}, mode=name)
            self.interruption.exit_if_asked()

    def _verdicts(
        self, policy: Policy, problems: list[Problem], made: list[Rollout]
    ) -> list[list[tuple[Verdict, Verdict]]]:
        """Returns the verdicts on each problem's samples, each beside that of `Judge.other`, or beside itself."""
        answers = [a for p, out in zip(problems, made, strict=True) for a in to_judge(policy.rules, out, [p])]
        verdicts, other = self.judge.grade(answers), self.judge.other
        pairs = iter(zip(verdicts, other.grade(answers) if other else verdicts, strict=True))
        return [list(itertools.islice(pairs, out.samples)) for out in made]


def _line(policy: Policy, problem: Problem, made: Rollout, verdicts: list[tuple[Verdict, Verdict]]) -> dict[str, Any]:
    """Returns the finished samples of one problem and the sums of its entropy profile; verdicts as `Cells` has them."""
    rows, lengths = range(made.samples), made.cot_lengths
    longest = int(lengths.max())
    entropy = made.entropy_NT[:, :longest].cpu().double().numpy()  # Apple's GPUs have no double
    thinking = np.arange(longest) < lengths[:, None]
    return {
        "problem_id": problem.id,
        "samples": [
            {
                "correct": verdicts[row][0].correct,
                "boxed": verdicts[row][0].boxed is not None,
                "status": verdicts[row][0].status,
                "other_status": _other_status(*verdicts[row]),
                "answer": policy.rules.answer_text(made.prefill(row), made.answers[row]),
                "cot": decode(policy.lm.tokenizer, made.cot(row)),
                "cot_tokens": len(made.cot(row)),
                "answer_tokens": len(made.answers[row]),
                "stop": INFERENCE_STOPS[made.stops[row]],
            }
            for row in rows
        ],
        "entropy_sum": [round(float(value), 6) for value in (entropy * thinking).sum(0)],
        "entropy_count": thinking.sum(0).tolist(),
    } | noted(made)


def _other_status(verdict: Verdict, other: Verdict) -> str:
    """Returns the status of the other verdict if one of the two says correct and the other does not; else ""."""
    return other.status if verdict.correct != other.correct else ""


def _write(shards: dict[str, Shard], out: Path) -> None:
    """Gathers the shards into the job's two outputs, problems in the order of their ids."""
    records, profile = [], []
    for name, shard in shards.items():
        total, count = np.zeros(0), np.zeros(0, np.int64)
        for _, line in sorted(latest(shard).items()):
            shared = {"inference_mode": name, "problem_id": line["problem_id"], "made_on": line["made_on"]}
            records += [{**shared, "sample": sample, **record} for sample, record in enumerate(line["samples"])]
            longer = max(len(total), len(line["entropy_sum"]))
            total = np.pad(total, (0, longer - len(total)))
            count = np.pad(count, (0, longer - len(count)))
            total[: len(line["entropy_sum"])] += line["entropy_sum"]
            count[: len(line["entropy_count"])] += line["entropy_count"]
        profile += [(name, i, f"{s / c:.6f}", c) for i, (s, c) in enumerate(zip(total, count, strict=True))]
    text = "inference_mode,index,entropy,count\n" + "".join(",".join(map(str, row)) + "\n" for row in profile)
    write_text(out.with_suffix(".entropy.csv"), text)
    write_table(out, pa.Table.from_pylist(records, SCHEMA), {ENTROPY_KEY: text_hash(text, 64)})
