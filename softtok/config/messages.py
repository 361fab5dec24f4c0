"""A mistake in `config.yaml`, or in a job's spec, as one line: where it is, what is wrong, and the nearest name that
would be right.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from softtok.errors import UserError

SHOWN = 12
"""Known names that a message lists at most when none of them is near."""
NAME_RULE = "a name is letters, digits, '.', '_' and '-', and starts with a letter or digit"


def at(*path: str | int) -> str:
    """A key path as people write it: studies.demo.grid[0].models."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def mistake(where: str, what: str, source: str = "config") -> UserError:
    """The error to raise; `source` is what holds the mistake."""
    return UserError(": ".join(filter(None, (source, where, " ".join(what.split())))))


def nearest(word: Any, known: Iterable[str]) -> str:
    """A hint to append: the nearest of `known`, else all of them."""
    names = list(known)
    folded = {name.casefold(): name for name in names}
    if close := get_close_matches(str(word).casefold(), folded, 1):
        return f"; did you mean {folded[close[0]]!r}?"
    return f"; known: {', '.join(names[:SHOWN]) or 'none'}{', ...' if len(names) > SHOWN else ''}"


def explain(error: ValidationError, root: type[BaseModel], source: str = "config") -> UserError:
    """Returns the first of pydantic's findings in plain words, with how many more there are."""
    found, *more = error.errors()
    path, expected, below = _follow(found["loc"], root)
    kind, value = found["type"], found["input"]
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    if kind == "extra_forbidden":
        what = f"unknown key{nearest(path[-1], expected)}"
    elif kind == "missing":
        what = "this key is missing"
    elif kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(found.get("ctx", {}).get("expected", "")))
        what = f"{shown} is not possible{nearest(value, choices)}"
    elif kind == "string_pattern_mismatch":
        what = f"{shown} is no name: {NAME_RULE}"
    elif kind == "string_type" and found["loc"][-1] == "[key]":
        path, what = (
            (*path[:-1], str(value)),
            f"YAML reads this name as {type(value).__name__} {value!r}: put it in quotes",
        )
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        what = f"{'nothing' if value is None else shown} stands here; it takes keys below it"
        if below:
            what += f": {', '.join(below[:SHOWN])}{', ...' if len(below) > SHOWN else ''}"
    elif kind == "too_short":
        what = "this is empty; it needs at least one entry" if not value else found["msg"]
    elif kind == "json_invalid":
        what = f"is not JSON ({found['ctx']['error']})"
    elif kind == "value_error":
        what = found["msg"].removeprefix("Value error, ")
        if key := re.match(r"(\w+): ", what):  # our own validators name the key first
            path, what = (*path, key[1]), what[key.end() :]
    else:
        what = f"{found['msg'].replace('Input should', 'the value should')}, not {shown}"
    others = {_follow(other["loc"], root)[0] for other in more} - {path}
    more_of_them = f" (and {len(others)} more mistake{'s' * (len(others) > 1)})" if others else ""
    return mistake(at(*path), what + more_of_them, source)


def _follow(loc: Sequence[str | int], root: type[BaseModel]) -> tuple[tuple[str | int, ...], list[str], list[str]]:
    """Key path of a pydantic location (without the names of union members), the keys known where it ends, and those
    that may stand below it.
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
    """Returns X for `X | None` and `Annotated[X, ...]`; for a wider union, the member that holds others (a union of
    models stays one).
    """
    while (origin := get_origin(kind)) in (Annotated, Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
        if origin is not Annotated and len(members) > 1 and not any(map(get_origin, members)):
            break
        kind = members[0] if origin is Annotated or len(members) == 1 else next(m for m in members if get_origin(m))
    return kind


def _tag(model: type[BaseModel]) -> Any:
    """Returns the value of `kind` by which a model is told from the others of its union."""
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def refuse_repeated_keys(path: Path) -> None:
    """YAML lets a later key silently replace an equal one above it; here that is a mistake. Raises UserError."""
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
                    raise mistake(
                        at(*where, key.value),
                        f"this key stands twice in {path}, in lines {lines[key.value]} and {line}",
                    )
                lines[key.value] = line
                pending.append(((*where, key.value), value))
