"""`make bench`, -quick, -long and -real: runs the measurements, prints the table, writes peers.json and peers.md.

python -m benchmarks.run [--quick | --long | --real] [--only NAME ...] [--out FOLDER] [--threads N]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import cells, measurements, plot
from benchmarks.driver import Row
from benchmarks.overhead import make_toy, workflow_overhead
from benchmarks.plans import FULL, LONG, QUICK, REAL, TINY, Plan

Say = Callable[[str], None]
FAILED = "failed"
OF_CELLS: dict[str, Callable[[cells.Cell], list[Row]]] = {  # share their processes
    "rollout_vs_generate": cells.rollout_vs_generate,
    "soft_vs_hard": cells.soft_vs_hard,
    "step_vs_trl": cells.step_vs_trl,
    "rollout_floor": cells.rollout_floor,
}
OTHERS: dict[str, Callable[[Plan, Path, Say], list[Row]]] = {  # plan, folder of results, progress
    "objective_memory": lambda plan, _, say: measurements.objective_memory(plan, say),
    "evaluate_throughput": lambda plan, out, say: measurements.evaluate_throughput(plan, make_toy(plan, out, say), say),
    "shared_beginning": lambda plan, _, say: measurements.shared_beginning(plan, say),
    "workflow_overhead": lambda plan, out, say: workflow_overhead(plan, make_toy(plan, out, say), Path("results"), say),
    "growth": lambda plan, _, say: measurements.growth(plan, say),
    "bptt_cost": lambda plan, _, say: measurements.bptt_cost(plan, say),
    "pathwise_cost": lambda plan, _, say: measurements.pathwise_cost(plan, say),
}
NAMES = (*OF_CELLS, *OTHERS)


def measure(plan: Plan, names: list[str], out: Path, say: Say) -> list[Row]:
    """Returns the rows of all measurements in `names`; one that fails leaves a row that says so."""
    rows: list[Row] = []

    def add(name: str, make: Callable[[], list[Row]]) -> None:
        try:
            made = make()
        except Exception as error:  # whatever a library threw: the other measurements are wanted all the same
            made = [failed(name, error)]
        rows.extend(made)
        for row in made:
            say(f"    {row.measurement:20} {row.case:40} {number(row)}  (goal {limit(row)}) {row.note}")

    of_cells = [name for name in OF_CELLS if name in names]
    for size, load, seconds in plan.cells if of_cells else []:
        try:
            cell = cells.run_cell(plan, size, load, seconds, say)
        except RuntimeError as error:  # a process ended, for lack of memory maybe
            rows.append(failed(of_cells[0], error))
            continue
        for name in of_cells:
            add(name, partial(OF_CELLS[name], cell))
    for name in (name for name in OTHERS if name in names):
        add(name, partial(OTHERS[name], plan, out, say))
    return sorted(rows, key=lambda row: order(row.measurement))


def failed(name: str, error: Exception) -> Row:
    """What stands in the table for a measurement that failed."""
    return Row(name, FAILED, None, note=" ".join(f"{type(error).__name__}: {error}".split())[-300:])


def order(measurement: str) -> int:
    """The place of a measurement in the table."""
    name = {"fuzzy_vs_hard": "soft_vs_hard"}.get(measurement, measurement)
    return NAMES.index(name)


def number(row: Row) -> str:
    """The row's ratio, with its unit."""
    return "—" if row.ratio is None else f"{row.ratio:.2f}{row.unit if row.unit == 'x' else ' ' + row.unit}".strip()


def limit(row: Row) -> str:
    """The row's goal, with its direction."""
    return "—" if row.goal is None else f"{'≥' if row.better == 'more' else '≤'} {row.goal:.2f}"


