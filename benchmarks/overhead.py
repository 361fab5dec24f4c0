"""Measurement 7: what the workflow costs beside the work of its jobs."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from benchmarks import toy
from benchmarks.driver import Row, Times
from benchmarks.plans import Plan

ROOT = Path(__file__).parents[1]
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
# Without these no job on a model can do; imported as `softtok` imports them.
IMPORTS = "import gc; gc.disable(); import torch, transformers.models.llama.modeling_llama"
LONGEST_NOTE = 300


def workflow_overhead(plan: Plan, folder: Path, results: Path, say: Callable[[str], None]) -> list[Row]:
    """7: start-up of one job; the demo grid's time beyond its jobs' work; dry runs; check of a finished demo."""
    say("workflow: start-up of a job, dry runs")
    startup = _startup(plan, folder)
    rows = [startup, grid_overhead(results, startup.median or 0.0)]
    rows.append(_snakemake(plan, "dry run of `paper`", ["-n", "paper"]))
    rows.append(_large_study(plan))
    check, done = "check of a finished demo", "Nothing to be"
    row = _snakemake(dataclasses.replace(plan, starts=1, warm_starts=0), check, ["-n", "demo"], done)
    if row.ratio is not None:  # a real run, which has nothing to do
        row = _snakemake(plan, check, ["--cores", "1", "demo"], done)
    return [*rows, row]


def _startup(plan: Plan, folder: Path) -> Row:
    """Times `softtok train` up to its first rollout, and the import of its libraries."""
    with tempfile.TemporaryDirectory() as out:
        start = [sys.executable, "-m", "benchmarks.toy", "start", str(folder), out]
        imports = [sys.executable, "-c", IMPORTS]
        turns = [(timed(start), timed(imports)) for _ in range(plan.warm_starts + plan.starts)][plan.warm_starts :]
    startup, libraries = (Times.of(list(times)) for times in zip(*turns, strict=True))
    return Row(
        "workflow_overhead",
        "start-up of `softtok train`",
        startup.wall_min,
        goal=2.5,
        better="less",
        unit="s",
        spread=(startup.wall_min, startup.wall_max),
        median=startup.wall_median,
        repeats=plan.starts,
        warm_up=plan.warm_starts > 0,
        sides={"start-up": startup, "libraries": libraries},
        note=f"importing torch and transformers' Llama alone takes {libraries.wall_min:.2f} s",
    )


def timed(command: list[str]) -> dict[str, float]:
    """Returns wall and CPU time of a command in seconds; raises RuntimeError when it fails."""
    before, started = os.times(), time.perf_counter()
    made = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    wall, after = time.perf_counter() - started, os.times()
    if made.returncode:
        raise RuntimeError(f"{command[:4]}: status {made.returncode}: {made.stderr[-500:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": wall, "cpu_s": cpu}


def _large_study(plan: Plan) -> Row:
    """Times the dry run of a study of many runs, in a folder where nothing is made yet."""
    with tempfile.TemporaryDirectory() as folder:
        configuration = toy.configuration(plan.problems, plan.pretraining_steps, plan.study_runs)
        (Path(folder) / "config.yaml").write_text(json.dumps(configuration))  # JSON is YAML
        case = f"dry run of a study of {plan.study_runs:,} runs"
        return dataclasses.replace(_snakemake(plan, case, ["-n", "--directory", folder]), goal=None)


def _snakemake(plan: Plan, case: str, arguments: list[str], expected: str = "") -> Row:
    """Times calls of Snakemake; without a number when a call fails or does not say what is `expected`."""
    row = Row("workflow_overhead", case, None, goal=5.0, better="less", unit="s", warm_up=plan.warm_starts > 0)
    seconds = []
    for _ in range(plan.warm_starts + plan.starts):
        started = time.perf_counter()
        made = subprocess.run([*SNAKEMAKE, *arguments], capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        row.note = _problem(made, arguments[-1], expected)
        if row.note:
            return row
    counted = seconds[plan.warm_starts :]
    row.ratio, row.median, row.spread = min(counted), statistics.median(counted), (min(counted), max(counted))
    row.repeats = len(counted)
    return row


def _problem(made: subprocess.CompletedProcess[str], study: str, expected: str) -> str:
    """Returns what kept a call of Snakemake from counting; empty where nothing did."""
    text = made.stdout + made.stderr
    if "MissingRuleException" in text:
        return f"config.yaml has no study {study}"
    if made.returncode:
        return "".join(text.strip().splitlines()[-1:])[-LONGEST_NOTE:]
    return "" if expected in text else f"{study} is not finished here: `snakemake {study}` first"


def grid_overhead(results: Path, startup_s: float) -> Row:
    """Returns 1 - (what the demo's jobs worked) / (wall time x cores), from Snakemake's records of a finished demo.

    A job's work is its time without the start-up, which one warm process would not have. The wall time runs from the
    first job's start to the last one's end, without times at which no job ran; the cores are those that were in use
    at most, for more than a second (a record's time ends a little after its job). Pretraining has two threads, all
    others one.
    """
    row = Row(
        "workflow_overhead", "demo grid: share not spent in work", None, goal=0.25, better="less", bound=0.0, unit=""
    )
    jobs = []  # start, end, threads
    for path in [*results.glob("benchmarks/models/toy-*.tsv"), *results.glob("benchmarks/runs/toy/*/**/*.tsv")]:
        seconds = float(path.read_text().splitlines()[1].split("\t")[0])
        end = path.stat().st_mtime
        jobs.append((end - seconds, end, 2 if path.parent.name == "models" else 1))
    if not (results / "reports" / "demo" / "report.html").exists() or not jobs:
        row.note = f"no finished demo in {results}: `make run` first"
        return row
    moments = sorted({moment for start, end, _ in jobs for moment in (start, end)})
    busy = [
        (after - before, sum(threads for start, end, threads in jobs if start <= before and after <= end))
        for before, after in pairwise(moments)
    ]
    wall = sum(span for span, load in busy if load)
    cores = max((load for span, load in busy if span > 1), default=1)
    work = sum(max(0.0, end - start - startup_s) * threads for start, end, threads in jobs)
    row.ratio, row.repeats = 1 - work / (wall * cores), 1
    row.note = f"{len(jobs)} jobs worked {work:.0f} of {wall:.0f} s x {cores} cores"
    return row


def make_toy(plan: Plan, folder: Path, say: Callable[[str], None]) -> Path:
    """Returns the folder of the toy of measurements 6 and 7, which is made once and kept."""
    place = (folder / toy.folder_name(plan.problems, plan.pretraining_steps)).absolute()
    if not (place / "train.json").exists():
        say("pretraining a toy for the evaluation cell")
        numbers = [str(plan.problems), str(plan.pretraining_steps)]
        timed([sys.executable, "-m", "benchmarks.toy", "make", str(place), *numbers])
    return place
