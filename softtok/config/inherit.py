"""Inheritance in config.yaml: with `like:` an entry starts from another one, so an ablation is one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softtok.config.messages import at, config_error, nearest

INHERITING = ("models", "train_sets", "test_sets", "choice_sets", "training_modes", "inference_modes")
OWN = ("like", "paper")
"""Keys that are not inherited. An ablation is not the mode of the paper that it starts from."""


def resolve(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the raw configuration with every `like:` resolved.

    Raises UserError for a wrong `like:`. Other errors are left to validation.
    """
    resolved = dict(raw)
    for section in INHERITING:
        entries = raw.get(section)
        if isinstance(entries, dict):
            resolved[section] = {name: _inherited(section, entries, name, ()) for name in entries}
    return resolved


def _inherited(section: str, entries: dict[str, Any], name: str, heirs: tuple[str, ...]) -> Any:
    entry = entries[name]
    if not isinstance(entry, dict) or not isinstance(parent := entry.get("like"), str):
        return entry
    where, chain = at(section, name, "like"), (*heirs, name)
    if parent in chain:
        raise config_error(where, f"is circular: {' -> '.join([*chain, parent])}")
    if parent not in entries:
        raise config_error(
            where, f"there is no {parent!r} in {section}{nearest(parent, [key for key in entries if key != name])}"
        )
    inherited = _inherited(section, entries, parent, chain)
    if not isinstance(inherited, dict):
        return inherited
    own = {key: value for key, value in entry.items() if key != "like"}
    return merge({key: value for key, value in inherited.items() if key not in OWN}, own)


def merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` updated by `own`, nested blocks key by key; a null in `own` drops the key.

    A revision is dropped if `own` names another repository.
    """
    merged = dict(base)
    if any(isinstance(own.get(key), str) and own[key] != base.get(key) for key in ("hub", "path")):
        merged.pop("revision", None)
    for key, value in own.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged
