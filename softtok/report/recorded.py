"""Reads records (`records.py`): tests that they are whole and of the specs that name them; makes reports of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from softtok.config.specs import ReportRun, ReportSpec
from softtok.errors import UserError
from softtok.problems.spec import DataSpec
from softtok.report.collect import Absent
from softtok.report.page import make_report
from softtok.report.run_files import read_columns, read_manifest
from softtok.storage import files
from softtok.storage.costs import cost_path
from softtok.storage.files import THOUGHTS_SUFFIX, file_sha256, text_hash
from softtok.storage.records import Record

RECORD = "record.json"


class RunRecord(Record):
    """The record.json of a run: the hash of its spec, the checkpoint that was measured, and all files with hashes."""

    run: str
    checkpoint_sha256: str
    metrics_sha256: str
    files: dict[str, str]


def planned_files(entry: ReportRun) -> list[str]:
    """Returns the files of a finished run that its study's report reads, relative to the run's folder."""
    stems = [f"eval/{test_set}/{name}-{h8}" for test_set, sets in entry.tests.items() for name, h8 in sets.items()]
    choices = [f"choices/{name}-{h8}.parquet" for name, h8 in entry.choices.items()]
    measured = [f"{stem}{suffix}" for stem in stems for suffix in (".parquet", ".entropy.csv")]
    return ["manifest.json", "metrics.jsonl", *measured, *choices]


def further_files(entry: ReportRun) -> list[str]:
    """Returns the files of what evaluations cost, and of thoughts; results of earlier versions lack them."""
    measured = [Path(name) for name in planned_files(entry) if name.endswith(".parquet")]
    thoughts = [path.with_suffix(THOUGHTS_SUFFIX) for path in measured if path.parts[0] == "eval"]
    return [str(path) for path in (*map(cost_path, measured), *thoughts)]


def spec_hash(path: str) -> str:
    """Returns the hash of the spec that the name of a run or data set ends with."""
    return Path(path).stem.rpartition("-")[2]


def spec_names(path: str) -> str:
    """Returns the path of a run without the hash of its spec."""
    return path.rpartition("-")[0]


def read_record(run: Path) -> RunRecord:
    path = run / RECORD
    try:
        return RunRecord.model_validate_json(json.dumps(files.read_manifest(path, remove=run)))
    except (UserError, ValidationError):
        raise damaged(path) from None


def damaged(path: Path, why: str = "it is not what was recorded") -> UserError:
    return UserError(f"{path} is damaged: {why}; restore it, or remove it and run `softtok records` again")


def recorded_specs(folder: Path) -> dict[Path, ReportSpec]:
    """Returns the specs in a folder of records: one, or two if a study was just planned in another way."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            spec = ReportSpec.model_validate_json(path.read_bytes())
        except ValidationError:
            raise damaged(path) from None
        if path.name != f"{spec.study}-{text_hash(spec.as_json())}.json":
            raise damaged(path)
        found[path] = spec
    return found


def unplanned(spec: ReportSpec, folder: Path) -> Iterator[Path]:
    """Yields recorded runs, and files of runs, that are no part of the study as it is planned."""
    planned = {entry.path: entry for entry in spec.runs}
    for path in sorted(folder.glob(f"runs/*/*/*/*/{RECORD}")):
        entry = planned.get(path.parent.relative_to(folder).as_posix())
        if entry is None:
            yield path.parent
        else:
            names = set(read_record(path.parent).files) - {*planned_files(entry), *further_files(entry)}
            yield from (path.parent / name for name in sorted(names))


def differences(spec: ReportSpec, folder: Path, path: Path) -> str:
    """Returns in what the settings of a recorded run differ from the study's run of the same names, if it has one."""
    names = spec_names(path.relative_to(folder).as_posix())
    entry = next((entry for entry in spec.runs if spec_names(entry.path) == names), None)
    return f" ({apart(entry, path)})" if entry and (path / "manifest.json").exists() else ""


