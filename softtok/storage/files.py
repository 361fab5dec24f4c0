"""Files that are there as a whole or not at all, and the hashes that name what is in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softtok.errors import UserError

if TYPE_CHECKING:
    import pyarrow

WEIGHTS = "*.safetensors"  # the files of a model's folder whose hash is the model's identity


def canonical_json(value: Any) -> str:
    """One line of JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: Any, digits: int = 8) -> str:
    """First `digits` hex digits of the SHA-256 of `canonical_json(value)`."""
    return text_hash(canonical_json(value), digits)


def text_hash(text: str, digits: int = 8) -> str:
    """Returns the first `digits` hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path, pattern: str) -> str:
    """One hash over names and contents of the files in `folder` that match `pattern`."""
    return content_hash({path.name: file_sha256(path) for path in sorted(folder.glob(pattern))}, digits=64)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place only when the block ends well. A folder replaces a
    folder. What is new is on disk before it has the name: a power cut leaves the old file or the new one, whole."""
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
    """Waits until a file, or a folder and what is `below` it, is on disk; where the file system has no such call, or
    not for folders, it is left at that."""
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
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_manifest(path: Path) -> dict[str, Any]:
    """The JSON object that a job wrote into its output folder. Raises UserError where it is gone or damaged."""
    try:
        manifest = read_json(path)
        if not isinstance(manifest, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{path} cannot be read ({why}); remove the folder {path.parent} and run snakemake again"
        ) from error
    return manifest


def read_columns(path: Path, names: Sequence[str]) -> pyarrow.Table:
    """Columns of a parquet file. (`pyarrow.parquet.read_table` would import pandas, a twentieth of a job's start.)
    Raises UserError where the file is damaged."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read(columns=list(names))
    except (pyarrow.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{path} is not a readable parquet file ({why}); remove it and run snakemake again") from error
    if missing := [name for name in names if name not in table.column_names]:
        raise UserError(f"{path} has no column {missing[0]!r}; remove it and run snakemake again")
    return table
