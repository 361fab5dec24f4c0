"""Finds where a model's weights really are, and checks that they have not changed."""

from __future__ import annotations

from pathlib import Path

from softtok.config.manifests import CheckpointManifest, FolderReference, HubReference, ModelManifest, read
from softtok.errors import UserError
from softtok.storage.files import WEIGHTS, folder_sha256

MANIFESTS: dict[str, type[CheckpointManifest] | type[ModelManifest]] = {
    "checkpoint.json": CheckpointManifest,
    "model.json": ModelManifest,
}


def resolve(folder: Path) -> tuple[str, str | None]:
    """Returns where a model's or a run's weights really are: (path or hub id, revision).

    Follows the small reference files that stand for a hub model, a local folder, or the untouched model of a `base`
    run. Raises UserError if the weights in a local folder have changed.
    """
    for name, kind in MANIFESTS.items():
        if (folder / name).is_file():
            manifest = read(kind, folder / name)
            reference = manifest.reference
            if isinstance(reference, HubReference):
                return reference.hub, reference.revision
            if isinstance(reference, FolderReference):
                refuse_changed(reference, manifest.sha256)
                return reference.path, None
            break
    return str(folder), None


def refuse_changed(reference: FolderReference, sha256: str) -> None:
    """Raises UserError if the weights in a local folder have changed since they were referred to.

    Otherwise, results of different weights would have the same name. If only the times of the files differ, as in a
    copy, the contents are compared.
    """
    folder = Path(reference.path)
    if reference.weights in (None, weight_stamps(folder)) or folder_sha256(folder, WEIGHTS) == sha256:
        return
    raise UserError(
        f"model folder {folder}: its weights have changed since first use;"
        " give the new ones a folder and an entry of their own"
    )


def weight_stamps(folder: Path) -> dict[str, list[int]]:
    """Returns the size and the time of the last change of each weight file."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.glob(WEIGHTS))}