def table(rows: list[Row]) -> str:
    """The rows as Markdown, one table a measurement."""
    lines = []
    for name in dict.fromkeys(row.measurement for row in rows):
        lines += ["", f"## {name}", "", "| case | measured | goal | | bound | median | single rounds | repeats | |"]
        lines += ["|---|---:|---:|---|---:|---:|---:|---:|---|"]
        for row in (row for row in rows if row.measurement == name):
            verdict = {True: "reached", False: "**missed**", None: ""}[row.reached]
            bound = "" if row.bound is None else f"{row.bound:.2f}"
            median = "" if row.median is None else f"{row.median:.2f}"
            spread = "" if row.spread is None else f"{row.spread[0]:.2f}–{row.spread[1]:.2f}"
            repeats = f"{row.repeats}" + ("" if row.warm_up else ", cold")
            cells = (row.case, number(row), limit(row), verdict, bound, median, spread, repeats, row.note)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def times_table(rows: list[Row]) -> str:
    """Seconds behind the ratios: minimum and median of wall and CPU time."""
    lines = ["", "## Seconds", "", "| measurement | case | side | wall min | wall median | CPU min | CPU median |"]
    lines += ["|---|---|---|---:|---:|---:|---:|"]
    for row in rows:
        for side, t in row.sides.items():
            seconds = " | ".join(f"{value:.4g}" for value in (t.wall_min, t.wall_median, t.cpu_min, t.cpu_median))
            lines.append(f"| {row.measurement} | {row.case} | {side} | {seconds} |")
    return "\n".join(lines) + "\n"


def told(rates: dict[str, dict[str, float]]) -> str:
    """The rates of products in words, for the head."""
    return "; ".join(
        f"{dtype} " + ", ".join(f"{rate:.0f} of {rows}" for rows, rate in of.items()) for dtype, of in rates.items()
    )


def machine(threads: int) -> dict[str, Any]:
    """Where and with what this was measured."""
    import psutil

    with open("/proc/cpuinfo") as file:
        models = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    packages = {name: version(name) for name in ("torch", "transformers", "trl", "softtok")}
    return {
        "cpu": (models or [platform.processor()])[0],
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **packages,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description="Times softtok against generate() and TRL.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--long", action="store_true", help="five rounds of everything, two prompts at L: over an hour")
    size.add_argument("--real", action="store_true", help="the shape of a pretrained model of 135M parameters alone")
    size.add_argument("--quick", action="store_true", help="one case of size S, the others small: for trends")
    size.add_argument(
        "--tiny", action="store_true", help="the smallest case of every measurement, to see that all work"
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    chosen = [plan for plan in (TINY, QUICK, LONG, REAL) if getattr(options, plan.name)]
    plan = dataclasses.replace((chosen or [FULL])[0], threads=options.threads)
    started, facts = time.perf_counter(), machine(options.threads)

    def say(text: str) -> None:
        print(f"{time.perf_counter() - started:6.0f} s  {text}", flush=True)

    rates = measurements.product_rates(plan, say)
    rows = measure(plan, options.only or list(OF_CELLS if options.real else NAMES), options.out, say)
    seconds = round(time.perf_counter() - started)
    found = {"plan": plan.name, "machine": facts, "seconds": seconds, "product_gflops": rates}
    found["rows"] = [row.as_json() for row in rows]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    where = ", ".join(f"{name} {value}" for name, value in facts.items())
    head = f"# Side by side with generate() and TRL\n\nPlan: {plan.name}; {seconds} s; {where}.\n"
    head += f"Matrix products in GFLOP/s: {told(rates)}.\n"
    head += "Ratios are of the minima of wall time; benchmarks/README.md says what each means.\n"
    text = head + table(rows)
    (options.out / "peers.md").write_text(text + times_table(rows))
    if any(row.measurement == "growth" for row in rows):
        plot.growth(rows, options.out)
    print(f"\n{text}\n{options.out / 'peers.json'}, {options.out / 'peers.md'}")
    without = [row for row in rows if row.case == FAILED]
    for row in without:
        print(f"benchmarks: {row.measurement} failed: {row.note}", file=sys.stderr)
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
