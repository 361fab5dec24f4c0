"""Inheritance in config.yaml: with `like:` an entry starts from another one, so an ablation is one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softtok.config.messages import SHOWN, at, config_error, cropped, nearest, shown
from softtok.config.yaml_files import MOST_VALUES

INHERITING = ("models", "train_sets", "test_sets", "choice_sets", "training_modes", "inference_modes")
OWN = ("like", "paper")
"""Keys that are not inherited. An ablation is not the mode of the paper that it starts from."""
MOST_GENERATIONS = 100
"""Entries that may start from each other, one from the next."""


def resolve(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the raw configuration with every `like:` resolved.

    Raises UserError for a wrong `like:`. Other errors are left to validation.
    """
    resolved = dict(raw)
    for section in INHERITING:
        entries = raw.get(section)
        if isinstance(entries, dict):
            resolved[section] = _section(section, entries)
    return resolved


def _section(section: str, entries: Mapping[Any, Any]) -> dict[Any, Any]:
    """Returns the entries of a section with what they inherit."""
    found: dict[Any, Any] = {}
    generations: dict[Any, int] = {}
    keys = 0
    for name in entries:
        for heir in reversed(_chain(section, entries, name, found)):
            found[heir] = _inherited(entries[heir], found)
            generations[heir] = generations.get(_parent(entries[heir]), 0) + 1
            keys += len(found[heir]) if isinstance(found[heir], dict) else 1
            if generations[heir] > MOST_GENERATIONS:
                what = f"more than {MOST_GENERATIONS} entries start from each other, one from the next; shorten this"
                raise config_error(at(section, str(heir), "like"), what)
            if keys > MOST_VALUES:
                raise config_error(section, f"more than {MOST_VALUES:,} keys with what `like:` copies; make it smaller")
    return {name: found[name] for name in entries}


def _chain(section: str, entries: Mapping[Any, Any], name: Any, found: Mapping[Any, Any]) -> list[Any]:
    """Returns the entries to resolve for a name: it, the entry that it starts from, and so on up to a known one."""
    chain: dict[Any, None] = {}
    while name not in found:
        chain[name] = None
        where = at(section, str(name), "like")
        if (parent := _parent(entries[name])) is None:
            break
        if not isinstance(parent, str):
            raise config_error(where, f"takes the name of an entry, not {shown(parent)}; put a name in quotes")
        if parent in chain:
            circle = [*list(chain)[list(chain).index(parent) :], parent]
            raise config_error(where, f"is circular: {' -> '.join(map(cropped, circle[-SHOWN:]))}")
        if parent not in entries:
            known = [key for key in entries if isinstance(key, str) and key != name]
            raise config_error(where, f"there is no {shown(parent)} in {section}{nearest(parent, known)}")
        name = parent
    return list(chain)


def _parent(entry: Any) -> Any:
    return entry.get("like") if isinstance(entry, dict) else None


def _inherited(entry: Any, found: Mapping[Any, Any]) -> Any:
    """Returns an entry with what it inherits; the one that it starts from is in `found`."""
    if (name := _parent(entry)) is None:
        return entry
    if not isinstance(parent := found[name], dict):
        return parent
    own = {key: value for key, value in entry.items() if key != "like"}
    return merge({key: value for key, value in parent.items() if key not in OWN}, own)


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
