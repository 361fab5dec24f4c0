"""Records: what a report reads of finished runs, small enough to be committed, without weights.

    STUDY-HASH.json               the spec of the study's report, with paths below this folder
    data/KIND/NAME-HASH.parquet   a hash of each question, and how many problems were flagged (.json)
    runs/.../seedN-HASH/          manifest.json, metrics.jsonl, eval/, choices/ (with their *.cost.json and
                                  *.thoughts.parquet), and record.json with a hash of each

What only says where a run was made (host, process, traceback) is left out of its manifest; paths that a configuration
gives stay, as they are part of its settings. A run is recorded as soon as everything that its study plans has finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from softtok.config.manifests import RunManifest
from softtok.config.specs import ReportRun, ReportSpec
from softtok.errors import UserError
from softtok.problems.prompt import normalise
from softtok.report.collect import Absent, row_text
from softtok.report.missing import from_attempts
from softtok.report.recorded import (
    RECORD,
    RunRecord,
    data_of,
    differences,
    further_files,
    planned_files,
    read_record,
    recorded_specs,
    spec_hash,
    unplanned,
)
from softtok.report.run_files import (
    CELL_COLUMNS,
    CHOICE_COLUMNS,
    missing,
    read_checked,
    read_columns,
    read_entropy,
    read_manifest,
)
from softtok.report.study import Study, row_of
from softtok.storage import files
from softtok.storage.costs import SUFFIX
from softtok.storage.files import atomic, file_sha256, text_hash, write_manifest, write_table, write_text

PRIVATE = ("host",)  # of a run's provenance
TOLD_OF_ATTEMPTS = ("event", "time")
QUESTION_DIGITS = 16  # of a question's hash, which shows whether two questions are the same


def write_records(spec: ReportSpec, results: Path, folder: Path, replace: bool = False) -> Iterator[str]:
    """Records the finished runs of a study; yields a line about each run. The spec's paths are below `results`.

    What is recorded stays as it is, unless `replace` is set. Raises UserError, before anything is written, if the
    folder holds another study, or if something is recorded that the study does not have with its present settings.
    """
    before = recorded_specs(folder)
    if other := [path for path, of in before.items() if of.study != spec.study]:
        raise UserError(
            f"{other[0]} is of the study {before[other[0]].study!r}; give {spec.study!r} a folder of its own"
        )
    stale = list(unplanned(spec, folder))
    if stale and not replace:
        more = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise UserError(
            f"{stale[0]}{more}: recorded with other settings than the study {spec.study!r} has now"
            f"{differences(spec, folder, stale[0])}; choose another folder, or --replace to remove it"
        )
    for path in stale:
        _remove(path)
        yield f"removed, as its settings are no longer the study's: {path}"
    name = f"{spec.study}-{text_hash(spec.as_json())}.json"
    if folder / name not in before:
        write_text(folder / name, spec.as_json())
        yield from (f"{path.name} is replaced by {name}: the study is planned in another way now" for path in before)
    for path in before:
        if path.name != name:
            path.unlink()
    for kind, paths in spec.data.items():
        for data in paths.values():
            _record_data(kind, results / data, folder / data)
    for entry in Study(spec).runs:
        told = _record_run(entry, data_of(spec, entry), results, folder, replace)
        yield f"{row_text(row_of(entry))}, seed {entry.seed}: {told}"


def _remove(path: Path) -> None:
    """Removes a recorded run, or a file of one, which its record.json then does not list."""
    if path.is_dir():
        shutil.rmtree(path)
        return
    run = next(parent for parent in path.parents if (parent / RECORD).exists())
    record = read_record(run)
    kept = {name: sha256 for name, sha256 in record.files.items() if run / name != path}
    write_manifest(run / RECORD, record.model_copy(update={"files": kept}).model_dump())
    path.unlink()


def _record_run(entry: ReportRun, data: list[str], results: Path, folder: Path, replace: bool) -> str:
    """Records a run if it has finished; returns what became of it. `data` are the sets that its report reads."""
    source, target, planned = results / entry.path, folder / entry.path, planned_files(entry)
    known = read_record(target) if (target / RECORD).exists() else None
    lacking = [name for name in planned if not (source / name).exists()]
    if lacking:
        if known:
            less = sorted(set(planned) - set(known.files))
            return f"recorded before, without {', '.join(less)}" if less else "recorded before"
        if lacking[0] == "manifest.json":
            return from_attempts(Absent(row_of(entry), entry.seed, source, "", missing(source)))
        return f"not finished: {', '.join(name for name in lacking if not name.endswith('.entropy.csv'))}"
    manifest = _read_run(entry, source)
    further = [name for name in further_files(entry) if (source / name).exists()]
    contents = {name: file_sha256(source / name) for name in (*planned[1:], *further)}
    record = _record_of(entry, manifest, contents)
    if known and not replace and (kept := _kept(known, record, target)):
        return kept
    if gone := [path for path in data if not (folder / path).exists()]:
        return f"not recorded: {results / gone[0]} is missing; snakemake makes it"
    return _write_run(source, target, _without_traces(manifest), record)


def _kept(known: RunRecord, found: RunRecord, target: Path) -> str:
    """Returns why a record stays as it is, though the run is there; an empty text if it lacks something."""
    if (known.checkpoint_sha256, known.metrics_sha256) != (found.checkpoint_sha256, found.metrics_sha256):
        return "recorded before, from another training; kept (--replace takes the one of these results)"
    results = {name: sha256 for name, sha256 in found.files.items() if not name.endswith(SUFFIX)}
    if differing := [name for name, sha256 in results.items() if known.files.get(name, sha256) != sha256]:
        return f"recorded before; kept, though {differing[0]} was made again (--replace takes the new one)"
    whole = set(found.files) <= set(known.files) and all((target / name).exists() for name in known.files)
    return "recorded before" if whole else ""


def _write_run(source: Path, target: Path, manifest: RunManifest, record: RunRecord) -> str:
    """Writes a run's record, record.json last; returns its size."""
    (target / RECORD).unlink(missing_ok=True)
    write_manifest(target / "manifest.json", manifest.model_dump(mode="json"))
    for name in record.files:
        with atomic(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
    hashes = {"manifest.json": file_sha256(target / "manifest.json"), **record.files}
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if path.relative_to(target).as_posix() not in hashes:
            path.unlink()  # of an earlier record of this run
    write_manifest(target / RECORD, record.model_copy(update={"files": hashes}).model_dump())
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return f"recorded, {size / 1e6:.2f} MB"


def _record_of(entry: ReportRun, manifest: RunManifest, contents: dict[str, str]) -> RunRecord:
    return RunRecord(
        run=spec_hash(entry.path),
        checkpoint_sha256=manifest.checkpoint_sha256,
        metrics_sha256=contents["metrics.jsonl"],
        files=contents,
    )


def _without_traces(manifest: RunManifest) -> RunManifest:
    """Returns a manifest without the host, and without what an attempt says besides its event and its time."""
    return manifest.model_copy(
        update={
            "attempts": [{key: one[key] for key in TOLD_OF_ATTEMPTS if key in one} for one in manifest.attempts],
            "provenance": {key: value for key, value in manifest.provenance.items() if key not in PRIVATE},
        }
    )


def _read_run(entry: ReportRun, run: Path) -> RunManifest:
    """Returns the manifest of a run. Raises UserError if a planned file is damaged, or the run is of another spec."""
    manifest = read_manifest(run / "manifest.json")
    if (found := text_hash(manifest.spec.as_json())) != spec_hash(entry.path):
        raise UserError(f"{run} holds a run of another spec ({found}, seed {manifest.spec.seed})")
    read_checked(run / "metrics.jsonl", manifest.metrics_sha256)
    for name in planned_files(entry):
        if name.endswith(".parquet"):
            rows = read_columns(run / name, CELL_COLUMNS if name.startswith("eval/") else CHOICE_COLUMNS)
            if name.startswith("eval/"):
                read_entropy((run / name).with_suffix(".entropy.csv"), rows)
    return manifest


def _record_data(kind: str, source: Path, target: Path) -> None:
    """Records what a report reads of a prepared data set: which questions are the same, and what was flagged."""
    if (target.exists() and target.with_suffix(".json").exists()) or not source.exists():
        return
    made = files.read_manifest(source.with_suffix(".json"), remove=source)
    found = read_columns(source, ["question"])["question"].to_pylist()
    import pyarrow as pa

    questions = sorted({text_hash(normalise(text), QUESTION_DIGITS) for text in found})
    write_table(target, pa.table({"question": questions}))
    counts = {"rows": made["rows"], "flagged": [{}] * len(made["flagged"]), "reasons": made["reasons"]}
    write_manifest(target.with_suffix(".json"), counts | {"sha256": file_sha256(target), "spec": made["spec"]})
