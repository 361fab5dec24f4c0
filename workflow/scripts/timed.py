"""Builds a study with Snakemake: says beforehand how long it takes on this machine, and shows the time left.

    timed.py STUDY [--records FOLDER] [--unrecorded] [--only-estimate] [-- OPTIONS OF SNAKEMAKE]

First it measures a training step of every mode and a slice of every evaluation, with the study's own base models and
settings. Each job that ends is a line with the time left, from the times that finished jobs took. With `--records` each
run is recorded as soon as it has finished. Ctrl-C and SIGTERM are passed on to Snakemake, whose exit status is kept;
what has finished stays, and the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO

from softtok.config.grid import Grid, Study
from softtok.config.specs import parse
from softtok.config.work import Costs, Job, jobs_of, prepared, seconds_of, share, study_of
from softtok.errors import UserError
from softtok.report.estimate import TimeLeft, arithmetic, took_s
from softtok.report.partial import moved
from softtok.report.recorded import recorded_runs
from softtok.report.records import write_records
from softtok.storage.progress import duration

BIN = Path(sys.executable).parent
RESULTS = Path("results")
LOOK_S = 2.0  # between looks for finished jobs
PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGINT}
"""What Snakemake and its jobs are sent for a signal to this process; SIGHUP would end it before its jobs have saved."""


def main() -> int:
    """Returns the exit status: Snakemake's, or 1 for an error that the user can fix."""
    try:
        return Build(_options()).build()
    except (UserError, OSError) as error:
        print(f"softtok: error: {error}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--config", type=Path, nargs="+", default=[Path("config.yaml")], metavar="PATH")
    parser.add_argument("--data-root", type=Path, metavar="PATH", help="folder of local data files")
    parser.add_argument("--records", type=Path, metavar="FOLDER", help="record each run there when it has finished")
    parser.add_argument("--unrecorded", action="store_true", help="leave out runs that are recorded already")
    parser.add_argument("--cores", default="all")
    parser.add_argument("--gpus", type=int, default=1, help="that jobs may use side by side")
    parser.add_argument("--only-estimate", action="store_true", help="say how long it takes, and build nothing")
    given = sys.argv[1:]
    place = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:place], argparse.Namespace(options=given[place + 1 :]))


