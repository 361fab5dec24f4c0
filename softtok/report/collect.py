"""Reduces the files of finished runs (`run_files.py`) to tidy metrics.

Each evaluation file is reduced to counts per problem before the next one is opened. So the paper's grid (48 runs x 3
test sets x 132,000 rows) needs the memory of one file.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from softtok.config.manifests import RunManifest
from softtok.config.specs import ReportRun
from softtok.errors import UserError
from softtok.problems.prompt import normalise
from softtok.problems.verdict import UNJUDGED
from softtok.report.answers import shares
from softtok.report.costs import Costs, add_run
from softtok.report.metrics import bootstrap_interval, ks, pass_at_k
from softtok.report.run_files import (
    CELL_COLUMNS,
    CHOICE_COLUMNS,
    MEASURES,
    bad,
    cells_of,
    disagreements,
    made_on,
    read_columns,
    read_entropy,
    read_manifest,
    read_training,
    statuses,
    without,
)
from softtok.report.study import Row, Study, row_of
from softtok.storage import files
from softtok.storage.files import atomic

# `n_samples` is samples per problem; for entropy, the generations that are still in their CoT at `index`.
METRIC_COLUMNS = (
    *("model", "train_set", "training_mode", "seed", "test_set", "inference_mode"),
    *("metric", "k", "index", "value", "n_problems", "n_samples"),
)
WHOLE_NUMBERS = dict.fromkeys(("seed", "k", "index", "n_problems", "n_samples"), "Int64")
NO_TRAINING = ("model", "train_set", "training_mode", "seed", "step", "validation", *MEASURES)
TOLD_FROM = 0.05  # the share of flagged problems from which a report names a set


@dataclass(frozen=True)
class Run:
    row: Row
    seed: int
    manifest: RunManifest

    def __str__(self) -> str:
        return f"{row_text(self.row)}, seed {self.seed}"


class Absent(NamedTuple):
    """What a tolerant `collect` left out: a whole run, or its results on one set (`what`; empty for all)."""

    row: Row
    seed: int
    folder: Path
    what: str
    error: UserError


class Overlap(NamedTuple):
    """Problems of a test set that are also in a train set of runs that were tested on it."""

    test_set: str
    train_set: str
    shared: int
    problems: int


@dataclass(frozen=True)
class Results:
    """The results of a study."""

    runs: list[Run]
    metrics: pd.DataFrame  # `METRIC_COLUMNS`
    training: pd.DataFrame  # model, train_set, training_mode, seed, step, validation, `MEASURES`
    problem_noise: dict[str, float]  # test set -> points (`_problem_noise`), the median over runs
    answers: int
    unjudged: int  # answers on which the reward gave up
    disagreements: dict[str, Counter[str]]  # test set -> `run_files.disagreements`, and "answers": how many there are
    made_on: Counter[str]  # device and precision -> number of evaluation and choice files with rows made on it
    overlaps: list[Overlap]
    flagged: dict[str, str]  # train or test set of which many problems are flagged -> how many, and why
    costs: Costs


def collect(study: Study, root: Path, absent: list[Absent] | None = None) -> Results:
    """Reads all runs of a study, whose paths are relative to `root`. Results are in the order of its names.

    A missing or malformed file is a UserError; if there is a list `absent`, it is noted there and left out.
    """
    reader = _Reader(study, root, absent)
    for entry in study.runs:
        reader.read_run(entry)
    return reader.results()


class _Reader:
    """What `collect` has read so far."""

    def __init__(self, study: Study, root: Path, absent: list[Absent] | None) -> None:
        self.study, self.root, self.absent = study, root, absent
        self.runs: list[Run] = []
        self.metrics: list[tuple[Any, ...]] = []  # rows of `METRIC_COLUMNS`
        self.training: list[pd.DataFrame] = []
        self.noise: dict[str, list[float]] = {}
        self.problems: dict[str, tuple[Path, frozenset[str]]] = {}  # set -> the first file on it and its problems
        self.statuses: Counter[str] = Counter()
        self.disagreements: dict[str, Counter[str]] = {}
        self.made_on: Counter[str] = Counter()
        self.costs = Costs()

    @contextlib.contextmanager
    def _noting(self, entry: ReportRun, what: str) -> Iterator[None]:
        """Notes a UserError of the block as absent, if that is wanted."""
        try:
            yield
        except UserError as error:
            if self.absent is None:
                raise
            self.absent.append(Absent(row_of(entry), entry.seed, self.root / entry.path, what, error))

    def read_run(self, entry: ReportRun) -> None:
        folder, row = self.root / entry.path, row_of(entry)
        names = {**row._asdict(), "seed": entry.seed}
        history = None
        with self._noting(entry, ""):
            run = Run(row, entry.seed, read_manifest(folder / "manifest.json"))
            history = read_training(folder / "metrics.jsonl", run.manifest.metrics_sha256).assign(**names)
        if history is None:
            return
        self.runs.append(run)
        self.training.append(history)
        add_run(self.costs, entry, folder, run.manifest)
        for test_set in filter(entry.tests.__contains__, self.study.test_sets):
            for mode, measured in self._read_tests(entry, test_set):
                self.metrics += [(*names.values(), test_set, mode, *line) for line in measured]
        for choice_set in filter(entry.choices.__contains__, self.study.choice_sets):
            path = folder / "choices" / f"{choice_set}-{entry.choices[choice_set]}.parquet"
            with self._noting(entry, choice_set):
                table = read_columns(path, CHOICE_COLUMNS)
                choices = table.to_pandas().sort_values("id")
                _check_problems(self.problems, f"choice set {choice_set}", path, choices["id"])
                self.made_on.update(made_on(table))
                self.metrics += [(*names.values(), choice_set, "", *line) for line in _choice_metrics(choices)]

    def _read_tests(self, entry: ReportRun, test_set: str) -> Iterator[tuple[str, list[Measured]]]:
        """Yields each inference mode of a run on one test set, with its metrics."""
        study, folder = self.study, self.root / entry.path / "eval" / test_set
        cells: dict[str, pd.DataFrame] = {}
        profiles: dict[str, pd.DataFrame] = {}
        ends: dict[str, dict[str, float]] = {}
        for inference_set, h8 in entry.tests[test_set].items():
            path = folder / f"{inference_set}-{h8}.parquet"
            with self._noting(entry, f"{test_set} ({inference_set})"):
                table = read_columns(path, CELL_COLUMNS)
                counted = cells_of(table, path, study, test_set)
                for cell in counted.values():
                    _check_problems(self.problems, f"test set {test_set}", path, cell.index)
                profiles = read_entropy(path.with_suffix(".entropy.csv"), table) | profiles
                ends = shares(table) | ends
                # A mode of two inference sets is the same in both; the first one counts.
                further = without(table, list(cells))
                cells = counted | cells
                self.statuses += statuses(further)
                differing = disagreements(further) + Counter(answers=further.num_rows)
                self.disagreements[test_set] = self.disagreements.get(test_set, Counter()) + differing
                self.made_on.update(made_on(table))
        planned = (mode for name in entry.tests[test_set] for mode in study.spec.inference_sets[name])
        if self.absent is None and (lacking := [mode for mode in planned if mode not in cells]):
            raise UserError(f"{folder} has no rows of inference mode '{lacking[0]}'")
        greedy = study.hard_family().greedy
        if greedy in cells:
            self.noise.setdefault(test_set, []).append(_problem_noise(cells[greedy], study.samples(greedy, test_set)))
        for mode in filter(cells.__contains__, study.inference_modes):
            samples, problems = study.samples(mode, test_set), len(cells[mode])
            of_ends = [Measured(name, None, None, share, problems, samples) for name, share in ends[mode].items()]
            yield mode, _mode_metrics(cells[mode], profiles.get(mode), samples, study.spec.k) + of_ends

    def results(self) -> Results:
        tidy = pd.DataFrame(self.metrics, columns=list(METRIC_COLUMNS), dtype=object)
        return Results(
            runs=self.runs,
            metrics=tidy.astype({**WHOLE_NUMBERS, "value": float}),
            training=pd.concat(self.training, ignore_index=True)
            if self.training
            else pd.DataFrame(columns=NO_TRAINING),
            problem_noise={test_set: float(np.median(points)) for test_set, points in self.noise.items()},
            answers=self.statuses.total(),
            unjudged=sum(self.statuses[status] for status in UNJUDGED),
            disagreements=self.disagreements,
            made_on=self.made_on,
            overlaps=_overlaps(self.study, self.root, tolerant=self.absent is not None),
            flagged=_flagged(self.study, self.root),
            costs=self.costs,
        )


def _overlaps(study: Study, root: Path, tolerant: bool) -> list[Overlap]:
    """Returns the test problems that were trained on.

    A train set excludes only problems of the test sets that its `exclude:` names. If `tolerant`, prepared data sets may
    be missing.
    """
    questions = {
        (kind, name): {normalise(text) for text in read_columns(root / path, ["question"])["question"].to_pylist()}
        for kind, paths in study.spec.data.items()
        for name, path in paths.items()
        if not tolerant or (root / path).exists()
    }
    pairs = ((test_set, run.train_set) for run in study.spec.runs for test_set in run.tests)
    found = []
    for test_set, train_set in dict.fromkeys(pairs):
        tested = questions.get(("test", test_set), set())
        if shared := len(tested & questions.get(("train", train_set), set())):
            found.append(Overlap(test_set, train_set, shared, len(tested)))
    return found


def _flagged(study: Study, root: Path) -> dict[str, str]:
    """Returns the train and test sets with a share of over `TOLD_FROM` of problems that were flagged in preparation."""
    found = {}
    for kind, paths in study.spec.data.items():
        for name, path in paths.items():
            manifest = (root / path).with_suffix(".json")
            if not manifest.exists():
                continue
            try:
                made = files.read_manifest(manifest, remove=manifest)
                flagged, problems = len(made["flagged"]), int(made["rows"])
                kinds = ", ".join(f"{what} {count:,}" for what, count in made["reasons"]["flagged"].items())
            except (ValueError, KeyError, TypeError, AttributeError):
                raise bad(manifest, "is damaged") from None
            if flagged > TOLD_FROM * problems:
                found[f"{kind} set {name}"] = f"{flagged:,} of {problems:,} problems ({kinds})"
    return found


def write_metrics(metrics: pd.DataFrame, path: Path) -> None:
    """Writes metrics.csv with 6 decimals and empty cells for what does not apply; equal metrics give equal bytes."""
    with atomic(path) as temporary:
        metrics.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n", encoding="utf-8")


def row_text(row: Row) -> str:
    return ", ".join(name for name in row if name != "none")


class Measured(NamedTuple):
    """The last columns of a row of metrics; `position` is its `index`."""

    metric: str
    k: int | None
    position: int | None
    value: float
    n_problems: int
    n_samples: int


def _mode_metrics(
    cell: pd.DataFrame, profile: pd.DataFrame | None, samples: int, wanted: Sequence[int] | None
) -> list[Measured]:
    """Returns pass@k and majority@k (percent), mean CoT length and entropy of one inference mode.

    `cell` has one row per problem. `wanted` lists the study's own k; those above the number of samples are left out.
    k = 1 and the number of samples are always included, because the tables need them.
    """
    problems = len(cell)
    shown = sorted({1, samples, *(k for k in wanted if k <= samples)}) if wanted else ks(samples)
    found = [
        Measured("pass@k", k, None, 100 * pass_at_k(cell["correct"], samples, k).mean(), problems, samples)
        for k in shown
    ]
    if samples > 1:
        found.append(Measured("majority@k", samples, None, 100 * cell["majority"].mean(), problems, samples))
    tokens = cell["cot_tokens"].sum() / (problems * samples)
    found.append(Measured("cot_tokens", None, None, tokens, problems, samples))
    if profile is not None:
        found += [
            Measured("entropy", None, position, entropy, problems, count)
            for position, entropy, count in profile.itertuples(index=False)
        ]
    return found


def _choice_metrics(choices: pd.DataFrame) -> list[Measured]:
    """Returns accuracy (percent), and nats per token over the tokens of all right answers."""
    per_token = choices["nll"].sum(skipna=False) / choices["tokens"].sum()
    accuracy = 100 * choices["correct"].mean()
    measured = {"accuracy": accuracy, "nll_per_token": per_token}
    return [Measured(metric, None, None, value, len(choices), 1) for metric, value in measured.items()]


def _problem_noise(cell: pd.DataFrame, samples: int) -> float:
    """Returns half the 95 % bootstrap interval of a run's pass@1 over problems, in points."""
    low, high = bootstrap_interval(100 * pass_at_k(cell["correct"], samples, 1))
    return (high - low) / 2


def _check_problems(known: dict[str, tuple[Path, frozenset[str]]], name: str, path: Path, ids: Iterable[str]) -> None:
    """Raises UserError unless a file has the problems of the first file on the same set, each of them once."""
    listed = list(ids)
    first, expected = known.setdefault(name, (path, frozenset(listed)))
    if len(listed) != len(expected) or frozenset(listed) != expected:
        raise bad(path, f"does not have the problems of {name} (compare {first})")
