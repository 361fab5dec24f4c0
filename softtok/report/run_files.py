"""Reads the files of one run, a few columns at a time; a missing or malformed file is a UserError that names it."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from softtok.config.manifests import RunManifest
from softtok.config.messages import explain
from softtok.errors import UserError
from softtok.problems.boxed import last_boxed, normalised
from softtok.problems.verdict import UNJUDGED
from softtok.report.metrics import majority
from softtok.report.study import Study
from softtok.storage import files
from softtok.storage.files import ENTROPY_KEY

CELL_COLUMNS = (
    *("inference_mode", "problem_id", "sample", "correct", "boxed", "status", "other_status", "answer", "cot_tokens"),
    *("stop", "made_on"),
)
"""What a report reads of an evaluation's rows, once for all: opening a file costs a pass over it for its checksum."""
CHOICE_COLUMNS = ("id", "correct", "nll", "tokens", "made_on")
MEASURES = ("reward", "unjudged", "cot_tokens", "entropy")  # of every training step
TIMES = ("rollout_s", "reward_s", "update_s")  # of every training step


class MissingError(UserError):
    """A file does not exist (yet)."""


def missing(path: Path) -> MissingError:
    return MissingError(f"{path} is missing: it is not finished yet, or was removed; run snakemake to make it")


