"""No kill and no full disk gives another number: jobs end before single file-system calls, and then go on."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from softtok.__main__ import main
from softtok.config.settings import RuntimeSettings
from softtok.evaluation.evaluate import evaluate
from softtok.models.base_model import base_run
from softtok.storage.files import read_json
from softtok.training.train import train
from tests.support.crashes import FILE_SYSTEM, CrashError
from tests.support.damage import assert_same_evaluation, evaluation, times
from tests.support.disks import small_disk
from tests.support.report_specs import report_spec
from tests.support.slow_jobs import slow_job
from tests.support.specs import (
    HARD,
    base_spec,
    choices_spec,
    data_spec,
    evaluation_spec,
    toy_model,
    train_spec,
)
from tests.support.synthetic_runs import write_study
from tests.support.training_runs import lines

TRAINING = train_spec(HARD, steps=3, warmup_steps=1, max_cot_tokens=8, validate_every=1)
EVALUATION = evaluation_spec("hard-sample", "fuzzy-greedy", max_cot_tokens=8)
OFTEN = RuntimeSettings(save_every=1)

Job = Callable[[Path], None]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> dict[str, Job]:
    """Training and evaluation, each of which writes below one folder."""

    def training(run: Path) -> None:
        train(TRAINING, OFTEN, tiny_toy, toy_sets["train"], run)

    def evaluating(run: Path) -> None:
        if not (run / "manifest.json").exists():
            base_run(base_spec(toy_model()), tiny_toy, run)
        evaluate(EVALUATION, RuntimeSettings(rollout_rows=8), run, toy_sets["test"], run / "eval" / "out.parquet")

    return {"training": training, "evaluation": evaluating}


def assert_same(run: Path, whole: Path, what: str = "") -> None:
    """Compares what a job made, but for times and notes of attempts."""
    if (whole / "eval").exists():
        out = Path("eval") / "out.parquet"
        assert_same_evaluation(evaluation(run / out), evaluation(whole / out), what)
        return
    for path in (whole / "checkpoint").iterdir():
        assert (run / "checkpoint" / path.name).read_bytes() == path.read_bytes(), what
    for name in ("steps", "best_step", "checkpoint_sha256"):
        assert read_json(run / "manifest.json")[name] == read_json(whole / "manifest.json")[name], what
    assert lines(run) == lines(whole), what


@pytest.mark.parametrize("name", ["training", "evaluation"])
def test_a_job_that_ends_before_any_call_gives_the_same_when_it_goes_on(
    name: str, jobs: dict[str, Job], tmp_path: Path
) -> None:
    with FILE_SYSTEM.watched(tmp_path / "whole") as calls:
        jobs[name](tmp_path / "whole")
    assert calls.seen > 20
    chance = random.Random(name)
    for ends_at in chance.sample(range(1, calls.seen + 1), min(times(4), calls.seen)):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        with FILE_SYSTEM.watched(run, ends_at), pytest.raises(CrashError):
            jobs[name](run)
        jobs[name](run)
        assert_same(run, tmp_path / "whole", f"{name}, before call {ends_at} of {calls.seen}")


def test_a_killed_evaluation_goes_on(jobs: dict[str, Job], tmp_path: Path, toy_sets: dict[str, Path]) -> None:
    """A real kill, at any moment after the first record."""
    jobs["evaluation"](tmp_path / "whole")
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    shutil.rmtree(run / "eval")
    shutil.rmtree(run / ".state" / "shards")
    options = {"spec": EVALUATION.as_json(), "runtime": '{"rollout_rows": 1}', "run": run, "data": toy_sets["test"]}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = ["evaluate", *words, "--out", str(run / "eval" / "out.parquet")]
    with slow_job(command, "complete", 0, before=0, seconds=0.05) as process:  # else it may end before it is killed
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            written = sum(path.read_bytes().count(b"\n") for path in (run / ".state").glob("shards/*.jsonl"))
            if written > 2:
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL and not (run / "eval").exists()
    jobs["evaluation"](run)
    assert_same(run, tmp_path / "whole")


# disks that take no more


@pytest.fixture(scope="module")
def commands(
    tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]
) -> dict[str, list[str]]:
    """Every command that writes, without its `--out`."""
    folder = tmp_path_factory.mktemp("project")
    base_run(base_spec(toy_model()), tiny_toy, folder / "base")
    study = report_spec(write_study(folder / "study", modes=("hard",), seeds=1, problems=6, steps=4))
    (folder / "report.json").write_text(study.as_json())
    small = toy_model(width=32, layers=1, heads=1, mlp_width=32, steps=2, batch=2, threads=1)
    runtime = ["--runtime", '{"save_every": 1}']
    model, run = ["--model", str(tiny_toy)], ["--run", str(folder / "base"), *runtime]
    return {
        "data": ["--spec", data_spec("test", {"toy": {"task": "sums", "problems": 2}}).as_json()],
        "model": ["--spec", small.as_json(), *runtime],
        "base": ["--spec", base_spec(toy_model()).as_json(), *model],
        "train": ["--spec", TRAINING.as_json(), *runtime, *model, "--data", str(toy_sets["train"])],
        "evaluate": ["--spec", EVALUATION.as_json(), *run, "--data", str(toy_sets["test"])],
        "choices": ["--spec", choices_spec("letters").as_json(), *run, "--data", str(toy_sets["choice"])],
        "report": ["--spec", str(folder / "report.json"), "--root", str(folder / "study")],
    }


TROUBLE = {
    errno.ENOSPC: "No space left on device",
    errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied",
}


@pytest.mark.parametrize("number", TROUBLE)
@pytest.mark.parametrize("name", ["data", "model", "base", "train", "evaluate", "choices", "report"])
def test_every_command_tells_in_one_line_that_a_disk_takes_no_more(
    name: str, number: int, commands: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its first call on, or from a later one."""

    def error() -> OSError:
        return OSError(number, os.strerror(number), "somewhere")

    first = 1 if number != errno.ENOSPC else random.Random(name).randrange(1, 5)
    out = tmp_path / "made" / "out.parquet"
    with FILE_SYSTEM.watched(tmp_path.parent, first, error):
        assert main([name, *commands[name], "--out", str(out)]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(told) == 1 and told[0].startswith("softtok: error: "), told
    assert TROUBLE[number] in told[0] and "Traceback" not in told[0]


@pytest.mark.parametrize("name", ["model", "train", "evaluate", "report"])
def test_a_disk_that_is_really_full_is_one_line(
    name: str, commands: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files written in Rust and C++ too; what is left of the disk ends in the middle of them."""
    with small_disk(tmp_path / "disk", "64k") as disk:
        if name == "evaluate":
            (disk / "filler").write_bytes(bytes(62 * 1024))
        assert main([name, *commands[name], "--out", str(disk / "made" / "out.parquet")]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("softtok: error")]
    assert len(told) == 1 and "No space left on device" in told[0] and str(disk) in told[0], told


FULL = """
import sys
from softtok.__main__ import main
sys.exit(main(["schema"]))
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_does_not_fit_is_one_line_and_where_errors_do_not_fit_a_status(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        told = subprocess.run([sys.executable, "-c", FULL], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        silent = subprocess.run([sys.executable, "-c", FULL], stdout=full, stderr=full, check=False)
    assert told.stderr == "softtok: error: [Errno 28] No space left on device; make room and run it again\n"
    assert told.returncode == silent.returncode == 1
