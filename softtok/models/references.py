"""Finds where a model's files really are, and checks that they are what they were."""

from __future__ import annotations

from pathlib import Path

from softtok.config.manifests import CheckpointManifest, FolderReference, HubReference, ModelManifest, read
from softtok.errors import UserError
from softtok.storage.files import WEIGHTS, folder_sha256
from softtok.storage.hub import locked
from softtok.storage.integrity import differing

Manifest = CheckpointManifest | ModelManifest
MANIFESTS: dict[str, type[CheckpointManifest] | type[ModelManifest]] = {
    "checkpoint.json": CheckpointManifest,
    "model.json": ModelManifest,
}


def located(folder: Path) -> tuple[str, Path]:
    """Returns a model's name in messages, and the folder with its files; that of a hub model is in the hub's cache.

    Raises UserError if a file is not what it was when the model was made or first used.
    """
    name, commit = resolve(folder)
    if commit is None:
        return name, Path(name)
    files, manifest = locked(name, commit), _manifest(folder)
    if manifest and manifest.files and (wrong := differing(files, manifest.files)):
        raise UserError(
            f"model {name}: {files / wrong} is damaged, as it is not what was fetched first;"
            f" remove the folder {files.parents[1]} and run snakemake again, which fetches it again"
        )
    return name, files


def resolve(folder: Path) -> tuple[str, str | None]:
    """Returns where a model's or a run's weights really are: (path or hub id, revision).

    Follows the small reference files that stand for a hub model, a local folder, or the untouched model of a `base`
    run. Raises UserError if the files in a local folder have changed.
    """
    manifest = _manifest(folder)
    reference = manifest.reference if manifest else None
    if isinstance(reference, HubReference):
        return reference.hub, reference.revision
    if manifest and reference is not None:
        refuse_changed(folder, reference, manifest)
        return reference.path, None
    if manifest and (wrong := _differing(folder, manifest)):
        raise _damaged(folder, wrong)
    return str(folder), None


def _manifest(folder: Path) -> Manifest | None:
    """Returns the manifest of a model, a checkpoint, or neither."""
    for name, kind in MANIFESTS.items():
        if (folder / name).is_file():
            return read(kind, folder / name)
    return None


def refuse_changed(made: Path, reference: FolderReference, manifest: Manifest) -> None:
    """Raises UserError if the files in a folder have changed since the manifest in `made` referred to it.

    Otherwise, results of different weights would have the same name.
    """
    folder = Path(reference.path)
    wrong = _differing(folder, manifest) if folder.is_dir() else None
    if wrong is None:
        return
    if reference.weights is None:  # it was made here, and has a manifest of its own
        own = _manifest(folder)
        if own is None or _differing(folder, own) is not None:
            raise _damaged(folder, wrong)
        raise UserError(f"{made} is of other weights than {folder} has now; remove {made} and run snakemake again")
    what = "weights have" if wrong.endswith(WEIGHTS[1:]) else f"{wrong} has"
    raise UserError(
        f"model folder {folder}: its {what} changed since first use ({wrong});"
        " put the old file back, or give the new model a folder and an entry of its own"
    )


def _damaged(folder: Path, wrong: str) -> UserError:
    """Returns the error for a file of a model or checkpoint that was made here and is not what was written."""
    saved = folder.parent / ".state" / "progress.pt"  # the saved weights are the same files, by hard links
    what = f"the folder {folder}" + (f" and {saved}" if saved.exists() else "")
    return UserError(
        f"{folder / wrong} is damaged, as it is not what was written; remove {what} and run snakemake again"
    )


def _differing(folder: Path, manifest: Manifest) -> str | None:
    """Returns the name of a file that is not as recorded; manifests of earlier versions record the weights alone."""
    if manifest.files is not None:
        return differing(folder, manifest.files)
    return WEIGHTS if folder_sha256(folder, WEIGHTS) != manifest.sha256 else None


def weight_stamps(folder: Path) -> dict[str, list[int]]:
    """Returns the size and the time of the last change of each weight file."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.glob(WEIGHTS))}
