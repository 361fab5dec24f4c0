"""Finds where a model's weights really are, and checks that they have not changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softtok.errors import UserError
from softtok.storage.files import WEIGHTS, folder_sha256, read_manifest


def resolve(folder: Path) -> tuple[str, str | None]:
    """Returns where a model's or a run's weights really are: (path or hub id, revision).

    Follows the small reference files that stand for a hub model, a local folder, or the untouched model of a `base`
    run. Raises UserError if the weights in a local folder have changed.
    """
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
    """Raises UserError if the weights in a local folder have changed since the manifest was written.

    Otherwise, results of different weights would have the same name. If only the times of the files differ, as in a
    copy, the contents are compared.
    """
    folder, stamps = Path(manifest["reference"]["path"]), manifest["reference"].get("weights")
    if stamps in (None, weight_stamps(folder)) or folder_sha256(folder, WEIGHTS) == manifest["sha256"]:
        return
    raise UserError(
        f"model folder {folder}: its weights have changed since first use;"
        " give the new ones a folder and an entry of their own"
    )


def weight_stamps(folder: Path) -> dict[str, list[int]]:
    """Returns the size and the time of the last change of each weight file."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.glob(WEIGHTS))}
