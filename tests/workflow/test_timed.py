"""The script that builds a study and says how long it takes: workflow/scripts/timed.py."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from softtok.config.work import Costs, ProblemsCost, TrainingCost, jobs_of
from softtok.report.estimate import TimeLeft
from tests.support.project import ROOT
from tests.support.stand_in import FIRST, STAND_IN, StandInProject, tiny


def costs(project: StandInProject) -> None:
    """Writes what jobs of the first study cost, as if it had been measured: so many seconds for each kind."""
    grid = project.grid()
    jobs = jobs_of(grid.studies["first"])
    train = TrainingCost(ready_s=600, step_s=60, measured_step_s=60, validation_s=60, save_s=0, weights_s=0)
    trainings = {job.cost: train for job in jobs if job.kind == "train"}
    measures = {job.cost: ProblemsCost(ready_s=60, problem_s=6) for job in jobs if job.kind != "train"}
    project.write(
        "results/logs/costs-first.json", text=Costs(start_s=60, trainings=trainings, measures=measures).as_json()
    )


@pytest.fixture
def measured(tmp_path: Path) -> StandInProject:
    """A project with data sets, of which each has a number of problems, and the costs of its first study."""
    project = tiny(tmp_path / "project")
    project.environment["BASH_FUNC_softtok%%"] = STAND_IN.replace(
        'data) echo "$RANDOM$RANDOM" |', "data) echo '{\"rows\": 10}' |"
    )
    costs(project)
    return project


@pytest.mark.slow
def test_a_timed_study_says_how_long_it_takes_and_counts_down(measured: StandInProject) -> None:
    """Two evaluations and two choice sets of 3 minutes each; a training of 20 steps and two validations."""
    with measured.timed("first", "--cores", "1") as process:
        told = (process.communicate(timeout=300)[0]).splitlines()
    assert process.returncode == 0, told
    assert any(line.startswith("As measured on this machine before (results/logs/costs-first.json") for line in told)
    assert (
        "  1 x training toy, sums, hard: start 660 s + 20 steps x 60 s + 2 validations x 60 s = 33 min 00 s each"
        in told
    )
    assert "  2 x sums (all-modes): start 120 s + 10 problems x 6 s = 3 min 00 s each" in told
    (total,) = (line for line in told if line.startswith("About "))
    assert total.startswith("About 45 min 00 s for 5 jobs (done about ")
    ended = [line for line in told if re.match(r"\d\d:\d\d ", line)]
    assert len(ended) == 5 and "5 of 5 jobs, all done" in ended[-1]
    left = [line for line in ended if "left (done about" in line]
    assert len(left) < 5 and all(re.search(r"[1-5] of 5 jobs, about \d+ s left", line) for line in left), (
        "they took no time"
    )
    with measured.timed("first", "--cores", "1") as process:
        assert "All 5 jobs are done." in process.communicate(timeout=300)[0].splitlines()
    measured.edit(lambda config: config["studies"]["first"].update(seeds=[0, 1]))
    with measured.timed("first", "--cores", "1", "--only-estimate", "--", "--nolock") as process:
        told = process.communicate(timeout=300)[0].splitlines()
    assert any(line.startswith("About 39 min 00 s for 3 jobs (5 are done)") for line in told)
    assert not list(measured.folder.glob("results/runs/toy/sums/hard/seed1-*"))


def test_time_left_counts_jobs_that_run_side_by_side(measured: StandInProject) -> None:
    """A training takes both cores, two evaluations share them: 33 minutes, and 4 times 3 minutes of half a machine."""
    runtime = {"threads": 2, "evaluation_threads": 1}
    measured.edit(lambda config: config["models"]["toy"].update(runtime=runtime))
    with measured.timed("first", "--cores", "2", "--only-estimate") as process:
        told = process.communicate(timeout=300)[0]
    assert "About 39 min 00 s for 5 jobs" in told


@pytest.mark.slow
def test_a_timed_study_that_fails_has_snakemakes_status_and_keeps_the_rest(measured: StandInProject) -> None:
    with measured.timed("first", "--cores", "1", FAIL="train") as process:
        told = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert "softtok: error: no such thing (results/logs/runs/toy/sums/hard/seed0-" in told
    assert "2 of 5 jobs, about " in told and "3 of 5 jobs" not in told
    assert measured.jobs() == {job for job in FIRST if "/hard/" in job} | {"report results/reports/first"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_a_timed_study_reaches_snakemake_once(number: int, measured: StandInProject) -> None:
    """What runs is stopped, what has finished is kept, and the same command goes on.

    SIGHUP comes as to a command in the background of a shell, which starts it with SIGINT ignored.
    """
    whole = measured.environment["BASH_FUNC_softtok%%"]
    measured.environment["BASH_FUNC_softtok%%"] = whole.replace(
        "base | train)", "base | train)\n            [ $command = train ] && sleep 47.25;"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if number == signal.SIGHUP else signal.default_int_handler)
    try:
        started = measured.timed("first", "--cores", "1")
    finally:
        signal.signal(signal.SIGINT, before)
    with started as process:
        calls = measured.folder / "calls.txt"
        deadline = time.monotonic() + 120
        while not (calls.exists() and "train results/runs/" in calls.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3)  # Snakemake has done with starting it
        process.send_signal(number)
        start = time.monotonic()
        told = process.communicate(timeout=40)[0]
    assert process.returncode not in (0, None), told
    assert time.monotonic() - start < 30, "the job is not waited for"
    assert "timed.py" not in told, "Snakemake may end with a traceback of its own, this script does not"
    measured.environment["BASH_FUNC_softtok%%"] = whole
    assert measured.jobs() == {job for job in FIRST if "/hard/" in job} | {"report results/reports/first"}


@pytest.fixture
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("timed", ROOT / "workflow/scripts/timed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def build(script: ModuleType, measured: StandInProject, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study that is to be built in this process."""
    monkeypatch.chdir(measured.folder)
    options = {
        "study": "first",
        "config": [measured.path],
        "data_root": None,
        "records": Path("records"),
        "options": [],
    }
    return script.Build(argparse.Namespace(**options, unrecorded=False, cores="1", gpus=1, only_estimate=False))


def test_a_full_disk_of_records_stops_no_study(
    build: Any, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(script, "write_records", full)
    left = TimeLeft(dict.fromkeys(build.jobs, 60.0), dict.fromkeys(build.jobs, 1.0))
    Path(build.jobs[0].outputs[0]).parent.mkdir(parents=True)
    for output in build.jobs[0].outputs:
        Path(output).write_text("1234")
    build.look(left)
    told = capsys.readouterr()
    assert "1 of 5 jobs, about 4 min 00 s left" in told.out
    assert told.err == "softtok: not recorded: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_a_command_starts_ends_it(
    number: int, build: Any, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def asked_meanwhile(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        os.kill(os.getpid(), number)  # before there is a process that it could be passed on to
        return start(*args, **options)

    monkeypatch.setattr(script.subprocess, "Popen", asked_meanwhile)
    before = signal.signal(number, build._pass_on)
    try:
        assert build._run(["sleep", "60"]) == 128 + number
        monkeypatch.setattr(script.subprocess, "Popen", lambda *_, **__: pytest.fail("nothing more is to start"))
        assert build._run(["sleep", "60"]) == 128 + number
    finally:
        signal.signal(number, before)
