"""Reads the files of finished runs and reduces them to tidy metrics.

Each evaluation file is read alone, a few columns of it, and reduced to counts per problem before the next is opened:
the paper's grid (48 runs x 3 test sets x 132,000 rows) needs the memory of one file. What is missing or malformed is
a UserError that names the file.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from softtok.config.messages import explain
from softtok.config.specs import ReportRun, RunManifest
from softtok.errors import UserError
from softtok.problems.boxed import last_boxed, normalised
from softtok.problems.prompt import normalise
from softtok.report.metrics import bootstrap_interval, ks, majority, pass_at_k
from softtok.report.study import Row, Study, row_of
from softtok.storage import files as state

# n_samples is samples per problem; for entropy, the generations that are still in their CoT at `index`.
METRIC_COLUMNS = (
    "model", "train_set", "training_mode", "seed", "test_set", "inference_mode", "metric", "k", "index", "value",
    "n_problems", "n_samples",
)  # fmt: skip
WHOLE_NUMBERS = dict.fromkeys(("seed", "k", "index", "n_problems", "n_samples"), "Int64")
MEASURES = ("reward", "cot_tokens", "entropy")  # of every training step
UNJUDGED = ("timeout", "error")  # reward statuses that say nothing about the answer


@dataclass(frozen=True)
class Run:
    row: Row
    seed: int
    manifest: RunManifest

    def __str__(self) -> str:
        return f"{row_text(self.row)}, seed {self.seed}"


class MissingError(UserError):
    """A file that is not there (yet)."""


class Absent(NamedTuple):
    """What a tolerant `collect` left out: a run, or what is known of it on one set (`what`; empty for all)."""

    row: Row
    seed: int
    folder: Path
    what: str
    error: UserError


class Overlap(NamedTuple):
    """Problems of a test set that stand in a train set of runs which were tested on it."""

    test_set: str
    train_set: str
    shared: int
    problems: int


@dataclass(frozen=True)
class Results:
    """What `collect` read."""

    runs: list[Run]
    metrics: pd.DataFrame  # `METRIC_COLUMNS`
    training: pd.DataFrame  # model, train_set, training_mode, seed, step, validation, `MEASURES`
    problem_noise: dict[str, float]  # test set -> points, see `_problem_noise`; the median over runs
    answers: int
    unjudged: int  # answers on which the reward gave up
    made_on: Counter[str]  # device and precision -> files of evaluations and choice sets with rows made on it
    overlaps: list[Overlap]


def collect(study: Study, root: Path, absent: list[Absent] | None = None) -> Results:
    """Reads all runs of a study, whose paths are relative to `root`. Results are in the order of its names.

    What is missing or malformed is a UserError; with a list `absent` it is noted there and left out.
    """
    runs: list[Run] = []
    metrics: list[pd.DataFrame] = []
    training: list[pd.DataFrame] = []
    noise: dict[str, list[float]] = {}
    problems: dict[str, tuple[Path, frozenset[str]]] = {}  # set -> the first file on it and its problems
    statuses: Counter[str] = Counter()
    made_on: Counter[str] = Counter()

    @contextlib.contextmanager
    def noting(entry: ReportRun, what: str) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            if absent is None:
                raise
            absent.append(Absent(row_of(entry), entry.seed, root / entry.path, what, error))

    for entry in study.runs:
        folder, row = root / entry.path, row_of(entry)
        names = {**row._asdict(), "seed": entry.seed}
        history = None
        with noting(entry, ""):
            run = Run(row, entry.seed, _read_manifest(folder / "manifest.json"))
            history = _read_training(folder / "metrics.jsonl").assign(**names)
        if history is None:
            continue
        runs.append(run)
        training.append(history)
        for test_set in filter(entry.tests.__contains__, study.test_sets):
            cells: dict[str, pd.DataFrame] = {}
            profiles: dict[str, pd.DataFrame] = {}
            for inference_set, h8 in entry.tests[test_set].items():
                path = folder / "eval" / test_set / f"{inference_set}-{h8}.parquet"
                with noting(entry, f"{test_set} ({inference_set})"):
                    counted, seen = _read_cells(path, study)
                    for cell in counted.values():
                        _check_problems(problems, f"test set {test_set}", path, cell.index)
                    profiles = _read_entropy(path.with_name(f"{inference_set}-{h8}.entropy.csv")) | profiles
                    cells = (
                        counted | cells
                    )  # a mode that two inference sets share is the same in both: the first counts
                    statuses += seen
                    made_on.update(_made_on(path))
            planned = (mode for name in entry.tests[test_set] for mode in study.spec.inference_sets[name])
            if absent is None and (missing := [mode for mode in planned if mode not in cells]):
                raise UserError(f"{folder / 'eval' / test_set} has no rows of inference mode '{missing[0]}'")
            greedy = study.hard_family().greedy
            if greedy in cells:
                noise.setdefault(test_set, []).append(_problem_noise(cells[greedy], study.samples(greedy)))
            for mode in filter(cells.__contains__, study.inference_modes):
                measured = _mode_metrics(cells[mode], profiles.get(mode), study.samples(mode), study.spec.k)
                metrics.append(measured.assign(**names, test_set=test_set, inference_mode=mode))
        for choice_set in filter(entry.choices.__contains__, study.choice_sets):
            path = folder / "choices" / f"{choice_set}-{entry.choices[choice_set]}.parquet"
            with noting(entry, choice_set):
                choices = _read_columns(path, ["id", "correct", "nll", "tokens"]).to_pandas().sort_values("id")
                _check_problems(problems, f"choice set {choice_set}", path, choices["id"])
                made_on.update(_made_on(path))
                metrics.append(_choice_metrics(choices).assign(**names, test_set=choice_set, inference_mode=""))
    tidy = pd.concat([pd.DataFrame(columns=list(METRIC_COLUMNS), dtype=object), *metrics], ignore_index=True)
    return Results(
        runs=runs,
        metrics=tidy.astype({**WHOLE_NUMBERS, "value": float}),
        training=pd.concat(training, ignore_index=True) if training else pd.DataFrame(),
        problem_noise={test_set: float(np.median(points)) for test_set, points in noise.items()},
        answers=statuses.total(),
        unjudged=sum(statuses[status] for status in UNJUDGED),
        made_on=made_on,
        overlaps=_overlaps(study, root, tolerant=absent is not None),
    )


def _overlaps(study: Study, root: Path, tolerant: bool) -> list[Overlap]:
    """Where test problems were trained on: a train set keeps out those of the test sets that its `exclude:` names, and
    no others. `tolerant` of prepared data sets that are not there.
    """
    questions = {
        (kind, name): {normalise(text) for text in _read_columns(root / path, ["question"])["question"].to_pylist()}
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


def write_metrics(metrics: pd.DataFrame, path: Path) -> None:
    """metrics.csv: values with 6 decimals, what does not apply empty; equal metrics give equal bytes."""
    with state.atomic(path) as temporary:
        metrics.to_csv(temporary, index=False, float_format="%.6f", lineterminator="\n", encoding="utf-8")


def row_text(row: Row) -> str:
    return ", ".join(name for name in row if name != "none")


def _mode_metrics(
    cell: pd.DataFrame, profile: pd.DataFrame | None, samples: int, wanted: Sequence[int] | None
) -> pd.DataFrame:
    """pass@k and majority@k (percent), mean CoT length and entropy of one inference mode; `cell` has one row per
    problem. `wanted` are the study's own k, as far as there are samples; the tables need the first and the last in any
    case.
    """
    shown = sorted({1, samples, *(k for k in wanted if k <= samples)}) if wanted else ks(samples)
    lines: list[tuple[Any, ...]] = [
        ("pass@k", k, None, 100 * pass_at_k(cell["correct"], samples, k).mean(), samples) for k in shown
    ]
    if samples > 1:
        lines.append(("majority@k", samples, None, 100 * cell["majority"].mean(), samples))
    lines.append(("cot_tokens", None, None, cell["cot_tokens"].sum() / (len(cell) * samples), samples))
    if profile is not None:
        lines += [("entropy", None, index, entropy, count) for index, entropy, count in profile.itertuples(index=False)]
    return _tidy(lines, len(cell))


def _choice_metrics(choices: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (percent), and nats per token of the right answers: every token counts, however long its answer."""
    per_token = choices["nll"].sum(skipna=False) / choices["tokens"].sum()
    accuracy = 100 * choices["correct"].mean()
    return _tidy([("accuracy", None, None, accuracy, 1), ("nll_per_token", None, None, per_token, 1)], len(choices))