class Build:
    """A study that is built: its jobs, and what is known of their times."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.grid: Grid
        self.study: Study
        self.grid, self.study = study_of(options.config, options.study, options.data_root)
        if options.unrecorded and not options.records:
            raise UserError("--unrecorded leaves out what is recorded; name the folder with --records FOLDER")
        recorded = recorded_runs(moved(self.study.spec, Path()), options.records) if options.unrecorded else set()
        self.jobs = [job for job in jobs_of(self.study) if job.run.folder.partition("/")[2] not in recorded]
        self.cores = len(os.sched_getaffinity(0)) if options.cores == "all" else int(options.cores)
        self.costs = RESULTS / "logs" / f"costs-{self.study.name}.json"
        self.process: subprocess.Popen[bytes] | None = None
        self.asked: int | None = None  # the signal that asked this process to stop

    def build(self) -> int:
        """Builds the study; returns the exit status."""
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:  # of `nohup`
                signal.signal(number, self._pass_on)
        self.record(told=False)
        if not self.jobs:
            print(f"All runs of {self.study.name} are recorded in {self.options.records}.")
            return 0
        waiting = [job for job in self.jobs if not job.finished(RESULTS)]
        left = None
        if waiting:
            if status := self._run(self._snakemake(*prepared(self.study))) or self.measure(waiting):
                return status
            left = self.estimate(waiting)
        else:
            print(f"All {len(self.jobs)} jobs are done.")
        if self.options.only_estimate:
            return 0
        status = self._run(self._snakemake(*self._targets()), left)
        self.record(told=True)
        return status

    def measure(self, waiting: list[Job]) -> int:
        """Measures what the waiting jobs cost, unless that was measured before; returns the exit status."""
        with contextlib.suppress(UserError):
            if self._costs().covers(waiting):
                print(f"As measured on this machine before ({self.costs}; remove it to measure anew):", flush=True)
                return 0
        print("Measuring a training step of each mode and a slice of each evaluation on this machine ...", flush=True)
        log = RESULTS / "logs" / f"measure-{self.study.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        root = ["--data-root", str(self.options.data_root)] if self.options.data_root else []
        configuration = ["--results", str(RESULTS), "--config", *map(str, self.options.config), *root]
        command = [str(BIN / "softtok"), "measure", self.study.name, "--out", str(self.costs), *configuration]
        with open(log, "wb") as file:
            status = self._run(command, stderr=file)
        if status and self.asked is None:
            last = log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
            print(f"{last} ({log})", file=sys.stderr)
        return status

    def _costs(self) -> Costs:
        return parse(Costs, str(self.costs), "costs")

    def estimate(self, waiting: list[Job]) -> TimeLeft:
        """Prints how long the waiting jobs take, and returns what counts them down."""
        costs = self._costs()
        expected = seconds_of(waiting, costs, self.grid.runtimes, RESULTS)
        machines = {job: job.machine(self.grid.runtimes) for job in waiting}
        left = TimeLeft(expected, {job: share(machines[job], self.cores, self.options.gpus) for job in waiting})
        for line in arithmetic(waiting, costs, self.grid.runtimes, expected, RESULTS):
            print(f"  {line}")
        done = f" ({len(self.jobs) - len(waiting)} are done)" if len(self.jobs) > len(waiting) else ""
        print(f"About {duration(left.seconds())} for {len(waiting)} jobs{done}{_until(left)}.", flush=True)
        return left

    def record(self, told: bool) -> None:
        """Records the runs that have finished; if `told`, prints what it wrote."""
        if self.options.records is None:
            return
        for line in write_records(moved(self.study.spec, Path()), RESULTS, self.options.records):
            if told or "recorded, " in line or "removed" in line or "replaced" in line:
                print(f"  {line}", flush=True)

    def _targets(self) -> list[str]:
        """Returns what Snakemake is asked for: the study, or what is not recorded of it."""
        if not self.options.unrecorded:
            return [self.study.name]
        return [output for job in self.jobs for output in job.outputs]

    def _snakemake(self, *targets: str) -> list[str]:
        root = ["--config", f"data_root={self.options.data_root}"] if self.options.data_root else []
        files = ["--configfile", *map(str, self.options.config)]
        quiet = ["--quiet", "all"]  # a failed job's own line is printed all the same
        machine = ["--cores", self.options.cores, "--resources", f"gpu={self.options.gpus}"]
        return [str(BIN / "snakemake"), *machine, *quiet, *files, *root, *self.options.options, "--", *targets]

    def _run(self, command: list[str], left: TimeLeft | None = None, stderr: IO[bytes] | None = None) -> int:
        """Runs a command to its end, and tells of jobs that end meanwhile; returns its exit status."""
        if self.asked is not None:
            return 128 + self.asked
        # In a session of its own, so that Ctrl-C in a terminal reaches it and its jobs once: from here.
        # What a shell starts in the background ignores SIGINT; only Snakemake has to obey it all the same.
        self.process = subprocess.Popen(command, start_new_session=True, stderr=stderr, preexec_fn=obey)
        try:
            if self.asked is not None:  # while it started, when there was nothing to pass a signal on to
                self._pass_on(self.asked)
            while self.process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(LOOK_S)
                self.look(left)
        finally:
            if self.process.poll() is None:  # an error here; what runs is stopped as by Ctrl-C
                os.killpg(self.process.pid, signal.SIGINT)
                self.process.wait()
        status = self.process.returncode
        return 128 - status if status < 0 else status

    def look(self, left: TimeLeft | None) -> None:
        """Prints a line for each job that has ended since the last look, and records runs that are complete."""
        if left is None:
            return
        ended = [job for job in left.expected if job not in left.took and job.finished(RESULTS)]
        for job in ended:
            seconds = took_s(job, RESULTS)
            left.took[job] = left.expected[job] if seconds is None else seconds
            done = len(self.jobs) - len(left.expected) + len(left.took)
            waits = len(left.took) < len(left.expected)  # jobs may take no time that a clock shows
            still = f"about {duration(left.seconds())} left{_until(left)}" if waits else "all done"
            what = f"{job.label}, seed {job.run.seed}: {duration(left.took[job])}"
            print(f"{datetime.now():%H:%M} {what}; {done} of {len(self.jobs)} jobs, {still}", flush=True)
        if ended:
            with told_only():
                self.record(told=False)

    def _pass_on(self, number: int, frame: object = None) -> None:
        self.asked = number
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, PASSED_ON[signal.Signals(number)])


def obey() -> None:
    """Lets SIGINT end this process, whatever its parent made of it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def told_only() -> Iterator[None]:
    """Prints an error and goes on: what cannot be recorded is no reason to stop what runs."""
    try:
        yield
    except (UserError, OSError) as error:
        print(f"softtok: not recorded: {error}", file=sys.stderr, flush=True)


def _until(left: TimeLeft) -> str:
    """Returns when it will be done, in words."""
    end = datetime.now() + timedelta(seconds=left.seconds())
    return f" (done about {end:%H:%M}{f' on {end:%d %b}' if end.date() != datetime.now().date() else ''})"


if __name__ == "__main__":
    sys.exit(main())
