"""Compares the untouched model of a study with transformers' `generate()`, as Markdown: check_base.py STUDY TEST_SET.

Greedy thoughts and answers are compared token by token, and sampled ones by what they come to: their pass@1, lengths
and ends. `generate()` runs the model as transformers loads it. Where its thoughts end is read from their text, and its
answers end where softtok's rules say.

Snakemake makes what is read here: `snakemake $(check_base.py STUDY TEST_SET --needs)`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from softtok.config.grid import Grid
from softtok.config.jobs import Evaluation, Run
from softtok.config.load import read as read_config
from softtok.config.manifests import CheckpointManifest, read
from softtok.config.settings import RuntimeSettings, TokenMode
from softtok.config.specs import EvaluationSpec
from softtok.method.batches import Problem, read_problems
from softtok.method.rollout import rollout
from softtok.method.sampling import NEAR_TIE_GAP
from softtok.method.stopping import TextRules
from softtok.method.token_modes import bind
from softtok.method.trajectories import INFERENCE_STOPS, Batch, Limits, Policy, Rollout
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.models.references import located
from softtok.problems.prompt import decode
from softtok.problems.prompting import asking
from softtok.problems.reward import Answer, Judge
from softtok.report.metrics import bootstrap_interval, summarise

ROWS = 64  # that run side by side
GREEDY, SAMPLE = TokenMode(tokens="hard", temperature=0.0), TokenMode(tokens="hard", temperature=1.0)


@dataclass(frozen=True)
class Sides:
    """The same model on both sides: softtok's, with the rules of an evaluation, and transformers' own."""

    lm: LanguageModel
    rules: TextRules
    theirs: Any
    spec: EvaluationSpec

    @classmethod
    def of(cls, checkpoint: Path, spec: EvaluationSpec) -> Sides:
        """Loads both."""
        lm = load(checkpoint, RuntimeSettings(device="cpu"))
        theirs = AutoModelForCausalLM.from_pretrained(located(checkpoint)[1], dtype=torch.float32).eval()
        return cls(lm, TextRules(lm, spec.grading.answer_format), theirs, spec)

    def rollout(self, mode: TokenMode, problems: Sequence[Problem], samples: int) -> Rollout:
        """Returns our trajectories; answers are greedy."""
        asked = self.spec.evaluation
        limits = Limits(asked.max_cot_tokens, asked.max_answer_tokens, 0.0, asked.stop_on)
        keys = [f"check|{problem.id}|{g}" for problem in problems for g in range(samples)]
        batch = Batch([problem.prompt for problem in problems], samples, keys)
        return rollout(Policy(self.lm, self.rules, bind(mode, {}), limits), batch)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[list[int]], new_tokens: int, sample: bool = False) -> list[list[int]]:
        """Returns what `generate()` writes behind each prompt, with whatever stands behind an EOS."""
        width, pad = max(map(len, prompts)), min(self.rules.eos)
        how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"temperature": None, "top_p": None}
        out = self.theirs.generate(
            input_ids=torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
            do_sample=sample,
            max_new_tokens=new_tokens,
            eos_token_id=sorted(self.rules.eos),
            pad_token_id=pad,
            **how,
        )
        written: list[list[int]] = out[:, width:].tolist()
        return written

    def thought(self, ids: list[int]) -> tuple[list[int], str]:
        """Returns the ids up to the end of a thought, found in its text, and why it ends there."""
        for length in range(1, len(ids) + 1):
            if ids[length - 1] in self.rules.eos:
                return ids[:length], "eos"
            if self.spec.grading.answer_format.stop_phrase in decode(self.lm.tokenizer, ids[:length]):
                return ids[:length], "phrase"
        return ids, "cap"

    def answers(self, problems: Sequence[Problem], thoughts: Sequence[tuple[list[int], str]]) -> list[list[int]]:
        """Returns the greedy answers of `generate()` behind thoughts and prefilled words."""
        prompts = [
            problem.prompt + ids + self.prefill(stop) for problem, (ids, stop) in zip(problems, thoughts, strict=True)
        ]
        written = self.generate(prompts, self.spec.evaluation.max_answer_tokens)
        return [self._ended(ids) for ids in written]

    def prefill(self, stop: str) -> list[int]:
        """Returns the words between a thought and its answer."""
        return self.rules.prefill_after_phrase if stop == "phrase" else self.rules.prefill_after_cut

    def _ended(self, ids: list[int]) -> list[int]:
        ends = (length for length in range(1, len(ids) + 1) if self.rules.answer_ends(ids[:length]))
        return ids[: next(ends, len(ids))]

    @torch.inference_mode()
    def gap(self, written: list[int], token: int, other: int) -> float:
        """Returns how much larger transformers' logit of one token is than that of another behind these ids."""
        logits = self.theirs(torch.tensor([written])).logits[0, -1]
        return float(logits[token] - logits[other])


@dataclass(frozen=True)
class Difference:
    """The first place at which a thought or an answer differs.

    The gap is how far the token of `generate()` leads in its logits; None where one of the two ends.
    """

    problem: str
    part: str
    place: int
    ours: str
    theirs: str
    gap: float | None


