"""Answers and thoughts inside the report: what `report.html` carries of samples, within a number of bytes.

A part is one run on one test set, packed (gzip, base64) so that the page unpacks only what is looked at. All runs and
modes show the same problems: first those with recorded thoughts, then others in an order that their ids alone decide.
What does not fit is left out, and the page says how much: further problems first, then samples behind the eighth, then
later seeds.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from softtok.config.specs import ReportRun
from softtok.errors import UserError
from softtok.report.run_files import read_columns
from softtok.report.study import Study, row_of
from softtok.report.thoughts import read_thoughts
from softtok.storage import files

OF_RUN, MOST = 600_000, 20_000_000  # bytes of a page: for each run of a study, and in all
FEWEST, MOST_PROBLEMS, FEW_SAMPLES = 4, 100, 8
COLUMNS = (
    *("inference_mode", "problem_id", "sample", "correct", "boxed", "status"),
    *("answer", "cot", "cot_tokens", "stop"),
)
THOUGHTS = ("inference_mode", "problem_id", "sample", "step", "token", "entropy", "moved", "tokens", "weights")
MOST_STEPS = 120_000  # of thinking on a page; with more, only the first samples and then the first seeds are shown


@dataclass
class Viewer:
    """What the page carries: an index, which says what there is, and packed parts by name."""

    index: dict[str, Any]
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(map(len, self.parts.values()))

    @property
    def index_json(self) -> str:
        """The index as text that can stand in a script element."""
        return json.dumps(self.index, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def make_viewer(study: Study, root: Path, budget: int | None = None) -> Viewer | None:
    """Returns the viewer of a study's samples, or None if there are none; what cannot be read is left out."""
    limit = budget or min(MOST, OF_RUN * len(study.runs))
    runs = [_run_name(run) for run in study.runs]
    soft = [name for name, mode in study.inference_modes.items() if mode.tokens == "soft"]
    viewer = Viewer({"runs": runs, "sets": {}, "modes": list(study.inference_modes), "soft": soft})
    thinking = _thinned(study, root)
    for test_set in study.test_sets:
        tested = [run for run in study.runs if test_set in run.tests]
        shown = _Shown.plan(study, root, test_set, tested, limit // len(study.test_sets))
        if shown is not None:
            viewer.index["sets"][test_set] = _add_set(viewer, shown, thinking)
    return viewer if viewer.parts else None


def _run_name(run: ReportRun) -> dict[str, Any]:
    row = row_of(run)
    return {"model": row.model, "train": row.train_set, "mode": row.training_mode, "seed": run.seed, "path": run.path}


@dataclass(frozen=True)
class _Shown:
    """Which runs, problems and samples of a test set are shown."""

    study: Study
    root: Path
    test_set: str
    runs: Sequence[ReportRun]
    tested: int  # runs in all
    problems: list[str]
    total: int
    samples: int  # of each problem at most

    @classmethod
    def plan(cls, study: Study, root: Path, test_set: str, runs: Sequence[ReportRun], limit: int) -> _Shown | None:
        """Returns what fits into `limit` bytes, by the size of the first run's samples; None if no run has any."""
        for run in runs:
            rows = read_samples(study, root, run, test_set)
            if rows is not None:
                break
        else:
            return None
        thought_of = next(filter(None, (_thought_of(root, one, test_set) for one in runs)), [])
        order = _order(rows["problem_id"].unique(), thought_of)
        whole = cls(study, root, test_set, runs, len(runs), order[:MOST_PROBLEMS], len(order), 10**6)
        fewer = replace(whole, samples=FEW_SAMPLES)
        each = limit / len(runs)
        chosen = whole if whole._first(2 * FEWEST)._size(rows) <= each else fewer
        while (size := chosen._size(rows)) > each and len(chosen.problems) > FEWEST:
            count = min(len(chosen.problems) - 1, int(len(chosen.problems) * each / size))
            chosen = chosen._first(max(FEWEST, count))
        return replace(chosen, runs=sorted(runs, key=lambda run: run.seed)[: max(1, int(limit / size))])

    def _first(self, count: int) -> _Shown:
        return replace(self, problems=self.problems[:count])

    def _size(self, rows: pd.DataFrame) -> int:
        return len(pack(self.content(rows)))

    def content(self, rows: pd.DataFrame) -> dict[str, list[list[list[Any]]]]:
        """Returns the samples by inference mode and problem: [correct, status, stop, tokens, CoT, answer] each."""
        places = {problem: place for place, problem in enumerate(self.problems)}
        kept = rows[rows["problem_id"].isin(places) & (rows["sample"] < self.samples)]
        found: dict[str, list[list[list[Any]]]] = {}
        for mode, problem, *sample in kept[
            ["inference_mode", "problem_id", "correct", "status", "stop", "cot_tokens", "cot", "answer"]
        ].itertuples(index=False, name=None):
            of_mode = found.setdefault(mode, [[] for _ in self.problems])
            of_mode[places[problem]].append([int(sample[0]), *sample[1:]])
        return found


def _order(problems: Iterable[str], first: Sequence[str]) -> list[str]:
    """Returns problems in the order in which they are shown, those in `first` before all others."""
    rest = sorted(set(problems) - set(first), key=lambda name: hashlib.sha256(name.encode()).digest())
    return [*first, *rest]


def _add_set(viewer: Viewer, shown: _Shown, thinking: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Adds the parts of a test set; returns its entry of the index."""
    solved: dict[str, dict[int, list[int]]] = {}  # inference mode -> run -> right samples of each problem, of all drawn
    order = {run.path: place for place, run in enumerate(shown.study.runs)}
    for run in shown.runs:
        rows = read_samples(shown.study, shown.root, run, shown.test_set)
        if rows is None:
            continue
        place = order[run.path]
        viewer.parts[f"samples-{place}-{shown.test_set}"] = pack(shown.content(rows))
        right = rows.groupby(["inference_mode", "problem_id"], sort=False)["correct"].sum()
        for mode in rows["inference_mode"].unique():
            of_mode = right[mode]
            solved.setdefault(mode, {})[place] = [int(of_mode.get(name, 0)) for name in shown.problems]
        if thoughts := _thoughts(shown, run, thinking.get(run.path, (0, 0))):
            viewer.parts[f"thoughts-{place}-{shown.test_set}"] = pack(thoughts)
    asked = questions(shown.root / shown.study.spec.data.get("test", {}).get(shown.test_set, ""))
    problems = [[name, *asked.get(name, ("", ""))] for name in shown.problems]
    drawn = {mode: shown.study.samples(mode, shown.test_set) for mode in solved}
    return {
        "problems": problems,
        "total": shown.total,
        "runs": len(shown.runs),
        "tested": shown.tested,
        "drawn": drawn,
        "shown": {mode: min(shown.samples, count) for mode, count in drawn.items()},
        "solved": solved,
    }


def read_samples(study: Study, root: Path, run: ReportRun, test_set: str) -> pd.DataFrame | None:
    """Returns the samples of a run on a test set, in the order of inference mode, problem and sample; None if none."""
    found: list[pd.DataFrame] = []
    for path in _sample_files(root, run, test_set):
        try:
            found.append(read_columns(path, COLUMNS).to_pandas())
        except UserError:  # what is missing or damaged is told of by the report's numbers
            continue
    if not found:
        return None
    rows = pd.concat(found).drop_duplicates(["inference_mode", "problem_id", "sample"])
    place = {mode: number for number, mode in enumerate(study.inference_modes)}
    placed: pd.DataFrame = rows.assign(place=rows["inference_mode"].map(place))
    return placed.sort_values(["place", "problem_id", "sample"])


def _sample_files(root: Path, run: ReportRun, test_set: str) -> Iterator[Path]:
    for name, h8 in run.tests.get(test_set, {}).items():
        yield root / run.path / "eval" / test_set / f"{name}-{h8}.parquet"


def thoughts_of(root: Path, run: ReportRun, test_set: str, columns: Sequence[str] = THOUGHTS) -> pd.DataFrame | None:
    """Returns the recorded steps of thinking of a run on a test set; None if none were recorded."""
    found: list[pd.DataFrame] = []
    for path in _sample_files(root, run, test_set):
        with contextlib.suppress(UserError):  # samples are shown without thoughts that are damaged
            if (frame := read_thoughts(path, columns)) is not None:
                found.append(frame)
    return pd.concat(found) if found else None


def _thought_of(root: Path, run: ReportRun, test_set: str) -> list[str]:
    """Returns the problems of which thoughts were recorded; they are the same in all runs."""
    thoughts = thoughts_of(root, run, test_set, ["problem_id"])
    return [] if thoughts is None else [str(name) for name in thoughts["problem_id"].unique()]


def _thinned(study: Study, root: Path) -> dict[str, tuple[int, int]]:
    """Returns of each run how many samples' thoughts are shown, and whether any: path -> (samples, seeds shown)."""
    steps: dict[tuple[bool, bool], int] = {}  # (first sample, first seed) -> steps
    seeds: dict[tuple[str, ...], int] = {}
    for run in study.runs:
        first_seed = seeds.setdefault(row_of(run), run.seed) == run.seed
        for test_set in run.tests:
            thoughts = thoughts_of(root, run, test_set, ["sample"])
            for first, count in ({} if thoughts is None else (thoughts["sample"] == 0).value_counts()).items():
                key = (bool(first), first_seed)
                steps[key] = steps.get(key, 0) + int(count)
    firsts = sum(count for (first, _), count in steps.items() if first)
    samples = 10**6 if sum(steps.values()) <= MOST_STEPS else 1
    every = samples > 1 or firsts <= MOST_STEPS
    return {run.path: (samples, int(every or seeds[row_of(run)] == run.seed)) for run in study.runs}


def _thoughts(shown: _Shown, run: ReportRun, limits: tuple[int, int]) -> dict[str, Any]:
    """Returns steps by inference mode, problem and sample: [token, entropy, moved, heaviest tokens, weights] each."""
    samples, wanted = limits
    thoughts = thoughts_of(shown.root, run, shown.test_set) if wanted else None
    if thoughts is None:
        return {}
    places = {problem: place for place, problem in enumerate(shown.problems)}
    kept = thoughts[thoughts["problem_id"].isin(places) & (thoughts["sample"] < samples)]
    found: dict[str, dict[int, dict[int, list[list[Any]]]]] = {}
    for mode, problem, sample, token, entropy, moved, tokens, weights in kept[
        [name for name in THOUGHTS if name != "step"]
    ].itertuples(index=False, name=None):
        of_problem = found.setdefault(mode, {}).setdefault(places[problem], {})
        mixture = [list(tokens), [round(float(weight), 3) for weight in weights]]
        step = [token, round(float(entropy), 2), round(float(moved), 2), *mixture]
        of_problem.setdefault(int(sample), []).append(step)
    return found


def questions(path: Path) -> dict[str, tuple[str, str]]:
    """Returns question and gold of each problem of a prepared test set; nothing where they are not, as in records."""
    if not path.is_file():
        return {}
    with files.open_table(path) as file:
        if {"id", "question", "gold"} - set(file.schema_arrow.names):
            return {}
        rows = file.read(columns=["id", "question", "gold"]).to_pylist()
    return {row["id"]: (row["question"], " or ".join(row["gold"] or [])) for row in rows}


def pack(content: Any) -> str:
    """Returns a value as JSON, packed; equal values give equal text."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
