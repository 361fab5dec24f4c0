"""Writes and reads what a training run saves in `.state/`, in a way that detects damaged files."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from softtok.errors import UserError
from softtok.models.language_model import LanguageModel
from softtok.storage.files import atomic
from softtok.storage.integrity import differing, file_hashes
from softtok.storage.retries import note_step


@contextlib.contextmanager
def room(folder: Path, needed: int) -> Iterator[None]:
    """Turns errors of a block that writes `needed` bytes below `folder` into a UserError about the disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # PyTorch hides the system's error behind its own: "inline_container.cc: unexpected pos 640 vs 598".
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        free = shutil.disk_usage(folder).free
        raise UserError(
            f"{folder}: cannot be written ({reason}); it takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free;"
            " make room and run snakemake again, which resumes from the last save"
        ) from error


def write_progress(path: Path, progress: dict[str, Any], needed: int) -> None:
    """Replaces the whole file; `needed` is its approximate size in bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with room(path.parent, needed), atomic(path) as temporary:
        torch.save(progress, temporary)
    with room(path.parent, needed):
        note_step(path.parent, progress["step"])


def read_progress(path: Path) -> dict[str, Any] | None:
    """Returns what `write_progress` wrote; None if there is no file, or a damaged one, which is renamed."""
    if not path.exists():
        return None
    if what := _damage(path):
        aside = path.with_suffix(".damaged")
        os.replace(path, aside)
        print(f"softtok: {path} is damaged ({what}); kept as {aside.name}; starting from step 0", file=sys.stderr)
        return None
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def _damage(path: Path) -> str:
    """Returns what is wrong with a file of `torch.save`, if anything; PyTorch does not test its checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # a damaged table of contents fails in many ways
        return str(error) or type(error).__name__
    return f"wrong checksum of {wrong}" if wrong else ""


def write_weights(folder: Path, lm: LanguageModel) -> dict[str, str]:
    """Writes the working copy as a plain Hugging Face folder; returns the hashes of its files by name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(parameter.nbytes for parameter in lm.model.parameters())
    with room(folder.parent, needed), atomic(folder) as temporary:
        lm.model.save_pretrained(temporary)
        lm.tokenizer.save_pretrained(temporary)
        return file_hashes(temporary)


def refuse_damaged(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raises UserError unless the saved weights and the tokenizer in `folder` are those that were saved.

    The checkpoint's files are hard links to these, so both would be damaged.
    """
    if differing(folder, hashes) is not None:
        raise UserError(
            f"{folder}: these are not the weights that were saved, so the checkpoint cannot be made from them;"
            f" remove {folder.parent / 'progress.pt'} and run snakemake again, which trains this run again"
        )


def hard_linked_copy(folder: Path, target: Path) -> None:
    """Makes `target` a folder of hard links to the files of `folder`, or of copies if the file system has no links."""
    with atomic(target) as temporary:
        shutil.copytree(folder, temporary, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
