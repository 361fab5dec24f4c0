"""Configuration errors in one line: where the mistake is, what is wrong, and the nearest name that would be right."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from softtok.errors import UserError

SHOWN = 12
"""How many known names a message lists at most if none of them is near."""
NAME_RULE = "a name is letters, digits, '.', '_' and '-', and starts with a letter or digit"


def at(*path: str | int) -> str:
    """Returns a key path as people write it: studies.demo.grid[0].models."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def config_error(where: str, what: str, source: str = "config") -> UserError:
    """Returns the error to raise; `source` is what holds the mistake."""
    return UserError(": ".join(filter(None, (source, where, " ".join(what.split())))))


def nearest(word: Any, known: Iterable[str]) -> str:
    """Returns a hint to append: the nearest of `known`, else all of them."""
    names = list(known)
    folded = {name.casefold(): name for name in names}
    if close := get_close_matches(str(word).casefold(), folded, 1):
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; known: {', '.join(names[:SHOWN]) or 'none'}{', ...' if len(names) > SHOWN else ''}"


def explain(error: ValidationError, root: type[BaseModel], source: str = "config") -> UserError:
    """Returns the first of pydantic's findings in plain words, and how many more there are."""
    first, *more = error.errors()
    where, known, below = _follow(first["loc"], root)
    what = _in_words(Finding(first, known, below))
    if first["type"] == "value_error" and (key := re.match(r"(\w+): ", what)):  # our own validators name the key first
        where, what = (*where, key[1]), what[key.end() :]
    elif _is_name(first):
        where = (*where[:-1], str(first["input"]))
    others = {_follow(other["loc"], root)[0] for other in more} - {where}
    more_of_them = f" (and {len(others)} more mistake{'s' * (len(others) > 1)})" if others else ""
    return config_error(at(*where), what + more_of_them, source)


class Finding(NamedTuple):
    """One of pydantic's findings, with the keys that are known where it is, and those that may be below it."""

    error: ErrorDetails
    known: list[str]
    below: list[str]

    @property
    def value(self) -> Any:
        return self.error["input"]

    @property
    def shown(self) -> str:
        text = repr(self.value)
        return text if len(text) <= 60 else f"{text[:57]}..."


def _is_name(error: ErrorDetails) -> bool:
    """Whether a finding is about a name that YAML did not read as text."""
    return error["type"] == "string_type" and error["loc"][-1] == "[key]"


def _in_words(found: Finding) -> str:
    """Returns what is wrong, in plain words."""
    if _is_name(found.error):
        return f"YAML reads this name as {type(found.value).__name__} {found.value!r}: put it in quotes"
    phrase = PHRASES.get(found.error["type"])
    if phrase is not None:
        return phrase(found)
    return f"{found.error['msg'].replace('Input should', 'the value should')}, not {found.shown}"


def _impossible(found: Finding) -> str:
    choices = re.findall(r"'([^']*)'", str(found.error.get("ctx", {}).get("expected", "")))
    return f"{found.shown} is not possible{nearest(found.value, choices)}"


def _no_mapping(found: Finding) -> str:
    keys = f": {', '.join(found.below[:SHOWN])}{', ...' if len(found.below) > SHOWN else ''}" if found.below else ""
    return f"{'nothing' if found.value is None else found.shown} stands here; it takes keys below it{keys}"


def _too_short(found: Finding) -> str:
    return "this is empty; it needs at least one entry" if not found.value else found.error["msg"]


PHRASES: Mapping[str, Callable[[Finding], str]] = {
    "extra_forbidden": lambda found: f"unknown key{nearest(found.error['loc'][-1], found.known)}",
    "missing": lambda found: "this key is missing",
    "literal_error": _impossible,
    "string_pattern_mismatch": lambda found: f"{found.shown} is not a name: {NAME_RULE}",
    "model_type": _no_mapping,
    "model_attributes_type": _no_mapping,
    "dict_type": _no_mapping,
    "too_short": _too_short,
    "json_invalid": lambda found: f"is not JSON ({found.error['ctx']['error']})",
    "value_error": lambda found: found.error["msg"].removeprefix("Value error, "),
}
"""What each type of pydantic's findings says in plain words."""


def _follow(loc: Sequence[str | int], root: type[BaseModel]) -> tuple[tuple[str | int, ...], list[str], list[str]]:
    """Returns the key path of a pydantic location, the keys known where it ends, and those that may be below it.

    The names of union members, which pydantic puts into its locations, are left out.
    """
    path: list[str | int] = []
    known: list[str] = []
    kind: Any = root
    for part in loc:
        kind = _plain(kind)
        if part == "[key]":  # the name itself is wrong
            continue
        if get_origin(kind) in (Union, types.UnionType):  # of models, where pydantic names the one that it tried
            kind = next(member for member in get_args(kind) if part in (member.__name__, _tag(member)))
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            known = list(kind.model_fields)
            path.append(part)
            kind = kind.model_fields[str(part)].annotation if part in kind.model_fields else None
        elif get_origin(kind) is dict or (get_origin(kind) is list and isinstance(part, int)):
            path.append(part if get_origin(kind) is list else str(part))
            kind = get_args(kind)[-1]
    kind = _plain(kind)
    below = list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
    return tuple(path), known, below


def _plain(kind: Any) -> Any:
    """Returns X for `X | None` and `Annotated[X, ...]`, and for a wider union the member that holds others.

    A union of models is returned as it is.
    """
    while (origin := get_origin(kind)) in (Annotated, Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
        if origin is not Annotated and len(members) > 1 and not any(map(get_origin, members)):
            break
        kind = members[0] if origin is Annotated or len(members) == 1 else next(m for m in members if get_origin(m))
    return kind


def _tag(member: Any) -> Any:
    """Returns the value of `kind`, which distinguishes a model from the others of its union; None for other types."""
    fields = getattr(member, "model_fields", {})
    return fields["kind"].default if "kind" in fields else None


def refuse_repeated_keys(path: Path) -> None:
    """Raises UserError if a key is repeated, where YAML would silently take the last one."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    pending: list[tuple[tuple[str | int, ...], Any]] = [
        ((), yaml.compose(path.read_text(encoding="utf-8"), Loader=loader))
    ]
    while pending:
        where, node = pending.pop()
        if isinstance(node, yaml.SequenceNode):
            pending += [((*where, place), item) for place, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise config_error(
                        at(*where, key.value),
                        f"this key appears twice in {path}, in lines {lines[key.value]} and {line}",
                    )
                lines[key.value] = line
                pending.append(((*where, key.value), value))
