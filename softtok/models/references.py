"""Finds where a model's files really are, and checks that they are what they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softtok.errors import UserError
from softtok.storage.files import WEIGHTS, folder_sha256, read_manifest
from softtok.storage.hub import locked
from softtok.storage.integrity import differing


def located(folder: Path) -> tuple[str, Path | str]:
    """Returns a model's name in messages, and the folder with its files, from the hub's cache if it is of the hub.

    Raises UserError if a file is not what it was when the model was made or first used.
    """
    name, commit, hashes = _follow(folder)
    if commit is None:
        return name, name
    files = locked(name, commit)
    if wrong := differing(files, hashes) if hashes else None:
        raise UserError(
            f"model {name}: {files / wrong} is damaged, as it is not what was fetched first;"
            f" remove the folder {files.parents[1]} and run snakemake again, which fetches it again"
        )
    return name, files


def resolve(folder: Path) -> tuple[str, str | None]:
    """Returns where the weights of a model or a run really are: (path or hub id, revision).

    Follows the small reference files that stand for a hub model, a local folder, or the untouched model of a `base`
    run. Raises UserError if the files in a local folder have changed.
    """
    return _follow(folder)[:2]


def _follow(folder: Path) -> tuple[str, str | None, Mapping[str, str]]:
    """Returns what `resolve` does, and the recorded hashes of a hub model's files."""
    for name in ("checkpoint.json", "model.json"):
        if not (folder / name).is_file():
            continue
        manifest = read_manifest(folder / name)
        reference = manifest.get("reference")
        if reference is None:
            refuse_damaged(folder, manifest)
            break
        if "hub" in reference:
            return reference["hub"], reference.get("revision"), manifest.get("files") or {}
        refuse_changed(folder, manifest)
        return _follow(Path(reference["path"]))
    return str(folder), None, {}


def refuse_damaged(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raises UserError if a file of a model or checkpoint that was made here is not what was written."""
    wrong = _differing(folder, manifest)
    if wrong is None:
        return
    saved = folder.parent / ".state" / "progress.pt"  # the saved weights are the same files, by hard links
    what = f"the folder {folder}" + (f" and {saved}" if saved.exists() else "")
    raise UserError(
        f"{folder / wrong} is damaged, as it is not what was written; remove {what} and run snakemake again"
    )


def refuse_changed(made: Path, manifest: Mapping[str, Any]) -> None:
    """Raises UserError if the files in a folder have changed since the manifest that refers to it was written.

    Otherwise, results of different weights would have the same name. `made` is the folder of the manifest.
    """
    folder = Path(manifest["reference"]["path"])
    if (folder / "model.json").is_file():
        known, found = manifest.get("sha256"), read_manifest(folder / "model.json").get("sha256")
        if known not in (None, found):
            raise UserError(f"{made} is of other weights than {folder} has now; remove {made} and run snakemake again")
        return
    wrong = _differing(folder, manifest) if folder.is_dir() else None
    if wrong is None:
        return
    what = "weights have" if wrong.endswith(WEIGHTS[1:]) else f"{wrong} has"
    raise UserError(
        f"model folder {folder}: its {what} changed since first use ({wrong});"
        " put the old file back, or give the new model a folder and an entry of its own"
    )


def _differing(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Returns the name of a file that is not as recorded; manifests of earlier versions record the weights alone."""
    if hashes := manifest.get("files"):
        return differing(folder, hashes)
    known = manifest.get("sha256")
    return WEIGHTS if known is not None and folder_sha256(folder, WEIGHTS) != known else None
