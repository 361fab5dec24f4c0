"""Checks the mapped fields of local data sets on their first rows, when the configuration is read.

So a misspelt field, a list where a text is wanted, or a file in another encoding is found before any job starts. All
rows are checked when the set is prepared. Nothing here imports pandas or torch; Parquet files need pyarrow.
"""

from __future__ import annotations

from itertools import islice

from softtok.config.grid import fields_of, file_rows
from softtok.config.messages import at, config_error
from softtok.config.schema import DATA_SECTIONS, DataSet
from softtok.errors import UserError
from softtok.problems.fields import FieldError, check_fields, mapped
from softtok.problems.rows import format_of
from softtok.problems.sources import Files, describe
from softtok.problems.spec import Kind

OF_FORMAT = {"separator": "csv", "columns": "csv", "rows": "json"}
"""Keys of `file:` that mean something for one format only."""


def check_first_rows(kind: Kind, name: str, entry: DataSet, data_root: str | None) -> None:
    """Refuses a local data set whose first rows are not what its entry says. Raises UserError, which names the key."""
    assert entry.file is not None
    where = at(DATA_SECTIONS[kind], name)
    try:
        paths = entry.file.found(data_root)
    except UserError as error:
        raise config_error(f"{where}.file.path", str(error)) from None
    formats = {entry.file.format or format_of(path) or "" for path in paths}
    for key, wanted in OF_FORMAT.items():
        if getattr(entry.file, key) is not None and formats != {wanted}:
            raise config_error(f"{where}.file.{key}", f"has no use for {' and '.join(sorted(formats))} files")
    source = file_rows(entry.file)
    try:
        for path in paths:
            next(iter(Files([path], source, ())), None)
        if entry.adapter is None:  # an adapter is tried by `softtok check` and by the job
            fields = fields_of(kind, entry, data_root, worked=kind == "train" and entry.worked is not None)
            rows = islice(Files(paths, source, mapped(fields)), entry.limit)
            check_fields(fields, rows, describe(source), needs_gold=kind == "test")
    except FieldError as error:
        own = "file." if getattr(entry.file, error.key) is not None else ""
        raise config_error(f"{where}.{own}{error.key}", str(error)) from None
    except UserError as error:
        raise config_error(f"{where}.file", str(error)) from None
