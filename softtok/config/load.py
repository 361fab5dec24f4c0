"""Reads config.yaml into a checked configuration, or says in one line what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from softtok.config.checks import check
from softtok.config.inherit import resolve
from softtok.config.messages import explain
from softtok.config.schema import Config
from softtok.config.trackers import check_trackers
from softtok.config.yaml_files import bounded, read_yaml


def load(raw: Mapping[str, Any], files: Sequence[str | Path] = (), requested: Sequence[str] = ()) -> Config:
    """Returns the checked configuration of the merged dict that Snakemake holds. Raises UserError.

    `files` are the YAML files that it was read from; their form is checked (`yaml_files.py`). `requested` are the words
    of the command line. The local files of the studies among them, or else of those of `run`, must exist, and the
    trackers of their trainings.
    """
    for file in files:
        read_yaml(Path(file))
    config = _checked(raw, files, requested)
    check_trackers(config, wanted(config, requested))
    return config


def read(paths: Path | Sequence[Path], requested: Sequence[str] = (), data_root: str | None = None) -> Config:
    """Returns the checked configuration of a YAML file, outside of Snakemake. Raises UserError.

    A later file overrides an earlier one key by key, as with Snakemake's `--configfile`; `data_root` overrides that of
    the files. `requested` is as in `load`.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    raw: dict[str, Any] = {}
    for file in files:
        raw = _updated(raw, read_yaml(file))
    return _checked(raw if data_root is None else raw | {"data_root": data_root}, files, requested)


def _checked(raw: Mapping[str, Any], files: Sequence[str | Path], requested: Sequence[str]) -> Config:
    """Returns the configuration of settings that were read from `files`."""
    _refuse_size(raw)
    if isinstance(root := raw.get("data_root"), str) and root:
        raw = {**raw, "data_root": str(Path(os.path.expanduser(root)))}
    resolved = resolve(raw)
    _refuse_size(resolved)
    try:
        config = Config.model_validate(resolved)
    except ValidationError as error:
        raise explain(error, Config) from None
    config._folders = tuple(dict.fromkeys(Path(file).parent for file in reversed(files))) or (Path(),)
    check(config, wanted(config, requested))
    return config


def wanted(config: Config, requested: Sequence[str]) -> list[str]:
    """Returns the studies among the words of a command line, or else those of `run`."""
    return [study for study in config.studies if study in requested] or config.run


def _refuse_size(settings: Mapping[str, Any]) -> None:
    """Raises UserError for settings that hold themselves, are nested too deeply, or are too many."""
    for _ in bounded(settings, _below):
        pass


def _below(value: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return [(str(key), item) for key, item in value.items()]
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _updated(raw: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `raw` updated by `own`, nested mappings key by key.

    Neither changes: an alias in a file makes two keys hold one mapping.
    """
    merged = dict(raw)
    for key, value in own.items():
        below = raw.get(key)
        merged[key] = _updated(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def schema_json() -> str:
    """Returns workflow/schemas/config.schema.json, which lets editors complete and check config.yaml."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    for section in schema["properties"].values():
        if "patternProperties" in section:  # sections of named entries
            section["additionalProperties"] = False
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
