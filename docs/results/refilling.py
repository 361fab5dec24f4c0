"""Measures what refilling saves, where waiting rows take the places of finished ones: refilling.py STUDY TEST_SET.

Samples a study's untouched model, hard tokens and the test set's own prompts, in two ways that take turns: finished
rows are replaced, or dropped until a batch has ended. Prints decode steps, wall and CPU time as Markdown.

Snakemake makes what is read here: `snakemake $(check_base.py STUDY TEST_SET --needs)`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from check_base import SAMPLE, found  # beside this file

from softtok.config.manifests import CheckpointManifest, read
from softtok.config.settings import RuntimeSettings
from softtok.method.batches import Problem, read_problems
from softtok.method.stopping import TextRules
from softtok.method.stream import Room, stream
from softtok.method.token_modes import bind
from softtok.method.trajectories import Batch, Limits, Policy
from softtok.models.decoding import Decoder
from softtok.models.loading import load
from softtok.problems.prompting import asking


class Cost(NamedTuple):
    """What sampling took."""

    decode_steps: int
    wall_s: float
    cpu_s: float


def sample(policy: Policy, problems: Sequence[Problem], samples: int, room: Room, replaced: bool) -> tuple[Cost, Any]:
    """Returns what samples of all problems cost, and their thoughts by problem and sample."""
    steps, step = 0, Decoder.step

    def counted(self: Decoder, *args: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return step(self, *args)

    keys = [f"refilling|{problem.id}|{g}" for problem in problems for g in range(samples)]
    batch = Batch([problem.prompt for problem in problems], samples, keys)
    wall, cpu, thoughts = time.perf_counter(), time.process_time(), {}
    with mock.patch.object(Decoder, "step", counted), mock.patch.object(Decoder, "replaces", replaced):
        for finished in stream(policy, batch, room):
            for b, made in finished:
                thoughts.update({(b, g): made.cot(g) for g in range(samples)})
    return Cost(steps, time.perf_counter() - wall, time.process_time() - cpu), thoughts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("test_set")
    parser.add_argument("--samples", type=int, default=8, help="of each problem")
    parser.add_argument("--rows", type=int, default=64, help="that run side by side")
    parser.add_argument("--cot-tokens", type=int, default=128, help="that a thought may have")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--config", type=Path, default=Path("config.yaml"))
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
    policy = Policy(lm, rules, bind(SAMPLE, {}), limits)
    room = Room.of(runtime)
    sample(policy, problems[:1], options.rows, room, replaced=True)  # warms up
    thoughts: dict[bool, Any] = {}
    print("| round | finished rows are | samples | tokens of a thought | decode steps | wall, s | CPU, s |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    for number in range(options.rounds):
        for replaced in (False, True) if number % 2 == 0 else (True, False):
            cost, thoughts[replaced] = sample(policy, problems, options.samples, room, replaced)
            mean = sum(map(len, thoughts[replaced].values())) / len(thoughts[replaced])
            how = "replaced" if replaced else "dropped"
            count = f"{len(thoughts[replaced])} | {mean:.1f} | {cost.decode_steps:,}"
            print(f"| {number + 1} | {how} | {count} | {cost.wall_s:.1f} | {cost.cpu_s:.1f} |", flush=True)
    equal = sum(thoughts[True][key] == ids for key, ids in thoughts[False].items())
    print(f"\n{equal} of {len(thoughts[False])} thoughts are equal in both ways.")


if __name__ == "__main__":
    main()
