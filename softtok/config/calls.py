"""With which configuration the workflow last began a study, noted below the folder of results.

`snakemake --configfile mine.yaml` and `--config data_root=FOLDER` are part of what a study is: without them, its jobs
would have other names. Commands that look at a study's results find them here, so that nobody has to give them again.
The files and `data_root` are noted as absolute paths. Other paths inside of the files start where they always do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from softtok.storage.files import write_text

CALLS = ".calls"
CONFIG = Path("config.yaml")


def note_call(results: Path, studies: Iterable[str], files: Sequence[str | Path], settings: Mapping[str, Any]) -> None:
    """Notes the configuration files that a study begins with, and the settings that override theirs.

    The paths are absolute: whoever looks at the results may do so from another folder.
    """
    folder = results / CALLS
    settings = dict(settings)
    if isinstance(root := settings.get("data_root"), str) and root:
        settings["data_root"] = os.path.abspath(os.path.expanduser(root))
    for study in studies:
        named = [os.path.abspath(file) for file in files]
        if settings:
            own = folder / f"{study}.yaml"
            write_text(own, json.dumps(settings, default=str) + "\n")  # JSON is YAML, too
            named.append(os.path.abspath(own))
        write_text(folder / f"{study}.json", json.dumps(named) + "\n")


def begun(results: Path) -> list[str]:
    """Returns the studies that the workflow has begun in a folder of results, the last one first."""
    notes = sorted((results / CALLS).glob("*.json"), key=lambda note: note.stat().st_mtime, reverse=True)
    return [note.stem for note in notes]


def files_of(results: Path, study: str | None) -> list[Path]:
    """Returns the configuration files with which a study was last begun; config.yaml if it was not, or one is gone."""
    try:
        named = json.loads((results / CALLS / f"{study}.json").read_text(encoding="utf-8"))
        found = [Path(file) for file in named]
    except (OSError, ValueError, TypeError):
        return [CONFIG]
    return found if found and all(file.is_file() for file in found) else [CONFIG]
