"""Finds the GGUF file that a model of config.yaml names: a file of its own, or the one in an installed package.

Nothing of a package is imported: that of a model may want a library for running it. Imports are few, because the
Snakefile looks for the files at every start.
"""

from __future__ import annotations

import base64
import os
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from softtok.errors import UserError
from softtok.storage.files import file_sha256

ENDING = ".gguf"
MAGIC = b"GGUF"
LFS_POINTER = b"version https://git-lfs"
READER = "gguf"
"""The package with which transformers reads such files."""


def gguf_file(file: str | None, package: str | None) -> Path:
    """Returns the path of a model's GGUF file. Raises UserError if it is not there, or does not begin like one."""
    return _found(file, package)[0]


def gguf_sha256(file: str | None, package: str | None) -> str:
    """Returns the SHA-256 of a model's GGUF file; that of a file in a package is taken from the package's own list.

    Raises UserError as `gguf_file` does.
    """
    path, sha256 = _found(file, package)
    return sha256 or file_sha256(path)


def refuse_without_reader() -> None:
    """Raises UserError if the package that reads GGUF files is not installed."""
    if find_spec(READER) is None:
        raise UserError(
            f"reading a GGUF file needs the package {READER}, which is not installed here; `make .venv/installed-gguf`,"
            f" or pip install --no-deps {READER}"
        )


def _found(file: str | None, package: str | None) -> tuple[Path, str | None]:
    """Returns the file with its SHA-256, None if that is recorded nowhere."""
    if package is None:
        found: tuple[Path, str | None] = (Path(os.path.expanduser(file or "")), None)
    else:
        found = _in_package(package)
    _refuse_other_file(found[0])
    return found


def _in_package(package: str) -> tuple[Path, str | None]:
    """Returns the one GGUF file in a package; it may be named as it is installed, or as it is imported."""
    listed, folders = _listed(package), _folders(package)
    if listed is None and not folders:
        raise UserError(f"the package {package} is not installed here; pip install --no-deps {package}")
    files = listed or dict.fromkeys(path for folder in folders for path in sorted(folder.rglob(f"*{ENDING}")))
    if len(files) != 1:
        names = ", ".join(sorted(path.name for path in files)[:3])
        held = f"{len(files)} GGUF files ({names}{', ...' if len(files) > 3 else ''})" if files else "no GGUF file"
        raise UserError(f"the package {package} holds {held}; name the file itself: `gguf: FILE`")
    ((path, sha256),) = files.items()
    return path, sha256


def _listed(package: str) -> dict[Path, str | None] | None:
    """Returns the GGUF files in a package's list of its files, with their SHA-256; None if it is not installed."""
    try:
        found = distribution(package)
    except PackageNotFoundError:
        return None
    files: dict[Path, str | None] = {}
    for entry in found.files or ():
        if entry.suffix == ENDING:
            recorded = entry.hash if entry.hash is not None and entry.hash.mode == "sha256" else None
            digest = None if recorded is None else base64.urlsafe_b64decode(f"{recorded.value}==").hex()
            files[Path(str(found.locate_file(entry)))] = digest
    return files


def _folders(package: str) -> list[Path]:
    """Returns the folders of an importable package; a dotted name would import its parent, so none is looked for."""
    name = package.replace("-", "_")
    spec = find_spec(name) if name.isidentifier() else None
    return [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]


def _refuse_other_file(path: Path) -> None:
    """Raises UserError if there is no file, or one that does not begin as a GGUF file does."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise UserError(f"the file {path} cannot be read ({error.strerror})") from error
    if start == LFS_POINTER:
        raise UserError(f"{path} is a pointer of Git LFS, not the file; run `git lfs pull`")
    if not start.startswith(MAGIC):
        begins = f"it begins with {start[:4].decode('latin-1')!r}" if start else "it is empty"
        raise UserError(f"{path} is no GGUF file, which would begin with {MAGIC.decode()!r}: {begins}")
