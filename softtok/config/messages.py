"""Configuration errors in one line: where the mistake is, what is wrong, and the nearest name that would be right."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from softtok.errors import UserError

MOST_NAME = 100
"""Characters of a name at most: names are parts of the names of files."""
SHOWN = 12
"""How many known names a message lists at most if none of them is near."""
LONGEST = 60
"""Characters of a value or a key that a message shows at most."""
LONGEST_MESSAGE = 600
NAME_RULE = "a name is letters (a to z, A to Z), digits, '.', '_' and '-', and starts with a letter or digit"


def cropped(text: str, longest: int = LONGEST) -> str:
    """Returns the beginning of a text, if all of it is too long for a message."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def shown(value: Any, longest: int = LONGEST) -> str:
    """Returns a value as messages show it."""
    try:
        return cropped(repr(value), longest)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def at(*path: str | int) -> str:
    """Returns a key path as people write it: studies.demo.grid[0].models."""
    keys = [f"[{key}]" if isinstance(key, int) else f".{cropped(str(key))}" for key in path]
    return "".join(keys if len(keys) <= SHOWN else [*keys[:SHOWN], "..."]).removeprefix(".")


def config_error(where: str, what: str, source: str = "config") -> UserError:
    """Returns the error to raise; `source` is what holds the mistake.

    A character that would break the line, or that cannot be seen, is written as its escape.
    """
    text = ": ".join(filter(None, (source, where, cropped(" ".join(what.split()), LONGEST_MESSAGE))))
    return UserError("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


def nearest(word: Any, known: Iterable[str]) -> str:
    """Returns a hint to append: the nearest of `known`, else the first of them."""
    names = [name for name in known if len(name) <= MOST_NAME]
    folded = {name.casefold(): name for name in names}
    if len(str(word)) <= MOST_NAME and (close := get_close_matches(str(word).casefold(), folded, 1)):
        return f"; did you mean {folded[close[0]]!r}?"
    listed = ", ".join(map(cropped, names[:SHOWN]))
    return f"; known: {listed or 'none'}{', ...' if len(names) > SHOWN else ''}"


def look_alikes(text: str) -> str:
    """Returns a hint to append: the first character that is no plain letter, though it may look like one."""
    strange = next((c for c in text if not c.isascii()), None)
    return "" if strange is None else f" (it holds U+{ord(strange):04X}, which is not a letter of ASCII)"


def explain(error: ValidationError, root: type[BaseModel], source: str = "config") -> UserError:
    """Returns the first of pydantic's findings in plain words, and how many more there are.

    If a key is missing and another one beside it is unknown, the latter comes first: it may be the former, misspelt.
    """
    first, *more = sorted(error.errors(), key=partial(_rank, error.errors()[0]))
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
        return shown(self.value)


def _rank(first: ErrorDetails, other: ErrorDetails) -> bool:
    """Whether a finding comes after those that tell more than `first` does."""
    misspelt = first["type"] == "missing" and other["type"] == "extra_forbidden"
    return not (misspelt and other["loc"][:-1] == first["loc"][:-1])


def _is_name(error: ErrorDetails) -> bool:
    """Whether a finding is about a name that YAML did not read as text."""
    return error["type"] == "string_type" and error["loc"][-1] == "[key]"


def _in_words(found: Finding) -> str:
    """Returns what is wrong, in plain words."""
    if _is_name(found.error):
        return f"YAML reads this name as {type(found.value).__name__} {found.shown}: put it in quotes"
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


def _unknown(found: Finding) -> str:
    key = str(found.error["loc"][-1])
    return f"unknown key{look_alikes(key)}{nearest(key, found.known)}"


def _no_text(found: Finding) -> str:
    what = f"the value should be a valid string, not {found.shown}"
    if found.value is None or isinstance(found.value, list | dict):
        return what
    return f"{what}: YAML reads it as {type(found.value).__name__}; put it in quotes"


PHRASES: Mapping[str, Callable[[Finding], str]] = {
    "extra_forbidden": _unknown,
    "invalid_key": lambda found: f"a key is a name, not {found.shown}",
    "string_type": _no_text,
    "string_too_long": lambda found: f"this name has {len(found.value)} characters; at most {MOST_NAME} are possible",
    "missing": lambda found: "this key is missing",
    "literal_error": _impossible,
    "string_pattern_mismatch": lambda found: f"{found.shown} is not a name{look_alikes(found.value)}: {NAME_RULE}",
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
        if (member := _member(kind, part)) is not None:
            kind = member
            continue
        kind = _plain(kind)
        if part == "[key]":  # the name itself is wrong
            continue
        if get_origin(kind) in (Union, types.UnionType):  # of models, where pydantic names the one that it tried
            kind = next((member for member in get_args(kind) if part in (member.__name__, _tag(member))), None)
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


def _member(kind: Any, part: str | int) -> Any:
    """Returns the model of this name beside the list in `list[X] | Y`; None if it is not meant."""
    members = list(_members(kind))
    if not any(get_origin(member) is list for member in members):
        return None
    return next((one for one in members if getattr(one, "model_fields", None) and one.__name__ == part), None)


def _members(kind: Any) -> Iterator[Any]:
    """Yields the types that a union is made of, also within others."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _members(get_args(kind)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind


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
