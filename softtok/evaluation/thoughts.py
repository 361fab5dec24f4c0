"""Records of soft thoughts: each step of a few samples as a mixture of tokens.

They are kept with the samples of their problem, and written to a file of their own, one row per step:

    steps = pd.read_parquet("results/runs/.../eval/sums/six-0123abcd.thoughts.parquet")
    one = steps[(steps.inference_mode == "soft-sample") & (steps["sample"] == 0)]
    print(one[["problem_id", "token", "entropy", "moved", "tokens", "weights"]])

`token` is what the step adds to the text of the CoT, `tokens` and `weights` are the heaviest tokens of its mixture, and
`moved` is how far noise moved it, where 1 is the length of a typical embedding. A report of 144 cells shows a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from softtok.method.batches import Problem, shuffled
from softtok.method.thoughts import Watch
from softtok.method.token_modes import CotTokens
from softtok.method.trajectories import Rollout
from softtok.problems.pieces import pieces
from softtok.problems.prompt import decode
from softtok.storage.files import THOUGHTS_SUFFIX, write_table
from softtok.storage.shards import Shard

SAMPLES = 4  # of a problem
DECIMALS = 5
SCHEMA = pa.schema(
    {
        "inference_mode": pa.string(),
        "problem_id": pa.string(),
        "sample": pa.int64(),
        "step": pa.int64(),
        "token": pa.string(),
        "entropy": pa.float64(),
        "moved": pa.float64(),
        "tokens": pa.list_(pa.string()),
        "weights": pa.list_(pa.float64()),
        "ids": pa.list_(pa.int64()),
    }
)


def chosen(problems: Sequence[Problem], count: int) -> frozenset[str]:
    """Returns the ids of the problems whose thoughts are recorded: the same in all modes and runs of a test set."""
    return frozenset(problems[place].id for place in shuffled(len(problems), "thoughts")[:count])


def latest(shard: Shard) -> dict[str, dict[str, Any]]:
    """Returns the lines of a shard by problem; a problem that was made again, for its thoughts, has its last line."""
    return {line["problem_id"]: line for line in shard.lines}


def lacks_thoughts(line: Mapping[str, Any], wanted: frozenset[str], tokens: CotTokens) -> bool:
    """Whether a finished problem has no thoughts and should have them."""
    return line["problem_id"] in wanted and tokens.known_mixture and "thoughts" not in line


def watch(problems: Sequence[Problem], keys: Sequence[str], wanted: frozenset[str], unit: float) -> Watch:
    """Returns which rows are watched: the first samples of the wanted problems; `keys` are those of all rows."""
    samples = len(keys) // max(1, len(problems))
    firsts = (b * samples for b, problem in enumerate(problems) if problem.id in wanted)
    return Watch(frozenset(key for first in firsts for key in keys[first : first + min(samples, SAMPLES)]), unit)


def noted(made: Rollout) -> dict[str, Any]:
    """Returns the thoughts of a problem as a line of a shard holds them; nothing if it was not watched."""
    if not made.thoughts:
        return {}
    rows = sorted(made.thoughts)
    return {
        "thoughts": [
            {
                "cot": made.cot(row),
                "entropy": _rounded(made.entropy_NT[row, : made.cot_lengths[row]].tolist()),
                "moved": _rounded([thought.moved for thought in made.thoughts[row]]),
                "ids": [thought.ids for thought in made.thoughts[row]],
                "weights": [_rounded(thought.weights) for thought in made.thoughts[row]],
            }
            for row in rows
        ]
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, DECIMALS) for value in values]


def write_thoughts(shards: Mapping[str, Shard], wanted: frozenset[str], tokenizer: Any, out: Path) -> None:
    """Writes the wanted problems' thoughts in the shards of the modes, beside the rows that `out` will have."""
    texts: dict[int, str] = {}
    steps: list[dict[str, Any]] = []
    for mode, shard in shards.items():
        known = latest(shard)
        for name, line in ((name, known[name]) for name in sorted(wanted)):
            for sample, of in enumerate(line.get("thoughts", [])):
                where = {"inference_mode": mode, "problem_id": name, "sample": sample}
                steps += (where | step for step in _steps(tokenizer, texts, of))
    write_table(out.with_suffix(THOUGHTS_SUFFIX), pa.Table.from_pylist(steps, SCHEMA))


def _steps(tokenizer: Any, texts: dict[int, str], of: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of one sample; `texts` are those of single tokens that are known so far."""
    columns = [pieces(tokenizer, of["cot"]), of["entropy"], of["moved"], of["ids"], of["weights"]]
    for step, (token, entropy, moved, ids, weights) in enumerate(zip(*columns, strict=True)):
        for i in ids:
            texts.setdefault(i, decode(tokenizer, [i]))
        shown = {"tokens": [texts[i] for i in ids], "weights": weights, "ids": ids}
        yield {"step": step, "token": token, "entropy": entropy, "moved": moved} | shown
