"""What a study's jobs took, by training mode and device: tokens, seconds a step, memory and hours.

A training's metrics.jsonl says where each step was taken and how long it took. The cost of an evaluation is in a file
beside its rows (`storage/costs.py`). Results of earlier versions lack some of this; then the table says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from softtok.config.manifests import RunManifest
from softtok.config.specs import ReportRun
from softtok.report.study import Row, row_of
from softtok.storage.costs import read_cost

Kind = Literal["training", "evaluation"]
NO_VALUE = "–"
TIMES = ("rollout_s", "reward_s", "update_s")  # of a step


@dataclass
class Spent:
    """What jobs of one kind took on one device; a number that some job did not record is None."""

    row: Row
    kind: Kind
    made_on: str
    wall_s: float = 0.0  # all of it: loading, validations and saves too
    steps: int = 0
    tokens: int | None = 0  # generated, in thoughts and answers
    busy_s: float = 0.0  # seconds of the steps, or of generating
    peak_mb: float | None = None

    def add(self, other: Spent) -> None:
        """Adds what other jobs took."""
        self.wall_s += other.wall_s
        self.steps += other.steps
        self.tokens = None if self.tokens is None or other.tokens is None else self.tokens + other.tokens
        self.busy_s += other.busy_s
        self.peak_mb = max((mb for mb in (self.peak_mb, other.peak_mb) if mb is not None), default=None)


@dataclass
class Costs:
    """What is known of a study's costs."""

    spent: list[Spent] = field(default_factory=list)
    measured: int = 0  # evaluations and choice sets
    unknown: int = 0  # those of them that did not record what they took


def add_run(costs: Costs, entry: ReportRun, run: Path, manifest: RunManifest) -> None:
    """Adds the jobs of a run, as far as their files are there; `run` is its folder."""
    if entry.training_mode != "base":
        costs.spent += trained(entry, run, manifest)
    seen: set[tuple[str, str]] = set()
    for test_set, rows in measured_files(entry):
        if not (run / rows).exists():
            continue
        costs.measured += 1
        cost = read_cost(run / rows)
        if cost is None or any(part.wall_s is None for part in cost.parts):
            costs.unknown += 1
            continue
        costs.spent.append(Spent(row_of(entry), "evaluation", cost.made_on, cost.ready_s))
        of_others = set(seen)  # a mode of two inference sets is made once
        for part in cost.parts:
            seen.add((test_set, part.inference_mode))
            if part.wall_s is not None and (test_set, part.inference_mode) not in of_others:
                costs.spent.append(
                    Spent(
                        row=row_of(entry),
                        kind="evaluation",
                        made_on=part.made_on,
                        wall_s=part.wall_s,
                        tokens=part.tokens,
                        busy_s=part.wall_s if part.tokens else 0.0,
                        peak_mb=part.peak_memory_mb,
                    )
                )


def measured_files(entry: ReportRun) -> Iterator[tuple[str, str]]:
    """Yields the sets that a run is measured on, with the file of rows of each job, relative to the run's folder."""
    for test_set, sets in entry.tests.items():
        yield from ((test_set, f"eval/{test_set}/{name}-{h8}.parquet") for name, h8 in sets.items())
    yield from ((name, f"choices/{name}-{h8}.parquet") for name, h8 in entry.choices.items())


