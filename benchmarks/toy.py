"""A small toy for the measurements that need text, and the start-up of a job: `python -m benchmarks.toy`.

    python -m benchmarks.toy make FOLDER PROBLEMS     the demo's model (pretrained more briefly), data and specs
    python -m benchmarks.toy start ARGUMENTS...       `softtok ARGUMENTS`, which ends where its first rollout begins

The second prints nothing and exits with status 0 at that moment: whoever started it knows how long that took.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

PRETRAINING_STEPS = 100


def make(folder: Path, problems: int) -> None:
    """model/, run/ (the untouched model's), train.parquet, test.parquet, train.json and evaluate.json."""
    from softtok.config.settings import EvaluationSettings, RuntimeSettings, ToySettings, TrainingSettings
    from softtok.models.base_model import base_run, make_model
    from softtok.problems.prepare import prepare
    from softtok.problems.prompt import PROMPT
    from softtok.storage.files import write_json

    model = {"toy": ToySettings(steps=PRETRAINING_STEPS).model_dump(), "prompt": PROMPT}
    make_model(model, RuntimeSettings(), folder / "model", None)
    base_run({"model": model, "seed": 0}, folder / "model", folder / "run")
    for split, count in (("train", 300), ("test", problems)):
        source = {"task": "sums", "split": split, "problems": count, "seed": 0, "steps": [2, 4]}
        prepare({"kind": split, "source": {"toy": source}}, folder / f"{split}.parquet", {}, None)
    hard = {"tokens": "hard", "temperature": 1.0, "noise_scale": 0.0}
    evaluation = EvaluationSettings(max_cot_tokens=80, max_answer_tokens=8).model_dump()
    modes = {"hard-sample": hard | {"samples": 32}}
    write_json(folder / "evaluate.json", {"inference_modes": modes, "evaluation": evaluation, "version": 1})
    training = TrainingSettings(max_cot_tokens=48, max_answer_tokens=8).model_dump()
    spec = {"model": {"prompt": PROMPT}, "mode": hard, "training": training, "seed": 0, "version": 1}
    write_json(folder / "train.json", spec)


def start(arguments: list[str]) -> None:
    """Runs a `softtok train` up to its first rollout."""
    from softtok import __main__ as command

    runtime = command._runtime

    def end_at_the_first_rollout(options: Any) -> Any:
        from softtok.training import train

        train.rollout = lambda *_, **__: os._exit(0)  # type: ignore[assignment]
        return runtime(options)

    command._runtime = end_at_the_first_rollout
    sys.exit(command.main(arguments) or "no rollout began")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        start(sys.argv[2:])