def apart(entry: ReportRun, recorded: Path) -> str:
    """Returns the settings in which a recorded run differs from a planned one of the same names."""
    of = read_manifest(recorded / "manifest.json").spec
    found = [
        f"{what}.{key}: {getattr(was, key)}, now {getattr(now, key)}"
        for what, was, now in (("mode", of.mode, entry.mode), ("training", of.training, entry.training))
        if was is not None and now is not None
        for key in type(was).model_fields  # not of a dump, which leaves out some defaults
        if getattr(was, key) != getattr(now, key)
    ]
    return ", ".join(found) or "in the model, the data set, or a version of softtok"


def data_of(spec: ReportSpec, entry: ReportRun) -> list[str]:
    """Returns the prepared data sets of which a report reads something for a run."""
    train, test = spec.data.get("train", {}), spec.data.get("test", {})
    return [path for path in (train.get(entry.train_set), *map(test.get, entry.tests)) if path]


def check_records(spec: ReportSpec, folder: Path) -> None:
    """Raises UserError unless all that is recorded of a study is whole, and there is nothing else."""
    for entry in spec.runs:
        if (folder / entry.path).exists():
            _check_run(folder / entry.path, spec_hash(entry.path))
            for path in data_of(spec, entry):
                _check_data(folder / path)


def _check_run(run: Path, wanted: str) -> None:
    """Raises UserError unless a run's record is whole, and of the spec with this hash."""
    record = read_record(run)
    if record.run != wanted:
        raise damaged(run / RECORD, "it is the record of another run")
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name != RECORD):
        if path.relative_to(run).as_posix() not in record.files:
            raise UserError(f"{path} is no part of a record; remove it")
    for name, sha256 in record.files.items():
        if not (run / name).exists() or file_sha256(run / name) != sha256:
            raise damaged(run / name)
    if text_hash(read_manifest(run / "manifest.json").spec.as_json()) != wanted:
        raise damaged(run / "manifest.json", "it is of another spec")


def _check_data(path: Path) -> None:
    """Raises UserError unless a recorded data set is whole and of the spec that its name says."""
    if not path.exists():
        raise UserError(f"{path} is missing; run `softtok records` again")
    try:
        made: dict[str, Any] = files.read_manifest(path.with_suffix(".json"))
        of = DataSpec.model_validate_json(json.dumps(made["spec"])).as_json()
    except (UserError, KeyError, ValidationError):
        raise damaged(path.with_suffix(".json")) from None
    if text_hash(of) != spec_hash(path.name):
        raise damaged(path.with_suffix(".json"), "it is of another spec")
    try:
        read_columns(path, ["question"])
    except UserError:
        raise damaged(path) from None


def report_from_records(folder: Path, out: Path, spec: ReportSpec | None = None) -> list[str]:
    """Writes a report from records alone; returns what is missing, a line for each.

    It is that of the study as it was recorded, or as `spec` plans it now, with paths below the folder.
    """
    recorded = recorded_specs(folder)
    if not recorded:
        raise UserError(f"{folder} holds no records of a study; `softtok records STUDY --to {folder}` writes them")
    if len(recorded) > 1:
        raise UserError(f"{folder} holds the specs of several studies: {', '.join(path.name for path in recorded)}")
    wanted = spec or next(iter(recorded.values()))
    for one in (*recorded.values(), wanted):
        check_records(one, folder)
    planned = {entry.path: entry for entry in wanted.runs}
    if not any((folder / path).exists() for path in planned):
        raise UserError(f"{folder} holds no run of {wanted.study!r} yet that has finished with these settings")

    def why(item: Absent) -> str:
        entry = planned[item.folder.relative_to(folder).as_posix()]
        others = [path for path in item.folder.parent.glob(f"seed{item.seed}-*") if path != item.folder]
        if others and not item.folder.exists():
            return f"recorded with other settings only ({apart(entry, others[0])})"
        return "not recorded"

    return make_report(wanted, out, folder, why)


def recorded_runs(spec: ReportSpec, folder: Path) -> set[str]:
    """Returns the paths of the runs of which everything that the study plans is recorded."""
    return {
        entry.path
        for entry in spec.runs
        if (folder / entry.path / RECORD).exists()
        and set(planned_files(entry)) <= set(read_record(folder / entry.path).files)
    }