def trained(entry: ReportRun, run: Path, manifest: RunManifest) -> list[Spent]:
    """Returns what a training took on each device that it ran on; its files were checked before."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    last = ", ".join(filter(None, (manifest.provenance.get(key) for key in ("device", "precision"))))
    rows = entry.training.prompts_per_step * entry.training.samples_per_prompt if entry.training else None
    found: dict[str, Spent] = {}
    before = 0.0
    for line in lines:
        spent = Spent(row_of(entry), "training", line.get("made_on", last), wall_s=line.get("wall_s", before) - before)
        before += spent.wall_s
        if line["step"]:
            spent.steps, spent.busy_s = 1, sum(line[name] for name in TIMES)
            spent.tokens, spent.peak_mb = _tokens(line, rows), line.get("peak_memory_mb")
        found.setdefault(spent.made_on, Spent(spent.row, "training", spent.made_on)).add(spent)
    # What came after the last step, and all of a run that did not record its time by steps.
    end = Spent(row_of(entry), "training", lines[-1].get("made_on", last) if lines else last)
    end.wall_s = manifest.wall_s - before
    found.setdefault(end.made_on, Spent(end.row, "training", end.made_on)).add(end)
    return list(found.values())


def _tokens(line: dict[str, Any], rows: int | None) -> int | None:
    """Returns the tokens of a step, whose line has means over the step's `rows`; None if that is not known."""
    means = [line.get(name) for name in ("cot_tokens", "answer_tokens")]
    return None if rows is None or None in means else round(sum(mean for mean in means if mean is not None) * rows)


class CostLine(NamedTuple):
    """A line of the table; an empty row stands for all of a device."""

    row: Row | None
    kind: str
    made_on: str
    tokens: str
    step_s: str
    tokens_per_s: str
    peak_gb: str
    hours: str


def cost_lines(costs: Costs, rows: Sequence[Row]) -> list[CostLine]:
    """Returns the table: a line for each row of the study, kind of job and device, then one for each device."""
    places: dict[tuple[Row, str, str], Spent] = {}
    for spent in costs.spent:
        key = (spent.row, spent.kind, spent.made_on)
        places.setdefault(key, Spent(*key)).add(spent)
    order = {"training": 0, "evaluation": 1}
    listed = sorted(places.values(), key=lambda spent: (rows.index(spent.row), order[spent.kind], spent.made_on))
    devices = dict.fromkeys(spent.made_on for spent in listed)
    return [
        *(_line(spent, spent.row, spent.kind) for spent in listed),
        *(_total([spent for spent in listed if spent.made_on == place]) for place in devices),
    ]


def _line(spent: Spent, row: Row | None, kind: str) -> CostLine:
    return CostLine(
        row=row,
        kind=kind,
        made_on=spent.made_on,
        tokens=counted(spent.tokens) if spent.tokens else NO_VALUE,
        step_s=f"{spent.busy_s / spent.steps:.3g}" if spent.steps else NO_VALUE,
        tokens_per_s=f"{spent.tokens / spent.busy_s:,.0f}" if spent.tokens and spent.busy_s else NO_VALUE,
        peak_gb=f"{spent.peak_mb * 2**20 / 1e9:.3g}" if spent.peak_mb is not None else NO_VALUE,
        hours=f"{spent.wall_s / 3600:.2f}",
    )


def _total(of_device: Iterable[Spent]) -> CostLine:
    """Returns the line of all that ran on a device: tokens, memory and hours."""
    first, *others = of_device
    total = Spent(first.row, first.kind, first.made_on)
    for spent in (first, *others):
        total.add(spent)
    return _line(total, None, "all")._replace(step_s=NO_VALUE, tokens_per_s=NO_VALUE)


def counted(tokens: int) -> str:
    """Returns a number of tokens in three digits: 950, 12.3 k, 4.56 M, 1.2 G."""
    number, unit = float(tokens), ""
    for larger in ("k", "M", "G", "T"):
        if number < 999.5:
            break
        number, unit = number / 1000, f" {larger}"
    return f"{number:.3g}{unit}"


def caption(costs: Costs) -> str:
    """Returns what the table's numbers are."""
    known = (
        "Tokens are those generated, in thoughts and answers. Seconds and tokens of a step are without validations and"
        " saves; hours are the sum over jobs, with everything, also of jobs that ran side by side. Memory is a GPU's by"
        " its tensors, or a process's on a CPU."
    )
    if not costs.unknown:
        return known
    return f"{known} Not counted: {costs.unknown} of {costs.measured} evaluations, which did not record what they took."


def shown(costs: Costs, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns what costs.html shows."""
    return {"lines": cost_lines(costs, rows), "caption": caption(costs)}
