"""Where a model's weights really are, and whether they are still what they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softtok.errors import UserError
from softtok.storage.files import WEIGHTS, folder_sha256, read_manifest


def resolve(folder: Path) -> tuple[str, str | None]:
    """Where a model's or a run's weights really are (path or hub id, revision): follows the small reference files that
    stand for a hub model, a user's folder, or the untouched base of a `base` run. Raises UserError where such a folder
    holds other weights than it did."""
    for name in ("checkpoint.json", "model.json"):
        if (folder / name).is_file():
            manifest = read_manifest(folder / name)
            reference = manifest.get("reference")
            if reference is None:
                break
            if "hub" in reference:
                return reference["hub"], reference.get("revision")
            refuse_changed(manifest)
            return resolve(Path(reference["path"]))
    return str(folder), None


def refuse_changed(manifest: Mapping[str, Any]) -> None:
    """Raises UserError where the weights in a folder of the user's are not those that the manifest was made of: results
    of both would stand under one name. Where only their times differ, as in a copy, their contents are compared."""
    folder, stamps = Path(manifest["reference"]["path"]), manifest["reference"].get("weights")
    if stamps in (None, weight_stamps(folder)) or folder_sha256(folder, WEIGHTS) == manifest["sha256"]:
        return
    raise UserError(
        f"model folder {folder}: its weights are others than when it was first used;"
        " give them a folder and an entry of their own"
    )


def weight_stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of the last change of each weight file."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.glob(WEIGHTS))}