def _tidy(lines: Sequence[tuple[Any, ...]], problems: int) -> pd.DataFrame:
    columns = ["metric", "k", "index", "value", "n_samples"]
    return pd.DataFrame(lines, columns=columns, dtype=object).assign(n_problems=problems)


def _problem_noise(cell: pd.DataFrame, samples: int) -> float:
    """Points by which another draw of as many problems may move this run's pass@1: half its 95 % bootstrap interval."""
    low, high = bootstrap_interval(100 * pass_at_k(cell["correct"], samples, 1))
    return (high - low) / 2


def _missing(path: Path) -> MissingError:
    return MissingError(f"{path} is missing: it is not finished yet, or was removed; run snakemake to make it")


def _bad(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; remove it and run snakemake to make it again")


def _check_problems(known: dict[str, tuple[Path, frozenset[str]]], name: str, path: Path, ids: Iterable[str]) -> None:
    """Runs can only be compared on the same problems, each of them once."""
    listed = list(ids)
    first, expected = known.setdefault(name, (path, frozenset(listed)))
    if len(listed) != len(expected) or frozenset(listed) != expected:
        raise _bad(path, f"does not have the problems of {name} (compare {first})")


def _read_manifest(path: Path) -> RunManifest:
    try:
        return RunManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise _missing(path) from None
    except ValidationError as error:
        raise _bad(path, f"is not a run's manifest ({explain(error, RunManifest, '')})") from None


def _read_training(path: Path) -> pd.DataFrame:
    """metrics.jsonl: step, validation, `MEASURES`; empty for a base run."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _missing(path) from None
    lines = []
    for number, line in enumerate(text.rstrip("\n").split("\n") if text else [], start=1):
        try:
            record = json.loads(line)
            found = {name: record[name] for name in MEASURES} if record["step"] else {}  # the base is only validated
            lines.append({"step": record["step"], "validation": record.get("validation"), **found})
        except (ValueError, TypeError, KeyError) as error:
            raise _bad(path, f"has no training step in line {number} ({error!r})") from None
    frame = pd.DataFrame(lines, columns=["step", "validation", *MEASURES]).astype(float)
    return frame.replace([np.inf, -np.inf], np.nan)  # the last steps of a run that diverged: gaps in its curves


def _read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Those columns of a parquet file, without gaps, with at least one row."""
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise _bad(path, f"has no column '{missing[0]}'")
            table = file.read(columns=list(columns))
    except FileNotFoundError:
        raise _missing(path) from None
    except (pa.ArrowException, OSError) as error:
        raise _bad(path, f"is not a readable parquet file ({str(error).splitlines()[0]})") from None
    if gaps := [name for name in columns if table[name].null_count]:
        raise _bad(path, f"has empty values in column '{gaps[0]}'")
    if not table.num_rows:
        raise _bad(path, "has no rows")
    return table


def _made_on(path: Path) -> set[str]:
    """Returns the devices and precisions that the rows of a file were made with."""
    return set(_read_columns(path, ["made_on"])["made_on"].unique().to_pylist())


def _read_cells(path: Path, study: Study) -> tuple[dict[str, pd.DataFrame], Counter[str]]:
    """An evaluation file as counts: inference mode -> one row per problem_id with correct and cot_tokens summed over
    its samples, and in sample modes the chance that their majority is right; and how often each reward status
    occurs.
    """
    table = _read_columns(
        path, ["inference_mode", "problem_id", "sample", "correct", "boxed", "status", "answer", "cot_tokens"]
    )
    counts = (
        table.group_by(["inference_mode", "problem_id"])
        .aggregate([("correct", "sum"), ("cot_tokens", "sum"), ("sample", "count"), ("sample", "count_distinct")])
        .rename_columns({"correct_sum": "correct", "cot_tokens_sum": "cot_tokens"})
        .to_pandas()
    )
    cells = {}
    for name, cell in counts.groupby("inference_mode"):
        mode = str(name)
        if mode not in study.inference_modes:
            raise _bad(path, f"has rows of an unknown inference mode '{mode}'")
        samples = study.samples(mode)
        wrong = cell[(cell["sample_count"] != samples) | (cell["sample_count_distinct"] != samples)]
        if len(wrong):
            problem, found, distinct = wrong.iloc[0][["problem_id", "sample_count", "sample_count_distinct"]]
            raise _bad(path, f"has {found} rows ({distinct} samples) of problem '{problem}' in {mode}, not {samples}")
        # Groups come in any order (threads); sums of floats must not depend on it.
        cells[mode] = cell.set_index("problem_id")[["correct", "cot_tokens"]].sort_index()
    for mode, cell in cells.items():
        if study.samples(mode) > 1:
            samples = table.filter(pc.equal(table["inference_mode"], mode))
            cells[mode] = cell.assign(majority=_majority(samples, cell.index))
    occurring = pc.value_counts(table["status"]).to_pylist()
    return cells, Counter({entry["values"]: entry["counts"] for entry in occurring})


def _majority(samples: pa.Table, problems: pd.Index) -> np.ndarray:
    """`metrics.majority` of each problem; a sample votes for its box's normalised text."""
    answers = pc.dictionary_encode(samples["answer"]).combine_chunks()
    boxes = [last_boxed(text) for text in answers.dictionary.to_pylist()]
    texts: dict[str | None, int] = {None: -1}
    votes = np.array([texts.setdefault(normalised(box) if box else None, len(texts) - 1) for box in boxes])
    voted = np.where(samples["boxed"].to_numpy(), votes[answers.indices.to_numpy()], -1)
    places = problems.get_indexer(samples["problem_id"].to_pandas())
    return majority(places, voted, samples["correct"].to_numpy(), len(problems))


def _read_entropy(path: Path) -> dict[str, pd.DataFrame]:
    """inference mode -> index, entropy (nats), count; sorted by index."""
    try:
        frame = pd.read_csv(path)[["inference_mode", "index", "entropy", "count"]]
    except FileNotFoundError:
        raise _missing(path) from None
    except (ValueError, KeyError) as error:  # pandas' parser errors are ValueErrors
        raise _bad(path, f"is not an entropy profile ({str(error.args[0]).splitlines()[0]})") from None
    if frame.duplicated(["inference_mode", "index"]).any():
        raise _bad(path, "has an index twice in one inference mode")
    return {
        str(mode): profile.sort_values("index")[["index", "entropy", "count"]]
        for mode, profile in frame.groupby("inference_mode")
    }
