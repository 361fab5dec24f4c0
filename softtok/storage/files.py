"""Atomic writes, checked reads, and the hashes that identify contents."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softtok.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

WEIGHTS = "*.safetensors"  # the files of a model's folder whose hash is the model's identity
TABLE_KEY = "softtok.sha256"  # of a parquet file's own SHA-256, in its metadata
ENTROPY_KEY = "softtok.entropy_sha256"  # of the entropy profile next to an evaluation's rows, in their metadata
THOUGHTS_SUFFIX = ".thoughts.parquet"  # of the file with recorded soft steps beside one of samples
TABLE_SHA256 = re.compile(TABLE_KEY.encode() + rb"..([0-9a-f]{64})", re.DOTALL)


def canonical_json(value: Any) -> str:
    """One line of JSON with sorted keys, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: Any, digits: int = 8) -> str:
    """The first `digits` hex digits of the SHA-256 of `canonical_json(value)`."""
    return text_hash(canonical_json(value), digits)


def text_hash(text: str, digits: int = 8) -> str:
    """Returns the first `digits` hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's contents, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, pattern: str) -> str:
    """One SHA-256 over the names and contents of the files in `folder` that match `pattern`."""
    return content_hash({path.name: file_sha256(path) for path in sorted(folder.glob(pattern))}, digits=64)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` when the block ends without an error.

    It may be a file or a folder; a folder replaces a folder. The new contents are on disk before they get the name, so
    a power cut leaves either the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _to_disk(temporary)
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)  # os.replace does not replace a folder that holds files
        os.replace(temporary, path)
        _to_disk(path.parent, below=False)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path, below: bool = True) -> None:
    """Waits until a file, or a folder and everything `below` it, is on disk.

    Does nothing where the file system does not support fsync, or not for folders.
    """
    for item in [*(path.rglob("*") if below else []), path]:
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                raise
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_manifest(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object with a checksum of its content, atomically."""
    content = json.loads(json.dumps(value))
    write_json(path, content | {"checksum": content_hash(content, 16)})


def csv_text(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Returns CSV with a header line; floats get 6 decimals, None becomes an empty field."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([f"{value:.6f}" if isinstance(value, float) else value for value in line] for line in lines)
    return file.getvalue()


def read_manifest(path: Path, remove: Path | None = None) -> dict[str, Any]:
    """Reads what `write_manifest` wrote into a job's output folder, without the checksum.

    Raises UserError if the file is missing or damaged. Then the user is told to `remove` something, by default the
    folder. A manifest without a checksum is from an earlier version.
    """
    try:
        manifest = read_json(path)
        if not isinstance(manifest, dict):
            raise ValueError("no JSON object")
        checksum = manifest.pop("checksum", None)
        if checksum is not None and checksum != content_hash(manifest, 16):
            raise ValueError("its checksum is wrong")
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        what = f"the folder {path.parent}" if remove is None else remove
        raise UserError(f"{path} cannot be read ({why}); remove {what} and run snakemake again") from error
    return manifest


def write_table(path: Path, table: pyarrow.Table, facts: Mapping[str, str] | None = None) -> None:
    """Writes a parquet file atomically, with a checksum of every page and a SHA-256 of the whole file.

    Page checksums do not cover the file's metadata, where a damaged offset or count changes what is read. So the
    metadata holds the SHA-256 of the file as it is with 64 zeros in the place of the hash. `facts` are added to the
    metadata.
    """
    import pyarrow.parquet

    with atomic(path) as temporary:
        with pyarrow.parquet.ParquetWriter(temporary, table.schema, write_page_checksum=True) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({**(facts or {}), TABLE_KEY: "0" * 64})
        content = temporary.read_bytes()
        place = _table_hash(content)
        assert place is not None, "the metadata is not compressed"
        with open(temporary, "r+b") as file:
            file.seek(place.start(1))
            file.write(hashlib.sha256(content).hexdigest().encode())


def _table_hash(content: bytes) -> re.Match[bytes] | None:
    """Returns where the metadata of a parquet file holds the file's hash: its last place, as texts may hold the key."""
    return TABLE_SHA256.match(content, max(0, content.rfind(TABLE_KEY.encode())))


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Opens a parquet file after a comparison with its checksums, and with the hash in the manifest beside it, if any.

    Raises UserError if they differ. Errors of pyarrow and the system are not changed. A file without the hash of
    `write_table` is from an earlier version, or not from here.
    """
    import pyarrow.parquet

    content = path.read_bytes()
    if found := _table_hash(content):
        start, end = found.span(1)
        zeroed = b"".join((content[:start], b"0" * 64, content[end:]))
        if hashlib.sha256(zeroed).hexdigest().encode() != found[1]:
            raise UserError(f"{path} is damaged: its checksum is wrong; remove it and run snakemake again")
    beside = path.with_suffix(".json")
    if beside.exists():
        wanted = read_manifest(beside, remove=path).get("sha256")
        if wanted is not None and wanted != hashlib.sha256(content).hexdigest():
            raise UserError(f"{path} is not what {beside} says that it is; remove it and run snakemake again")
    # `pyarrow.parquet.read_table` would import pandas, which takes a twentieth of a job's start.
    buffer = pyarrow.BufferReader(content)
    with pyarrow.parquet.ParquetFile(buffer, page_checksum_verification=True) as file:
        yield file


def read_columns(path: Path, names: Sequence[str]) -> pyarrow.Table:
    """Reads columns of a parquet file.

    Raises UserError if the file is damaged or lacks a column.
    """
    import pyarrow

    try:
        with open_table(path) as file:
            table = file.read(columns=list(names))
    except (pyarrow.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path} is not a readable parquet file ({why}); remove it and run snakemake again") from error
    if missing := [name for name in names if name not in table.column_names]:
        raise UserError(f"{path} has no column {missing[0]!r}; remove it and run snakemake again")
    return table
