"""Finds results that no study needs any more, because its settings have changed.

Nothing is removed here, as settings may change back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from softtok.config.grid import Grid

# Where results/ has names with a spec's hash (see the patterns in jobs.py); folders come before their content.
RUNS = "runs/*/*/*/seed*"
PLACES = ("data/*/*", "models/*", "specs/*", RUNS, f"{RUNS}/eval/*/*", f"{RUNS}/choices/*")
HASHED = re.compile(r"([A-Za-z0-9].*)-[0-9a-f]{8}(\.parquet|\.json|\.entropy\.csv)?")


def unused(grid: Grid, results: Path) -> Iterator[Path]:
    """Yields files and folders in `results` that no study of the grid needs, but not the content of such folders.

    Names without a hash were not made by the workflow and are left out. If the local files of a data set or model are
    missing now, its hash is not known, so everything with its name or below that name is left out too.
    """
    wanted = {results / Path(path).relative_to("results") for path in _paths(grid)}
    unknown = {data.name for data in grid.data.values() if data.spec.unknown}
    unknown |= {model.name for model in grid.models.values() if model.text and model.text.spec.unknown}
    listed: set[Path] = set()
    for place in PLACES:
        for path in sorted(results.glob(place)):
            named = HASHED.fullmatch(path.name)
            if named is None or path in wanted or not listed.isdisjoint(path.parents):
                continue
            if unknown.isdisjoint((named[1], *path.relative_to(results).parts)):
                listed.add(path)
                yield path


def _paths(grid: Grid) -> Iterator[str]:
    for data in grid.data.values():
        yield from (f"{data.stem}.parquet", f"{data.stem}.json")
    yield from grid.models
    for study in grid.studies.values():
        yield study.spec_path
        yield from study.runs
        yield from (*study.evaluation_files(".parquet"), *study.evaluation_files(".entropy.csv"))
        yield from study.choice_files(".parquet")


def size(path: Path) -> int:
    """Returns the bytes of a file or folder; hard links to one file, as in checkpoints, count once."""
    files = [file.lstat() for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path.lstat()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())