def bad(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; remove it and run snakemake to make it again")


def read_manifest(path: Path) -> RunManifest:
    if not path.exists():
        raise missing(path)
    try:
        return RunManifest.model_validate_json(json.dumps(files.read_manifest(path, remove=path)))
    except ValidationError as error:
        raise bad(path, f"is not a run's manifest ({explain(error, RunManifest, '')})") from None


def read_checked(path: Path, sha256: str | None) -> str:
    """Returns a text, which must have this hash; None stands for one of an earlier version, whose hash is unknown."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise missing(path) from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise bad(path, "is damaged: it is not what was written")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad(path, f"is no text ({error})") from None


def read_training(path: Path, sha256: str | None = None) -> pd.DataFrame:
    """Returns step, validation, `MEASURES` and seconds from metrics.jsonl; empty for a base run.

    The seconds are those of all steps up to this one, without validations and saves.
    """
    text = read_checked(path, sha256)
    lines, seconds = [], 0.0
    for number, line in enumerate(text.rstrip("\n").split("\n") if text else [], start=1):
        try:
            record = json.loads(line)
            found = (
                {name: record[name] for name in MEASURES} if record["step"] else {}
            )  # step 0 is the base, which is only validated
            seconds += sum(record[name] for name in TIMES) if record["step"] else 0.0
            lines.append({"step": record["step"], "validation": record.get("validation"), "seconds": seconds, **found})
        except (ValueError, TypeError, KeyError) as error:
            raise bad(path, f"has no training step in line {number} ({error!r})") from None
    frame = pd.DataFrame(lines, columns=["step", "validation", *MEASURES, "seconds"]).astype(float)
    # A run that diverged ends with gaps in its curves; a step on which the reward gave up has no reward.
    return frame.replace([np.inf, -np.inf], np.nan)


def read_columns(path: Path, columns: Sequence[str], empty: bool = False) -> pa.Table:
    """Returns columns of a parquet file, which must have no empty values, and rows unless it may be `empty`."""
    try:
        with files.open_table(path) as file:
            if lacking := [name for name in columns if name not in file.schema_arrow.names]:
                raise bad(path, f"has no column '{lacking[0]}'")
            table = file.read(columns=list(columns)).replace_schema_metadata(file.metadata.metadata)
    except FileNotFoundError:
        raise missing(path) from None
    except (pa.ArrowException, OSError) as error:
        raise bad(path, f"is not a readable parquet file ({str(error).splitlines()[0]})") from None
    if gaps := [name for name in columns if table[name].null_count]:
        raise bad(path, f"has empty values in column '{gaps[0]}'")
    if not table.num_rows and not empty:
        raise bad(path, "has no rows")
    return table


def made_on(table: pa.Table) -> set[str]:
    """Returns the devices and precisions that the rows of a file were made with."""
    return set(table["made_on"].unique().to_pylist())


def disagreements(table: pa.Table) -> Counter[str]:
    """Returns on how many answers `math` and `math-strict` differ: accepted by the set's reward ("own") or the other.

    Answers on which one of them gave up are not among them.
    """
    names = ["correct", "status", "other_status"]
    groups = table.group_by(names).aggregate([([], "count_all")]).to_pylist()
    seen: Counter[str] = Counter()
    for group in groups:
        if group["other_status"] and not {group["status"], group["other_status"]} & set(UNJUDGED):
            seen["own" if group["correct"] else "other"] += group["count_all"]
    return seen


def statuses(table: pa.Table) -> Counter[str]:
    """Returns how often each status of the reward occurs."""
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(table["status"]).to_pylist()})


def without(table: pa.Table, modes: Collection[str]) -> pa.Table:
    """Returns the rows of other inference modes than these."""
    return table.filter(pc.invert(pc.is_in(table["inference_mode"], pa.array(modes, pa.string())))) if modes else table


def cells_of(table: pa.Table, path: Path, study: Study, test_set: str) -> dict[str, pd.DataFrame]:
    """Returns the counts of an evaluation's rows, by inference mode.

    Counts have one row per problem_id: `correct` and `cot_tokens` summed over its samples, and, if there are several,
    the chance that their majority is right.
    """
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
            raise bad(path, f"has rows of an unknown inference mode '{mode}'")
        samples = study.samples(mode, test_set)
        wrong = cell[(cell["sample_count"] != samples) | (cell["sample_count_distinct"] != samples)]
        if len(wrong):
            problem, found, distinct = wrong.iloc[0][["problem_id", "sample_count", "sample_count_distinct"]]
            raise bad(path, f"has {found} rows ({distinct} samples) of problem '{problem}' in {mode}, not {samples}")
        # Groups come in any order (threads), and sums of floats must not depend on it.
        cells[mode] = cell.set_index("problem_id")[["correct", "cot_tokens"]].sort_index()
    for mode, cell in cells.items():
        if study.samples(mode, test_set) > 1:
            samples = table.filter(pc.equal(table["inference_mode"], mode))
            cells[mode] = cell.assign(majority=_majority(samples, cell.index))
    return cells


def _majority(samples: pa.Table, problems: pd.Index) -> np.ndarray:
    """Returns `metrics.majority` of each problem; a sample votes for the normalised text of its box."""
    answers = pc.dictionary_encode(samples["answer"]).combine_chunks()
    boxes = [last_boxed(text) for text in answers.dictionary.to_pylist()]
    texts: dict[str | None, int] = {None: -1}
    votes = np.array([texts.setdefault(normalised(box) if box else None, len(texts) - 1) for box in boxes])
    voted = np.where(samples["boxed"].to_numpy(), votes[answers.indices.to_numpy()], -1)
    places = problems.get_indexer(samples["problem_id"].to_pandas())
    return majority(places, voted, samples["correct"].to_numpy(), len(problems))


def read_entropy(path: Path, rows: pa.Table) -> dict[str, pd.DataFrame]:
    """Returns index, entropy (nats) and count by inference mode, sorted by index.

    The hash of the profile is in the metadata of the evaluation's `rows`.
    """
    known = (rows.schema.metadata or {}).get(ENTROPY_KEY.encode())
    text = read_checked(path, known.decode() if known else None)
    try:
        frame = pd.read_csv(io.StringIO(text))[["inference_mode", "index", "entropy", "count"]]
    except (ValueError, KeyError) as error:  # pandas' parser errors are ValueErrors
        raise bad(path, f"is not an entropy profile ({str(error.args[0]).splitlines()[0]})") from None
    if frame.duplicated(["inference_mode", "index"]).any():
        raise bad(path, "has an index twice in one inference mode")
    return {
        str(mode): profile.sort_values("index")[["index", "entropy", "count"]]
        for mode, profile in frame.groupby("inference_mode")
    }
