"""What lies in results/ though no study leads to it any more: data sets, models, runs, evaluations and choice sets of
settings that have changed since. Nothing is removed here, for settings may change back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from softtok.config.grid import Grid

# Where what has a spec's hash in its name stands in results/ (the patterns in jobs.py), folders before what they hold.
RUNS = "runs/*/*/*/seed*"
PLACES = ("data/*/*", "models/*", "specs/*", RUNS, f"{RUNS}/eval/*/*", f"{RUNS}/choices/*")
HASHED = re.compile(r"([A-Za-z0-9].*)-[0-9a-f]{8}(\.parquet|\.json|\.entropy\.csv)?")


def unused(grid: Grid, results: Path) -> Iterator[Path]:
    """Files and folders in `results` that no study of the grid leads to; of a folder, not what it holds.

    What has no hash in its name is not ours and is left out. So is what has the name of a data set or model whose local
    files are not to be found now, or lies below such a name: what those files would lead to is not known.
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
    """Bytes of a file, or of all files in a folder, each counted once: a checkpoint's are hard links to saved ones."""
    files = [file.lstat() for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path.lstat()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())
