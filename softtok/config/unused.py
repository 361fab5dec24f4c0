"""Finds and removes results that no study needs any more, and what killed jobs left half written.

Only names that the project gives are found, in the places where it gives them, and no link is followed, so nothing
else can be removed. What settings left behind is removed when the user asks for it alone, as settings may change back.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from softtok.config.grid import Grid
from softtok.config.jobs import Data
from softtok.storage.costs import SUFFIX
from softtok.storage.files import THOUGHTS_SUFFIX
from softtok.storage.locks import is_locked

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
MADE = rf"({NAME})-[0-9a-f]{{8}}"
RUN = rf"runs/{NAME}/{NAME}/{NAME}/seed\d+-[0-9a-f]{{8}}"
# What has a spec's hash in its name (see the patterns in jobs.py), by its path in results/.
HASHED = re.compile(
    rf"data/(train|test|choice)/{MADE}\.(parquet|json)"
    rf"|models/{MADE}|specs/{MADE}\.json|{RUN}|{RUN}/eval/{NAME}/{MADE}\.((thoughts\.)?parquet|entropy\.csv|cost\.json)"
    rf"|{RUN}/choices/{MADE}\.(parquet|cost\.json)"
)
# The folders that jobs write into, and the temporary names of `storage.files.atomic` and of a model's trial.
FOLDER = re.compile(
    rf"data/(train|test|choice)|models(/{MADE})?|specs"
    rf"|{RUN}(/checkpoint|/\.state(/shards|/best-\d+)?|/eval/{NAME}|/choices)?|reports/{NAME}(/partial)?(/tables|/figures)?"
)
LEFTOVER = re.compile(rf"\.({NAME}\.[0-9a-f]{{8}}|{MADE}\.[a-z0-9_]{{8}})\.tmp")
RECENT_S = 3600  # so long a job may still be writing what looks like a leftover


def unused(grids: Sequence[Grid], results: Path) -> Iterator[Path]:
    """Yields files and folders in `results` that no study of the grids needs, but not the content of such folders.

    If the local files of a data set or model are missing now, its hash is not known, so everything with its name or
    below that name is left out. Leftovers of killed jobs are yielded too, unless a job is at work in their run, or they
    are outside of runs, where no lock tells, and were written within the last hour.
    """
    wanted = {Path(path).relative_to("results").as_posix() for grid in grids for path in _paths(grid)}
    unknown = {name for grid in grids for name in _unknown_names(grid)}
    for top in ("data", "models", "specs", "runs", "reports"):
        if (results / top).is_dir() and not (results / top).is_symlink():
            yield from _unused(results, top, wanted, unknown)


def _unknown_names(grid: Grid) -> Iterator[str]:
    yield from (data.name for data in grid.data.values() if data.spec.unknown)
    yield from (model.name for model in grid.models.values() if _unknown(model.text, model.shots))
    yield from (run.train_set.name for run in grid.runs.values() if run.train_set and _unknown(run.shots))
    yield from (evaluation.data.name for evaluation in grid.evaluations.values() if _unknown(evaluation.shots))


def _unknown(*found: Data | None) -> bool:
    return any(data.spec.unknown for data in found if data is not None)


def other_studies(grids: Sequence[Grid], results: Path) -> list[str]:
    """Returns the names of studies that have specs of reports in `results` and are in none of the grids."""
    names = {path.stem.rpartition("-")[0] for path in (results / "specs").glob("*.json")}
    return sorted(names.difference(*(grid.studies for grid in grids)))


def _unused(results: Path, below: str, wanted: set[str], unknown: set[str]) -> Iterator[Path]:
    """Yields what is unused below a folder of `results`, in the order of names."""
    with os.scandir(results / below) as entries:
        found = sorted((entry for entry in entries if not entry.is_symlink()), key=lambda entry: entry.name)
    for entry in found:
        path, place = results / below / entry.name, f"{below}/{entry.name}"
        if re.fullmatch(RUN, place) and any(is_locked(lock) for lock in (path / ".state" / "locks").glob("*")):
            continue  # a job is at work there
        leftover = FOLDER.fullmatch(below) and LEFTOVER.fullmatch(entry.name)
        if leftover and not below.startswith("runs/") and _age_s(path) < RECENT_S:
            continue
        hashed = HASHED.fullmatch(place) and place not in wanted and unknown.isdisjoint(_names(place))
        if leftover or hashed:
            yield path
        elif entry.is_dir(follow_symlinks=False):
            yield from _unused(results, place, wanted, unknown)


def _age_s(path: Path) -> float:
    """Returns how long ago a file, or the newest file of a folder, was written, in seconds."""
    try:
        return time.time() - max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
    except FileNotFoundError:
        return 0.0  # a job has just renamed it


def _names(place: str) -> set[str]:
    """Returns the names in a path: those of its folders, and its own without the hash."""
    *folders, last = place.split("/")
    return {*folders, re.sub(r"-[0-9a-f]{8}(\.[a-z.]+)?$", "", last)}


def _paths(grid: Grid) -> Iterator[str]:
    for data in grid.data.values():
        yield from (f"{data.stem}.parquet", f"{data.stem}.json")
    yield from grid.models
    for study in grid.studies.values():
        yield study.spec_path
        yield from study.runs
        for suffix in (".parquet", ".entropy.csv", THOUGHTS_SUFFIX, SUFFIX):
            yield from study.evaluation_files(suffix)
        yield from (path for end in (".parquet", SUFFIX) for path in study.choice_files(end))


def size(path: Path) -> int:
    """Returns the bytes of a file or folder; hard links to one file, as in checkpoints, count once."""
    files = [file.lstat() for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path.lstat()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())


def remove(path: Path) -> None:
    """Removes a file or folder that `unused` found. Links in a folder are removed, and what they point to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
