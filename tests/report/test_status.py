"""`softtok status`: the state of every job from `results/` alone, on one screen."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from softtok.__main__ import main
from softtok.config.grid import Study
from softtok.config.work import Job, below, jobs_of
from softtok.report.job_states import log_of, state_of
from softtok.report.status import Status, status_of
from softtok.storage.progress import Note, lock_of, note_of, shown_as_running
from tests.support.project import Project, shipped

STUDY = "small"
HOST = socket.gethostname()


class Sweep(Project):
    """A study of two modes and two seeds, whose jobs are put into states by hand."""

    @property
    def study(self) -> Study:
        return self.grid().studies[STUDY]

    @property
    def status(self) -> Status:
        return status_of(self.study, self.results)

    def job(self, mode: str, seed: int, kind: str = "train", on: str = "") -> Job:
        found = [job for job in jobs_of(self.study) if (job.run.name, job.run.seed, job.kind) == (mode, seed, kind)]
        return next(job for job in found if on in (job.of.stem if job.of else ""))

    def state_folder(self, job: Job) -> Path:
        return self.results / below(job.run.folder) / ".state"

    def unfinish(self, job: Job) -> None:
        for path in job.outputs:
            (self.folder / path).unlink(missing_ok=True)

    def note(self, job: Job, done: int, total: int, pid: int = os.getpid(), **facts: float) -> None:
        name = job.of.stem.replace("/", ".") if job.of else "train"
        path = note_of(self.state_folder(job), name)
        note = Note(
            pid=pid,
            host=HOST,
            time=0.0,
            unit="steps",
            done=done,
            total=total,
            left_s=90.0,
            tokens_s=1234.0,
            facts=facts,
        )
        self.write(str(path.relative_to(self.folder)), text=note.as_json())

    def attempts(self, job: Job, *events: dict[str, Any]) -> None:
        name = "attempts" if job.of is None else job.kind
        of = {"of": "/".join(Path(job.outputs[0]).parts[-2:])} if job.of else {}
        path = self.state_folder(job) / f"{name}.jsonl"
        stamp = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": HOST, "pid": os.getpid()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.writelines(json.dumps(of | stamp | event) + "\n" for event in events)

    def log(self, job: Job, text: str, at: float | None = None) -> Path:
        path = log_of(job.benchmark, self.results)
        self.write(str(path.relative_to(self.folder)), text=text)
        if at is not None:
            os.utime(path, (at, at))
        return path

    def show(self, *options: str) -> None:
        assert main(["status", STUDY, "--config", str(self.path), "--results", str(self.results), *options]) == 0


START, STOPPED = {"event": "start"}, {"event": "interrupted", "code": 75}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Everything has finished but the report."""
    project, config = Sweep(tmp_path), shipped()
    study = config["studies"]["demo"] | {"training_modes": ["hard", "soft"], "seeds": [0, 1]}
    project.config = config | {"studies": {STUDY: study}, "run": [STUDY]}
    project.finish(project.study, project.grid())
    for job in jobs_of(project.study):
        if job.kind == "train":
            project.write(job.outputs[0], text='{"diverged": null, "wall_s": 100.0}')
    return project


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Locks that are held until the test ends."""
    with ExitStack() as held:
        yield held


def counts(sweep: Sweep) -> dict[str, int]:
    return dict(sweep.status.counts)


def one_state(sweep: Sweep, job: Job) -> tuple[str, str]:
    found = state_of(job, sweep.results)
    return found.name, found.why


def test_a_finished_study_and_its_report(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.show()
    assert capsys.readouterr().out.splitlines() == [
        "small: 19 jobs: 19 done",
        "",
        "all jobs are done; `snakemake small` makes the report",
    ]
    sweep.write("results/reports/small/report.html")
    sweep.show()
    assert "complete; the report is" in capsys.readouterr().out


def test_before_anything_was_done_all_wait_and_nothing_is_prepared(sweep: Sweep) -> None:
    (sweep.results).rename(sweep.folder / "elsewhere")
    status = sweep.status
    assert dict(status.counts) == {"waiting": 19}
    text = "\n".join(status.lines())
    assert "6 of the data sets and models that they start from are not prepared yet" in text
    assert "waiting: 4 trainings, 10 tests, 5 choice sets" in text
    assert "nothing runs now; `snakemake small` goes on" in text


def test_a_job_runs_if_its_lock_is_held_whatever_else_is_there(sweep: Sweep, running: ExitStack) -> None:
    """Not if a note or a start says so: these outlive a killed job."""
    training, test = sweep.job("hard", 0), sweep.job("soft", 1, "evaluate", "long-sums")
    for job in (training, test):
        sweep.unfinish(job)
        sweep.attempts(job, START)
        sweep.note(job, 30, 150)
        assert one_state(sweep, job)[0] == "stopped"
    running.enter_context(shown_as_running(sweep.state_folder(training), "train"))
    assert test.of is not None
    running.enter_context(shown_as_running(sweep.state_folder(test), test.of.stem.replace("/", ".")))
    assert counts(sweep) == {"done": 17, "running": 2}
    other = sweep.job("soft", 1, "evaluate", "eval/sums")
    sweep.unfinish(other)
    assert one_state(sweep, other) == ("waiting", ""), "another test of the same run does not run"


def test_a_running_job_is_told_with_step_reward_rate_and_time_left(sweep: Sweep, running: ExitStack) -> None:
    job = sweep.job("soft", 1)
    sweep.unfinish(job)
    sweep.attempts(job, START)
    sweep.note(job, 30, 150, reward=61.239)
    running.enter_context(shown_as_running(sweep.state_folder(job), "train"))
    (line,) = [line for line in sweep.status.lines() if "soft, seed 1" in line]
    assert line.split() == [
        *("training", "toy,", "sums,", "soft,", "seed", "1"),
        *("30/150", "61.2", "1,234", "1", "min", "30", "s"),
    ]
    assert f"{90 // 60} min 30 s of work left" in "\n".join(sweep.status.lines())


def test_a_note_of_an_earlier_attempt_is_not_taken_for_this_one(sweep: Sweep, running: ExitStack) -> None:
    job = sweep.job("soft", 1)
    sweep.unfinish(job)
    sweep.note(job, 149, 150, pid=os.getpid() + 1)
    sweep.attempts(job, START)
    sweep.log(job, "softtok: waiting for a free GPU\n")
    running.enter_context(shown_as_running(sweep.state_folder(job), "train"))
    assert one_state(sweep, job) == ("running", "waiting for a free GPU")
    text = "\n".join(sweep.status.lines())
    assert "starts" in text and "149/150" not in text


def test_failures_are_told_by_their_last_error_line(sweep: Sweep) -> None:
    told, traceback, early, older = (sweep.job(mode, seed) for mode in ("hard", "soft") for seed in (0, 1))
    for job in (told, traceback, early, older):
        sweep.unfinish(job)
    out_of_memory = {"event": "failed", "error": "OutOfMemoryError('CUDA out of memory')"}
    sweep.attempts(told, START, out_of_memory)
    sweep.log(told, "train: 3/150 steps\nsofttok: error: CUDA out of memory; lower rollout_tokens\n")
    sweep.attempts(traceback, START, {"event": "failed", "error": "RuntimeError('no\\nluck')"})
    sweep.log(traceback, "Traceback ...\nRuntimeError: no\nluck\n")
    sweep.log(early, "softtok: error: results/models/toy does not exist; snakemake makes it\n")
    sweep.log(older, "softtok: error: long ago\n", at=time.time() - 3600)
    sweep.attempts(older, START, STOPPED)
    assert one_state(sweep, told) == ("failed", "CUDA out of memory; lower rollout_tokens")
    assert one_state(sweep, traceback)[0] == "failed" and "no\\nluck" in one_state(sweep, traceback)[1]
    assert one_state(sweep, early) == ("failed", "results/models/toy does not exist; snakemake makes it")
    assert one_state(sweep, older)[0] == "stopped"


def test_a_test_fails_alone_though_tests_of_a_run_share_their_notes(sweep: Sweep) -> None:
    failed, stopped = (sweep.job("hard", 0, "evaluate", on) for on in ("eval/sums", "long-sums"))
    for job, end in ((failed, {"event": "failed", "error": "UserError('row 3: no gold')"}), (stopped, STOPPED)):
        sweep.unfinish(job)
        sweep.attempts(job, START, end)
    assert one_state(sweep, failed) == ("failed", "row 3: no gold")
    assert one_state(sweep, stopped) == ("stopped", "stopped, with its progress saved")


def test_what_was_finished_and_is_gone_is_missing(sweep: Sweep) -> None:
    noted, half = sweep.job("hard", 0), sweep.job("hard", 1, "evaluate", "eval/sums")
    sweep.unfinish(noted)
    sweep.attempts(noted, START, {"event": "done"})
    (sweep.folder / half.outputs[1]).unlink()
    assert one_state(sweep, noted) == ("missing", "has finished, but manifest.json and metrics.jsonl is gone")
    assert one_state(sweep, half) == ("missing", f"has finished, but {Path(half.outputs[1]).name} is gone")


def test_a_diverged_training_is_no_done_one(sweep: Sweep) -> None:
    job = sweep.job("hard", 1)
    sweep.write(job.outputs[0], text='{"diverged": {"step": 7, "reason": "gradient norm is nan"}, "wall_s": 1.0}')
    assert counts(sweep) == {"done": 18, "diverged": 1}
    assert "  training toy, sums, hard, seed 1: at step 7: gradient norm is nan" in sweep.status.lines()
    assert "all jobs are done" in sweep.status.lines()[-1]


def test_work_that_is_left_is_told_when_all_of_it_is_known(sweep: Sweep) -> None:
    """As long as jobs of the same cost took; a stopped one has a part behind it."""
    waiting, stopped = sweep.job("hard", 0), sweep.job("soft", 0)
    for job in (waiting, stopped):
        sweep.unfinish(job)
    sweep.attempts(stopped, START, STOPPED)
    sweep.note(stopped, 75, 100)
    assert sweep.status.work_left().startswith("2 min 05 s of work left")
    sweep.unfinish(sweep.job("hard", 1))
    assert sweep.status.work_left() == ""


def test_what_could_not_be_prepared_is_a_failure_and_what_waits_for_a_failed_training_is_told(sweep: Sweep) -> None:
    study = sweep.study
    data = next(iter(sweep.grid().data.values()))
    (sweep.folder / data.path).unlink()
    sweep.write(f"results/logs/{below(data.stem)}.log", text="softtok: error: the hub is away\n")
    for job in jobs_of(study):
        if (job.run.name, job.run.seed) == ("hard", 0):
            sweep.unfinish(job)
    sweep.attempts(sweep.job("hard", 0), START, {"event": "failed", "error": "X()"})
    text = "\n".join(sweep.status.lines())
    assert "1 of the data sets and models that they start from are not prepared yet" in text
    assert f"  {data.path}: the hub is away" in text
    assert "waiting: 2 tests, 1 choice set; 3 of them need a training that failed" in text


def test_one_screen_holds_a_large_sweep_and_all_names_everything(
    tmp_path: Path, running: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Sweep(tmp_path)
    config = shipped()
    config["studies"] = {STUDY: config["studies"]["paper"]}
    project.config = config | {"run": [STUDY]}
    trainings = [job for job in jobs_of(project.study) if job.kind == "train"]
    for number, job in enumerate(trainings):
        state = project.state_folder(job)
        if number < 20:
            running.enter_context(shown_as_running(state, "train"))
            project.note(job, 3999, 4000, reward=100.0)
            project.attempts(job, START)
        elif number < 40:
            project.attempts(job, START, {"event": "failed", "error": f"RuntimeError({'x' * 150!r}, {number % 10})"})
    project.show("--width", "80")
    few = capsys.readouterr().out.splitlines()
    assert max(map(len, few)) <= 80 and len(few) <= 50
    assert few[0] == "small: 333 jobs: 20 running, 20 failed, 293 waiting"
    assert "  ... and 12 more; `--all` shows them" in few
    rows = [line for line in few if "3999/4000" in line]
    assert len(rows) == 8 and all(f"seed {trainings[n].run.seed} " in line for n, line in enumerate(rows))
    project.show("--width", "80", "--all")
    every = "\n".join(capsys.readouterr().out.splitlines())
    assert every.count("3999/4000") == 20 and every.count("seed") >= 40


def test_a_study_that_is_not_there_is_one_line_and_a_lock_is_only_looked_at(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "smal", "--config", str(sweep.path), "--results", str(sweep.results)]) == 1
    assert "did you mean 'small'?" in capsys.readouterr().err
    job = sweep.job("hard", 0)
    sweep.unfinish(job)
    assert one_state(sweep, job)[0] == "waiting"
    assert not lock_of(sweep.state_folder(job), "train").exists()
