"""Compares the files of a model's folder with the hashes that were recorded when they were written."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from softtok.storage.files import WEIGHTS, content_hash, file_sha256

# What decides how a model and its tokenizer work. Other files of a user's folder may change.
MODEL_FILES = (
    *(WEIGHTS, "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model"),
)


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file in a folder that matches `MODEL_FILES`, by name."""
    return {path.name: file_sha256(path) for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})


def weights_sha256(hashes: Mapping[str, str]) -> str:
    """Returns the identity of a model from the hashes of its files, as `folder_sha256` does from its weights."""
    return content_hash({name: digest for name, digest in hashes.items() if fnmatch(name, WEIGHTS)}, digits=64)


def differing(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """Returns the name of a file in a folder that is not as recorded, is missing or is new; None if all are the same.

    Names are compared first, since that costs nothing.
    """
    names = {path.name for path in _files(folder)}
    if other := sorted(names ^ set(hashes)):
        return other[0]
    return next((name for name, digest in hashes.items() if file_sha256(folder / name) != digest), None)
