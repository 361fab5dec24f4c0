"""Small damages to files, as disks and copies do them, and files that are whole but of other content."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from softtok.config.specs import ReportSpec
from softtok.errors import UserError
from softtok.storage.files import ENTROPY_KEY, read_json, read_manifest, write_manifest, write_table
from softtok.storage.integrity import file_hashes, weights_sha256
from tests.support.examples import multiplier

T = TypeVar("T")

PAGE = 4096  # bytes that a disk or a file system loses together


def times(count: int) -> int:
    """Returns a number of examples, multiplied as those of property tests are (`examples.py`)."""
    return max(1, round(count * multiplier()))


def damages(content: bytes, count: int, seed: str) -> Iterator[tuple[str, bytes]]:
    """Yields `count` contents with one flipped bit each, and one with a page of zeros, with words that name them."""
    chance = random.Random(seed)
    for _ in range(times(count)):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        yield f"bit {bit} of byte {place}", flipped(content, place, bit)
    start = chance.randrange(len(content))
    end = min(start + PAGE, len(content))
    if any(content[start:end]):
        yield f"zeros from byte {start}", content[:start] + bytes(end - start) + content[end:]


def flipped(content: bytes, place: int, bit: int) -> bytes:
    """Returns the content with one bit of one byte turned."""
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def refused(job: Callable[[], T]) -> T | None:
    """Returns what a job gives, or None if it ends with a UserError of one line."""
    try:
        return job()
    except UserError as error:
        told = str(error)
    assert "\n" not in told and "remove" in told, told
    return None


class Evaluation(NamedTuple):
    """What an evaluation gives."""

    rows: pd.DataFrame
    entropy: pd.DataFrame


def evaluation(out: Path) -> Evaluation:
    """Returns what an evaluation wrote."""
    return Evaluation(pd.read_parquet(out), pd.read_csv(out.with_suffix(".entropy.csv")))


def assert_same_evaluation(found: Evaluation, whole: Evaluation, what: str = "") -> None:
    """Entropies are equal up to rounding only, as an evaluation that goes on has other batches."""
    pd.testing.assert_frame_equal(found.rows, whole.rows, obj=what)
    pd.testing.assert_frame_equal(found.entropy, whole.entropy, obj=what, rtol=0, atol=1e-5)


def changed_copy(model: Path, folder: Path) -> Path:
    """Copies a toy model to a folder, with other weights and a manifest that belongs to them."""
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    hashes = file_hashes(folder)
    manifest = read_manifest(folder / "model.json")
    write_manifest(folder / "model.json", manifest | {"files": hashes, "sha256": weights_sha256(hashes)})
    return folder


def seal(root: Path, spec: ReportSpec) -> None:
    """Writes made-up results (`synthetic_runs.py`) again with the checksums that jobs give to theirs."""
    for entry in spec.runs:
        run = root / entry.path
        metrics = hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest()
        write_manifest(run / "manifest.json", read_json(run / "manifest.json") | {"metrics_sha256": metrics})
        for path in run.rglob("*.parquet"):
            entropy = path.with_suffix(".entropy.csv")
            facts = {ENTROPY_KEY: hashlib.sha256(entropy.read_bytes()).hexdigest()} if entropy.exists() else {}
            write_table(path, pa.table(pq.read_table(path).to_pydict()), facts)
