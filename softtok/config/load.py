"""Reads config.yaml into a checked configuration, or says in one line what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from softtok.config.checks import check
from softtok.config.inherit import resolve
from softtok.config.messages import explain, refuse_repeated_keys
from softtok.config.schema import Config
from softtok.errors import UserError


def load(raw: Mapping[str, Any], files: Sequence[str | Path] = (), requested: Sequence[str] = ()) -> Config:
    """Returns the checked configuration of the merged dict that Snakemake holds. Raises UserError.

    `files` are the YAML files that it was read from; they are searched for repeated keys. `requested` are the words of
    the command line. The local files of the studies among them, or else of those of `run`, must exist.
    """
    for file in files:
        refuse_repeated_keys(Path(file))
    if isinstance(raw.get("data_root"), str):
        raw = {**raw, "data_root": str(Path(raw["data_root"]).expanduser())}
    try:
        config = Config.model_validate(resolve(raw))
    except ValidationError as error:
        raise explain(error, Config) from None
    config._folders = tuple(dict.fromkeys(Path(file).parent for file in reversed(files))) or (Path(),)
    check(config, [study for study in config.studies if study in requested] or config.run)
    return config


def read(paths: Path | Sequence[Path], requested: Sequence[str] = (), data_root: str | None = None) -> Config:
    """Returns the checked configuration of a YAML file, outside of Snakemake. Raises UserError.

    A later file overrides an earlier one key by key, as with Snakemake's `--configfile`; `data_root` overrides that of
    the files. `requested` is as in `load`.
    """
    files = [paths] if isinstance(paths, Path) else list(paths)
    raw: dict[str, Any] = {}
    for file in files:
        _update(raw, read_yaml(file))
    return load(raw | ({"data_root": data_root} if data_root else {}), files, requested)


def _update(raw: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Updates `raw` in place, nested mappings key by key."""
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(raw.get(key), dict):
            _update(raw[key], value)
        else:
            raw[key] = value


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the content of a YAML file, unchecked. Raises UserError."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config: {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config: {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"config: {path}: has no settings")
    return raw


def schema_json() -> str:
    """Returns workflow/schemas/config.schema.json, which lets editors complete and check config.yaml."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    for section in schema["properties"].values():
        if "patternProperties" in section:  # sections of named entries
            section["additionalProperties"] = False
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