@dataclass
class Compared:
    """What comes of greedy thoughts and answers side by side."""

    problems: int = 0
    thoughts: int = 0  # that are equal
    answers: int = 0  # of those, to the thought that softtok had
    tokens: int = 0
    near_ties: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def beyond_rounding(self) -> list[Difference]:
        """The differences that are no near-ties."""
        return [one for one in self.differences if one.gap is None or abs(one.gap) >= NEAR_TIE_GAP]


def compare_greedy(sides: Sides, problems: Sequence[Problem]) -> Compared:
    """Compares greedy thoughts, and the answers to softtok's thoughts."""
    compared = Compared()
    for part in _parts(problems, ROWS):
        out = sides.rollout(GREEDY, part, 1)
        written = sides.generate([problem.prompt for problem in part], sides.spec.evaluation.max_cot_tokens)
        ours = [(out.cot(row), INFERENCE_STOPS[out.stops[row]]) for row in range(len(part))]
        answers = sides.answers(part, ours)
        compared.problems += len(part)
        compared.near_ties += int(out.near_ties.sum())
        for row, problem in enumerate(part):
            behind = problem.prompt + ours[row][0] + sides.prefill(ours[row][1])
            thought = _difference(
                sides, problem.id, "thought", problem.prompt, (ours[row][0], sides.thought(written[row])[0])
            )
            answer = _difference(sides, problem.id, "answer", behind, (out.answers[row], answers[row]))
            compared.thoughts += thought is None
            compared.answers += answer is None
            compared.tokens += len(ours[row][0]) + len(out.answers[row])
            compared.differences += [one for one in (thought, answer) if one]
    return compared


def _difference(
    sides: Sides, problem: str, part: str, before: list[int], both: tuple[list[int], list[int]]
) -> Difference | None:
    """Returns where two texts behind the same ids differ first, or None."""
    ours, theirs = both
    if ours == theirs:
        return None
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    gap = None
    if place < min(len(ours), len(theirs)):
        gap = sides.gap(before + ours[:place], theirs[place], ours[place])
    mine, other = (decode(sides.lm.tokenizer, ids[place : place + 1]) if place < len(ids) else "end" for ids in both)
    return Difference(problem, part, place, mine, other, gap)


@dataclass(frozen=True)
class Samples:
    """Sampled thoughts, each with why it ends, and their greedy answers; G of each problem, one after another."""

    thoughts: list[tuple[list[int], str]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)


