"""Measures what two ways of evaluation save on a real model, as Markdown: evaluation_speed.py WAY STUDY TEST_SET.

`refilling`: rows that wait take the places of finished ones; else these are dropped until a batch has ended.
`beginning`: what all prompts begin with is run and held once; else with each prompt.

The untouched model of a study thinks in hard tokens and answers the test set's prompts, with the way and without it in
turns. Snakemake makes what is read here: `snakemake $(check_base.py STUDY TEST_SET --needs)`.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from check_base import GREEDY, SAMPLE, found  # beside this file

from softtok.config.manifests import CheckpointManifest, read
from softtok.config.settings import RuntimeSettings
from softtok.method import stream as streaming
from softtok.method.batches import Problem, read_problems
from softtok.method.stopping import TextRules
from softtok.method.stream import Room, stream
from softtok.method.token_modes import bind
from softtok.method.trajectories import Batch, Limits, Policy
from softtok.models import language_model
from softtok.models.decoding import Decoder
from softtok.models.loading import load
from softtok.problems.prompting import asking

WITHOUT: dict[str, list[tuple[Any, str, Any]]] = {
    "refilling": [(Decoder, "replaces", False)],
    "beginning": [(place, "common_tokens", lambda prompts: 0) for place in (language_model, streaming)],
}
"""What is replaced by what to evaluate without each way."""


class Cost(NamedTuple):
    """What an evaluation took."""

    decode_steps: int
    wall_s: float
    cpu_s: float


def sample(
    policy: Policy, problems: Sequence[Problem], samples: int, room: Room, without: str | None = None
) -> tuple[Cost, Any]:
    """Returns what samples of all problems cost without one of the ways, and the thoughts by problem and sample."""
    steps, step = 0, Decoder.step

    def counted(self: Decoder, *args: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return step(self, *args)

    keys = [f"speed|{problem.id}|{g}" for problem in problems for g in range(samples)]
    batch = Batch([problem.prompt for problem in problems], samples, keys)
    thoughts = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Decoder, "step", counted))
        for place, name, other in WITHOUT[without] if without else []:
            stack.enter_context(mock.patch.object(place, name, other))
        wall, cpu = time.perf_counter(), time.process_time()
        for finished in stream(policy, batch, room):
            for b, made in finished:
                thoughts.update({(b, g): made.cot(g) for g in range(samples)})
        cost = Cost(steps, time.perf_counter() - wall, time.process_time() - cpu)
    return cost, thoughts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WITHOUT)
    parser.add_argument("study")
    parser.add_argument("test_set")
    parser.add_argument("--samples", type=int, default=8, help="of each problem; 1: greedy")
    parser.add_argument("--rows", type=int, default=64, help="that run side by side")
    parser.add_argument("--cot-tokens", type=int, default=128, help="that a thought may have")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--config", type=Path, nargs="+", default=[Path("config.yaml")])
    parser.add_argument("--data-root", help="as in snakemake's --config data_root=")
    options = parser.parse_args()
    run, evaluation = found(options)
    torch.set_num_threads(options.threads)
    checkpoint, spec, shots = Path(run.folder) / "checkpoint", evaluation.spec, evaluation.shots_path(run.model)
    runtime = RuntimeSettings(device="cpu", threads=options.threads, rollout_rows=options.rows)
    lm = load(checkpoint, runtime)
    rules = TextRules(lm, spec.grading.answer_format)
    asks = read(CheckpointManifest, checkpoint / "checkpoint.json").asks
    asked = asking(spec.prompting, asks, spec.grading.answer_format, Path(shots[0]) if shots else None)
    problems = read_problems(Path(evaluation.data.path), lm, asked, spec.grading.wants_columns)
    limits = Limits(options.cot_tokens, spec.evaluation.max_answer_tokens, 0.0, spec.evaluation.stop_on)
    policy = Policy(lm, rules, bind(SAMPLE if options.samples > 1 else GREEDY, {}), limits)
    room = Room.of(runtime)
    sample(policy, problems[:2], options.samples, room)  # warms up
    thoughts: dict[str | None, Any] = {}
    print("| round | | answers | tokens of a prompt | of a thought | decode steps | wall, s | CPU, s |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    prompt = sum(len(problem.prompt) for problem in problems) / len(problems)
    for number in range(options.rounds):
        for without in (options.way, None) if number % 2 == 0 else (None, options.way):
            cost, thoughts[without] = sample(policy, problems, options.samples, room, without)
            mean = sum(map(len, thoughts[without].values())) / len(thoughts[without])
            how = f"without {without}" if without else f"with {options.way}"
            told = f"{len(thoughts[without])} | {prompt:.0f} | {mean:.1f} | {cost.decode_steps:,}"
            print(f"| {number + 1} | {how} | {told} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} |", flush=True)
    equal = sum(thoughts[None][key] == ids for key, ids in thoughts[options.way].items())
    print(f"\n{equal} of {len(thoughts[None])} thoughts are equal.")


if __name__ == "__main__":
    main()
