"""Reads data sets of the hub, or folders with their layout.

Parquet and formats of the hub's own are read by `datasets`. JSON and CSV files, of which it would guess the types block
by block, are only found and fetched by it, and read as local ones are (`rows.py`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from softtok.errors import UserError
from softtok.problems.rows import Row, format_of, read_file
from softtok.problems.spec import FileRows, HubRows
from softtok.storage.hub import patiently, why

if TYPE_CHECKING:
    import datasets

Options = Mapping[str, Any]
UNDERSTOOD = ("name", "version", "data_dir", "data_files", "description", "features", "encoding", "field")
"""Settings of a JSON or CSV set that do not change how its rows are read, or that are followed here."""
OF_CSV = ("sep", "delimiter", "names", "column_names")


def read_hub(source: HubRows) -> tuple[list[Row], str | None]:
    """Returns the rows of a hub data set (or of a folder with its layout), and the commit that its revision means."""
    import datasets
    from huggingface_hub import HfApi

    datasets.disable_progress_bars()
    path, split, name, revision = source.path, source.split, source.name, source.revision
    with tempfile.TemporaryDirectory() as folder:
        try:
            # The content of a folder may change, and the usual cache would return the old one.
            local = Path(path).is_dir()
            commit = None if local else patiently(lambda: HfApi().dataset_info(path, revision=revision).sha)
            options = {"cache_dir": folder} if local else {"revision": commit}
            files = _files(source, options, Path(folder))
            if files is None:
                return patiently(lambda: datasets.load_dataset(path, name, split=split, **options)).to_list(), commit
        except Exception as error:  # network, hub and libraries raise many kinds; all mean that there are no data
            raise UserError(
                f"data set {path} (revision {revision or 'main'}) cannot be fetched: "
                f"{why(error, f'datasets/{path}', revision)}, or give local files with data_root"
            ) from error
        return [row for file, how in files for row in read_file(file, how, None)], commit


def _files(source: HubRows, options: Options, folder: Path) -> list[tuple[Path, FileRows]] | None:
    """Returns the JSON or CSV files of a split, fetched, and how they are read; None for a set of another kind.

    They are linked from `folder` under the names that they have on the hub.
    """
    import datasets

    builder = patiently(lambda: datasets.load_dataset_builder(source.path, source.name, **options))
    if (how := _how(builder)) is None:
        return None
    parts = source.split.split("+")
    found = {str(split): list(urls) for split, urls in (builder.config.data_files or {}).items()}
    if not set(parts) <= set(found):  # a part of a split, such as train[:10], or none of them
        return None
    urls = [url for part in parts for url in found[part]]
    if not all(map(format_of, map(_name, urls))):
        return None
    manager, files = datasets.DownloadManager(), []
    for place, url in enumerate(urls):
        link = folder / f"{place}" / _name(url)
        link.parent.mkdir()
        link.symlink_to(Path(patiently(partial(manager.download, url))).absolute())
        files.append((link, how))
    return files


def _name(url: str) -> Path:
    return Path(PurePosixPath(url.partition("?")[0]).name)


def _how(builder: datasets.DatasetBuilder) -> FileRows | None:
    """Returns how the files of a set are read; None for a set that is not JSON or CSV, or has settings of its own."""
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    if not isinstance(builder, Csv | Json):
        return None
    config, usual = vars(builder.config), vars(type(builder.config)())
    understood = UNDERSTOOD + (OF_CSV if isinstance(builder, Csv) else ())
    if any(config[key] != usual[key] for key in usual if key not in understood) or config.get("encoding") not in (
        None,
        "utf-8",
    ):
        return None
    if isinstance(builder, Json):
        return FileRows(path="", format="json", columns=None, sha256=None, rows=config.get("field"))
    columns = config["names"] or config["column_names"]
    separator = config["delimiter"] or config["sep"]
    return FileRows(path="", format="csv", columns=columns, sha256=None, separator=separator)