def our_samples(sides: Sides, problems: Sequence[Problem], count: int) -> Samples:
    """Returns softtok's samples."""
    made = Samples()
    for part in _parts(problems, max(1, ROWS // count)):
        out = sides.rollout(SAMPLE, part, count)
        made.thoughts.extend((out.cot(row), INFERENCE_STOPS[out.stops[row]]) for row in range(len(out.answers)))
        made.answers.extend(out.answers)
        _tell(f"softtok: {len(made.answers)} samples")
    return made


def their_samples(sides: Sides, problems: Sequence[Problem], count: int) -> Samples:
    """Returns the samples of `generate(do_sample=True)`."""
    made = Samples()
    torch.manual_seed(0)
    for part in _parts(problems, max(1, ROWS // count)):
        rows = [problem for problem in part for _ in range(count)]
        written = sides.generate([row.prompt for row in rows], sides.spec.evaluation.max_cot_tokens, sample=True)
        thoughts = [sides.thought(ids) for ids in written]
        made.thoughts.extend(thoughts)
        made.answers.extend(sides.answers(rows, thoughts))
        _tell(f"generate(): {len(made.answers)} samples")
    return made


def outcomes(sides: Sides, judge: Judge, problems: Sequence[Problem], samples: Samples) -> dict[str, np.ndarray]:
    """Returns what is compared of samples, by name, each as means over the samples of a problem."""
    count = len(samples.answers) // len(problems)
    asked = [problem for problem in problems for _ in range(count)]
    written = [
        sides.rules.answer_text(sides.prefill(stop), ids)
        for (_, stop), ids in zip(samples.thoughts, samples.answers, strict=True)
    ]
    verdicts = judge.grade([Answer(text, p.golds, p.text, p.columns) for text, p in zip(written, asked, strict=True)])
    found = {
        "pass@1 (%)": [100 * verdict.correct for verdict in verdicts],
        "tokens of a thought": [len(ids) for ids, _ in samples.thoughts],
        "ended by the stop phrase (%)": [100 * (stop == "phrase") for _, stop in samples.thoughts],
        "surprise less entropy of a thought (nats), 0 if drawn as predicted": surprise(sides, problems, samples),
    }
    return {name: np.array(values, float).reshape(len(problems), count).mean(1) for name, values in found.items()}


@torch.inference_mode()
def surprise(sides: Sides, problems: Sequence[Problem], samples: Samples) -> list[float]:
    """Returns the sum of -log p(token) - entropy over each sampled thought, in nats, both as transformers predicts.

    Its mean is 0 if tokens are drawn from these predictions, whatever the thoughts say.
    """
    count, sums = len(samples.answers) // len(problems), []
    for place, problem in enumerate(problems):
        ids_GL = [ids for ids, _ in samples.thoughts[place * count :][:count]]
        cache = sides.theirs(torch.tensor([problem.prompt[:-1]])).past_key_values
        cache.batch_repeat_interleave(count)
        fed = [torch.tensor([problem.prompt[-1], *ids[:-1]]) for ids in ids_GL]
        logits_GLV = sides.theirs(pad_sequence(fed, batch_first=True), past_key_values=cache).logits
        for ids, logits_LV in zip(ids_GL, logits_GLV, strict=True):
            log_p = torch.log_softmax(logits_LV[: len(ids)], -1)
            drawn = log_p.gather(1, torch.tensor(ids)[:, None])[:, 0]
            sums.append(float(((log_p.exp() * log_p).sum(-1) - drawn).sum()))
    return sums


def _parts(problems: Sequence[Problem], size: int) -> Iterator[Sequence[Problem]]:
    for start in range(0, len(problems), size):
        yield problems[start : start + size]


def greedy_table(compared: Compared) -> Iterator[str]:
    """Yields what was equal, and each first difference."""
    yield "| greedy, problems | thoughts equal | answers equal | tokens | near-ties among them | beyond rounding |"
    yield "|---:|---:|---:|---:|---:|---:|"
    counts = (compared.problems, compared.thoughts, compared.answers, compared.tokens, compared.near_ties)
    yield f"| {' | '.join(f'{count:,}' for count in counts)} | {len(compared.beyond_rounding)} |"
    if compared.differences:
        yield from (
            "",
            "| problem | part | place | softtok | generate() | its lead in logits |",
            "|---|---|---:|---|---|---:|",
        )
    for one in compared.differences:
        gap = "" if one.gap is None else f"{one.gap:.2g}"
        yield f"| {one.problem} | {one.part} | {one.place} | {one.ours!r} | {one.theirs!r} | {gap} |"


def sampled_table(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> Iterator[str]:
    """Yields means with 95 % bootstrap intervals over problems, and paired differences with t intervals."""
    yield "| sampled | softtok | generate() | difference | 0 within |"
    yield "|---|---:|---:|---:|---|"
    for name, values in ours.items():
        cells = [
            f"{side.mean():.1f} [{' to '.join(f'{x:.1f}' for x in bootstrap_interval(side))}]"
            for side in (values, theirs[name])
        ]
        yield f"| {name} | {' | '.join(cells)} | {_around_zero(values - theirs[name])} |"


def _around_zero(values: np.ndarray) -> str:
    """Returns a mean with its 95 % interval, and whether 0 is in it."""
    seen = summarise(values)
    low, high = (seen.mean if end is None else end for end in (seen.low, seen.high))
    return f"{seen.mean:+.2f} [{low:+.2f} to {high:+.2f}] | {'yes' if low <= 0 <= high else '**no**'}"


def found(options: argparse.Namespace) -> tuple[Run, Evaluation]:
    """Returns the untouched model's run in a study, and an evaluation of it on the test set."""
    study = Grid(read_config(options.config, (), options.data_root)).studies[options.study]
    run = next(run for run in study.runs.values() if run.spec.mode is None)
    return run, next(one for one in study.evaluations[run.folder].values() if one.data.name == options.test_set)


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares a study's untouched model with generate().")
    parser.add_argument("study")
    parser.add_argument("test_set")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8, help="of each problem")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--config", type=Path, nargs="+", default=[Path("config.yaml")])
    parser.add_argument("--data-root", help="as in snakemake's --config data_root=")
    parser.add_argument("--needs", action="store_true", help="print the files that are read, and do nothing")
    options = parser.parse_args()
    run, evaluation = found(options)
    shots = evaluation.shots_path(run.model)
    if options.needs:
        print(f"{run.folder}/checkpoint", evaluation.data.path, *shots)
        return
    torch.set_num_threads(options.threads)
    checkpoint, spec = Path(run.folder) / "checkpoint", evaluation.spec
    sides = Sides.of(checkpoint, spec)
    asks = read(CheckpointManifest, checkpoint / "checkpoint.json").asks
    asked = asking(spec.prompting, asks, spec.grading.answer_format, Path(shots[0]) if shots else None)
    problems = read_problems(Path(evaluation.data.path), sides.lm, asked, spec.grading.wants_columns)
    problems = problems[: options.problems]
    _tell(f"{len(problems)} problems, greedy")
    print(*greedy_table(compare_greedy(sides, problems)), "", sep="\n", flush=True)
    ours, theirs = (side(sides, problems, options.samples) for side in (our_samples, their_samples))
    with Judge(grading=spec.grading) as judge:
        print(*sampled_table(*(outcomes(sides, judge, problems, side) for side in (ours, theirs))), sep="\n")
    ends = sum(sides.thought(ids) == (ids, stop) for ids, stop in ours.thoughts)
    print(f"\n{ends} of softtok's {len(ours.thoughts)} sampled thoughts end where their text says.")


if __name__ == "__main__":
    main()
