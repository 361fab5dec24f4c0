"""A signal to all processes of a job is for the job alone: its reward workers live on until it has saved."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from softtok.storage.locks import EXIT_INTERRUPTED, STOPPING, Interruption
from tests.support.damage import times
from tests.support.processes import alive, children, cpu_s, kill, until, workers

pytestmark = pytest.mark.thorough

JOB = r"""
import signal, sys
from softtok.problems.reward import Judge
from softtok.storage.locks import Interruption

def step(n):
    pairs = [(rf"\frac{{{2 * k}}}{{14}} + x_{{{n}}}", rf"\frac{{{k}}}{{7}} + x_{{{n}}}") for k in range(1, 9)]
    verdicts = judge.grade([(rf" \boxed{{{answer}}}", [gold]) for answer, gold in pairs])
    assert all(verdict.correct for verdict in verdicts), n

if __name__ == "__main__":
    # The tests themselves may run under nohup.
    signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
    with Interruption() as interruption, Judge(workers=2) as judge:
        print("begun", flush=True)
        for n in range(10_000):
            step(n)
            if n == 0:
                print("judged", flush=True)
            interruption.exit_if_asked()
"""

SLEEPY = r"""
import sys, time
from softtok.problems.reward import Judge
from softtok.storage.locks import Interruption

def wait(seconds):
    print("waiting", flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    calls = {"asleep": (wait, (3000,)), "in C": (sum, (range(10**13),)), "idle": (int, (1,))}
    function, case = calls[sys.argv[1]]
    with Interruption(), Judge(workers=2, timeout_s=600) as judge:
        judge._workers.ask(function, [case])
        print("idle", flush=True)
        time.sleep(3000)
"""


@contextmanager
def started(script: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a script in a process group of its own, which nothing outlives."""
    command = [sys.executable, str(script), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            kill(children(process.pid, recursive=True))
            process.kill()


MOMENTS = [("judged", number) for number in STOPPING] + [("begun", signal.SIGTERM), ("begun", signal.SIGUSR1)]


@pytest.mark.parametrize(("when", "number"), MOMENTS * times(1))
def test_a_signal_to_the_group_stops_the_job_alone(when: str, number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C, `kill -- -PGID` and Slurm's signal: 75 with one line, at any moment, while the workers start too."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    with started(script) as job:
        assert job.stdout is not None
        for line in ("begun", "judged"):
            assert job.stdout.readline() == f"{line}\n"
            if line == when:
                break
        later = random.random()
        time.sleep(later)
        others = children(job.pid, recursive=True)
        os.killpg(job.pid, number)
        _, printed = job.communicate(timeout=120)
        assert job.returncode == EXIT_INTERRUPTED, (later, printed)
        assert printed == f"softtok: stopped by {number.name}; progress is saved\n"
        until(lambda: not alive(others), 30)


def test_workers_are_in_groups_of_their_own(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    with started(script) as job:
        assert job.stdout is not None
        assert [job.stdout.readline() for _ in range(2)] == ["begun\n", "judged\n"]
        pids = {worker.pid for worker in workers(job.pid)}
        assert len(pids) == 2
        until(lambda: {os.getpgid(pid) for pid in pids} == pids)  # each forms its own as it starts
        for pid in pids:
            for number in set(STOPPING) - {signal.SIGTERM}:
                os.kill(pid, number)
        os.killpg(job.pid, signal.SIGUSR1)
        _, printed = job.communicate(timeout=120)
        assert (job.returncode, printed.count("\n")) == (EXIT_INTERRUPTED, 1)


@pytest.mark.parametrize("busy", ["asleep", "in C", "idle"])
def test_workers_end_when_their_parent_is_killed(busy: str, tmp_path: Path) -> None:
    """Also one whose reward sleeps for ever, which takes no CPU time, or holds the interpreter."""
    script = tmp_path / "sleepy.py"
    script.write_text(SLEEPY)
    with started(script, busy) as job:
        assert job.stdout is not None
        if busy == "in C":
            until(lambda: any(cpu_s(one) > 1 for one in workers(job.pid)))
        else:
            assert job.stdout.readline() == ("waiting\n" if busy == "asleep" else "idle\n")
        others = children(job.pid, recursive=True)
        assert len(others) >= 3
        job.kill()
        until(lambda: not alive(others), 20)


@pytest.mark.parametrize("busy", ["asleep", "in C"])
def test_a_job_does_not_wait_for_its_workers_once_it_is_asked_to_stop(busy: str, tmp_path: Path) -> None:
    """A user's reward may take as long as it likes."""
    script = tmp_path / "sleepy.py"
    script.write_text(SLEEPY)
    with started(script, busy) as job:
        until(lambda: len(workers(job.pid)) == 2)
        if busy == "in C":
            until(lambda: any(cpu_s(one) > 1 for one in workers(job.pid)))
        others, begun = children(job.pid, recursive=True), time.monotonic()
        os.killpg(job.pid, signal.SIGTERM)
        _, printed = job.communicate(timeout=120)
        assert (job.returncode, time.monotonic() - begun < 10) == (EXIT_INTERRUPTED, True), printed
        until(lambda: not alive(others), 20)


def test_sighup_stops_a_job_unless_it_is_ignored(tmp_path: Path) -> None:
    """As `nohup` ignores it."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    with started(script, "nohup") as job:
        assert job.stdout is not None
        assert [job.stdout.readline() for _ in range(2)] == ["begun\n", "judged\n"]
        os.killpg(job.pid, signal.SIGHUP)
        time.sleep(1)
        assert job.poll() is None
        os.killpg(job.pid, signal.SIGTERM)
        _, printed = job.communicate(timeout=120)
        assert job.returncode == EXIT_INTERRUPTED and "SIGTERM" in printed


LAST_TIMES_OUT = r"""
from softtok.problems.reward import Judge

if __name__ == "__main__":
    with Judge() as judge:
        print(judge.grade([(r" \boxed{(x+y+z)^{30}}", ["3x"])])[0].status)
"""


def test_a_job_whose_last_answer_times_out_prints_nothing(tmp_path: Path) -> None:
    """The killed worker's replacement starts while the pool is closed."""
    script = tmp_path / "job.py"
    script.write_text(LAST_TIMES_OUT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("timeout\n", "")


def test_a_callers_handlers_are_back_afterwards() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with Interruption():
        assert [signal.getsignal(number) for number in STOPPING] != before
    assert [signal.getsignal(number) for number in STOPPING] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOPPING)
