"""Data files in every format, and what becomes of them when they are prepared."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from softtok.problems.prepare import prepare
from softtok.problems.spec import Kind
from tests.support.specs import data_spec

Row = dict[str, Any]
SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet")


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows in the format of the path's ending; nested values only where the format has them."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(list(rows)), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prepared(
    kind: Kind, source: Row, out: Path | str = "out/set.parquet", exclude: dict[str, Path] | None = None, **spec: Any
) -> tuple[list[Row], Row]:
    """Returns (rows, manifest) of a prepared set; `source` is as in config.yaml."""
    out = Path(out)
    prepare(data_spec(kind, source, **spec), out, exclude or {}, None)
    return pq.read_table(out).to_pylist(), json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


def from_text(kind: Kind, path: Path | str, text: str | bytes, file: Row | None = None, **spec: Any) -> list[Row]:
    """Returns the problems of a file with this content; `file` has further keys of its entry."""
    Path(path).write_bytes(text.encode() if isinstance(text, str) else text)
    problems, _ = prepared(kind, {"file": {"path": str(path)} | (file or {})}, out=f"{path}.out.parquet", **spec)
    return problems
