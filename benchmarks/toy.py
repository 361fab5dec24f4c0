"""The toy of the measurements that need text, made and used through softtok's own commands.

    python -m benchmarks.toy make FOLDER PROBLEMS STEPS    a model pretrained for STEPS steps, data and specs
    python -m benchmarks.toy start FOLDER OUT              `softtok train`, which ends where its first rollout begins

The second prints nothing and exits with status 0 at that moment: whoever started it knows how long that took.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from softtok import __main__ as command
from softtok.commands import jobs, parser

if TYPE_CHECKING:
    from argparse import Namespace

    from softtok.config.grid import Grid
    from softtok.config.settings import RuntimeSettings

SAMPLES = 32  # of each test problem


def configuration(problems: int, steps: int, runs: int = 1) -> dict[str, object]:
    """Returns a config.yaml with one study of `runs` seeds, tested on `problems` problems in one mode."""
    return {
        "run": ["cell"],
        "studies": {
            "cell": {
                "title": "Benchmark",
                "models": ["toy"],
                "train_sets": ["sums"],
                "training_modes": ["hard"],
                "seeds": list(range(runs)),
                "test_sets": ["sums"],
                "inference_sets": ["sampled"],
            }
        },
        "models": {"toy": {"toy": {"steps": steps}}},
        "train_sets": {"sums": {"toy": {"task": "sums", "steps": [2, 4], "problems": 300}}},
        "test_sets": {"sums": {"toy": {"task": "sums", "steps": [2, 4], "problems": problems}}},
        "training_modes": {"hard": {"tokens": "hard"}},
        "inference_modes": {"hard-sample": {"tokens": "hard", "samples": SAMPLES}},
        "inference_sets": {"sampled": ["hard-sample"]},
        "training": {"max_cot_tokens": 48, "max_answer_tokens": 8},
        "evaluation": {"max_cot_tokens": 80, "max_answer_tokens": 8},
    }


def expand(problems: int, steps: int, runs: int = 1) -> Grid:
    """Returns the jobs of `configuration`; imports what `start` must not, for its time is measured."""
    from softtok.config.grid import Grid
    from softtok.config.load import load

    return Grid(load(configuration(problems, steps, runs)))


def folder_name(problems: int, steps: int) -> str:
    """Returns a name that changes with the settings and with softtok's versions, so that no stale toy is used."""
    grid = expand(problems, steps)
    hashes = [*(run.hash for run in grid.runs.values()), *(cell.hash for cell in grid.evaluations.values())]
    return "-".join(["toy", *sorted(hashes)])


def make(folder: Path, problems: int, steps: int) -> None:
    """Makes model/, run/ (the untouched model's), train.parquet, test.parquet, evaluate.json and train.json."""
    grid = expand(problems, steps)
    base, trained = sorted(grid.runs.values(), key=lambda run: run.train_set is not None)
    evaluation = next(iter(grid.evaluations.values()))
    folder.mkdir(parents=True, exist_ok=True)
    softtok("model", spec=base.model.json, runtime="{}", out=folder / "model")
    softtok("base", spec=base.json, model=folder / "model", out=folder / "run")
    for data in grid.data.values():
        softtok("data", spec=data.json, out=folder / f"{data.kind}.parquet")
    (folder / "evaluate.json").write_text(evaluation.json)
    (folder / "train.json").write_text(trained.json)  # last: it says that the toy is whole


def softtok(name: str, **options: object) -> None:
    """Runs a command of softtok's in this process; raises RuntimeError when it fails."""
    arguments = [str(word) for option, value in options.items() for word in (f"--{option}", value)]
    if command.main([name, *arguments]):
        raise RuntimeError(f"softtok {name} failed; its message is above")


def start(folder: Path, out: Path) -> None:
    """Runs `softtok train` up to its first rollout, where the process ends with status 0."""
    read_runtime = parser.runtime_of  # called when the libraries are imported and nothing is loaded yet

    def end_at_the_first_rollout(options: Namespace) -> RuntimeSettings:
        from softtok.training import train

        for name in ("rollout", "stream"):
            mock.patch.object(train, name, side_effect=lambda *_, **__: os._exit(0)).start()
        return read_runtime(options)

    with mock.patch.object(jobs, "runtime_of", end_at_the_first_rollout):
        spec, data = (folder / "train.json").read_text(), folder / "train.parquet"
        softtok("train", spec=spec, runtime="{}", model=folder / "model", data=data, out=out)
    sys.exit("no rollout began")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        start(Path(sys.argv[2]), Path(sys.argv[3]))
