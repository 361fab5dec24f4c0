"""Where the rows of a data set come from: the toy generator, the hub, or local files (`rows.py`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from softtok.errors import UserError
from softtok.problems import toy
from softtok.problems.hub_sets import read_hub
from softtok.problems.local_files import local_files
from softtok.problems.rows import FORMATS, Row, ending, format_of, read_file
from softtok.problems.spec import FileRows, HubRows, ToyRows
from softtok.storage.files import canonical_json, file_sha256


def describe(source: ToyRows | HubRows | FileRows) -> str:
    """Returns the name of a source in messages."""
    if isinstance(source, ToyRows):
        return f"toy data set {canonical_json(source.model_dump(exclude={'kind'}))}"
    return f"data set {source.path}"


@dataclass(frozen=True)
class Files:
    """The rows of local files, read when they are iterated over.

    `names` are the fields that are needed, None stands for all. Raises UserError for a file that cannot be read.
    """

    paths: list[Path]
    source: FileRows
    names: Collection[str] | None = None

    def __iter__(self) -> Iterator[Row]:
        for path in self.paths:
            yield from read_file(path, self.source, self.names)


def find_files(source: FileRows, data_root: Path | None) -> list[Path]:
    """Returns the local files of a data set, those of a pattern sorted. Raises UserError."""
    try:
        paths = local_files(source.path, data_root)
    except UserError as error:
        raise UserError(f"{describe(source)}: no such file ({error})") from None
    kinds = {source.format or format_of(path) or ending(path) for path in paths}
    if len(kinds) > 1 or not kinds <= set(FORMATS.values()):
        raise UserError(
            f"{describe(source)}: needs files of one format, json, csv or parquet; these are {sorted(kinds)}"
        )
    return paths


def read_rows(
    source: ToyRows | HubRows | FileRows, data_root: Path | None, names: Collection[str] | None = None
) -> tuple[Iterable[Row], Row]:
    """Returns the rows of a source, and revision and source_sha256 for the manifest. Raises UserError.

    Rows of files are read when they are iterated over, each time anew. `names` are the fields that are needed, None
    stands for all.
    """
    if isinstance(source, FileRows):
        paths = find_files(source, data_root)
        digests = [file_sha256(path) for path in paths]
        if source.sha256 is not None and digests != source.sha256:
            raise UserError(f"{describe(source)}: has changed since the configuration was read; run snakemake again")
        digest = digests[0] if len(digests) == 1 else sha256_of(digests)
        return Files(paths, source, names), {"revision": None, "source_sha256": digest}
    rows, revision = (
        read_hub(source) if isinstance(source, HubRows) else (toy_rows(source, "worked" in (names or ())), None)
    )
    # Columns that are not used may hold dates or images, which are not JSON.
    lines = (json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str) for row in rows)
    return rows, {"revision": revision, "source_sha256": sha256_of(f"{line}\n" for line in lines)}


def sha256_of(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode(errors="surrogatepass"))
    return digest.hexdigest()


def toy_rows(source: ToyRows, worked: bool = False) -> list[Row]:
    """Returns rows of the built-in task `sums` (of `steps`) or `choice`; an id is the hash of its text.

    `worked` adds the solutions of sums.
    """
    if source.task == "sums":
        problems = toy.problems(source.steps, source.split, source.problems, source.seed)
        rows: list[Row] = [{"question": p.question, "gold": p.gold} for p in problems]
        solutions = [{"worked": " ".join(p.steps)} if worked else {} for p in problems]
    else:
        rows = [
            {"question": c.question, "choices": list(c.choices), "answer": c.answer}
            for c in toy.choices(source.split, source.problems, source.seed)
        ]
        solutions = [{} for _ in rows]
    return [
        {"id": sha256_of([canonical_json(row)])[:12]} | row | more for row, more in zip(rows, solutions, strict=True)
    ]
