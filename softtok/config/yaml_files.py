"""Reads YAML files into plain settings, in bounded time and memory, and refuses what reads other than it looks.

YAML lets a node hold itself or many copies of another one, reads `010` as 8 and `1:30` as 90, and takes the last of two
equal keys. So a file is looked at in three passes before it is turned into Python's values: its bytes, its nesting, its
nodes. `bounded` is the walk over nodes; `load.py` walks over settings with it that come from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from softtok.config.messages import at, config_error, cropped, shown
from softtok.errors import UserError

MOST_BYTES = 1_000_000
MOST_VALUES = 50_000
MOST_DEPTH = 50
"""Bounds of one file; the shipped config.yaml has 25 KB, 2,000 values and 6 levels."""

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TAG = "tag:yaml.org,2002:"
AS_THEY_LOOK = {
    "int": re.compile(r"[+-]?(0|[1-9][0-9]{0,17})"),
    "float": re.compile(r"[+-]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"),
    "bool": re.compile(r"(?i)true|false|yes|no|on|off"),
    "null": re.compile(r"(?i)~|null|"),
    "str": re.compile(r"(?s).*"),
    "merge": re.compile("<<"),
}
"""The scalars that mean what they show, by the type that YAML takes them for."""

T = TypeVar("T")
Where = tuple[str | int, ...]


class Place(NamedTuple):
    """A node with its key path, and the nodes that hold it."""

    where: Where
    node: Any
    above: tuple[int, ...]


def bounded(root: T, below: Callable[[T], Iterable[tuple[str | int, T]]]) -> Iterator[tuple[Where, T]]:
    """Yields a node and all that is below it, in order, with key paths; what is referred to twice comes twice.

    Raises UserError for a node that holds itself, for more than MOST_DEPTH levels, and for more than MOST_VALUES nodes.
    """
    pending, seen = [Place((), root, ())], 0
    while pending:
        where, node, above = pending.pop()
        seen += 1
        if id(node) in above:
            raise config_error(at(*where), "this holds itself; write it out, without the alias")
        if len(above) > MOST_DEPTH:
            raise config_error(at(*where), f"this is nested more than {MOST_DEPTH} levels deep")
        if seen + len(pending) > MOST_VALUES:
            raise config_error(
                at(*where[:1]),
                f"more than {MOST_VALUES:,} values (what an alias or `like:` copies counts each time); make it smaller",
            )
        yield where, node
        found = [Place((*where, key), item, (*above, id(node))) for key, item in below(node)]
        pending += reversed(found)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the content of a YAML file, unchecked but for its form. Raises UserError."""
    text = _text(path)
    try:
        _refuse_size(text, path)
        root = yaml.compose(text, Loader=LOADER)
        for where, node in bounded(root, _below):
            _check_node(where, node, path)
        raw = _constructed(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise config_error("", f"{path} is not YAML: {_reason(error)}") from None
    if not isinstance(raw, dict):
        raise config_error(str(path), "has no settings")
    return raw


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise config_error(str(path), error.strerror or str(error)) from None
    if len(content) > MOST_BYTES:
        raise config_error(str(path), f"has more than {MOST_BYTES:,} bytes; a configuration is smaller")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"{path} is not YAML: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        raise config_error("", what) from None


def _refuse_size(text: str, path: Path) -> None:
    """Raises UserError for what is nested too deeply or has too many values, before nodes are made.

    PyYAML makes nodes by recursion in C, which would end the process.
    """
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH or count > 2 * MOST_VALUES:
            what = f"is nested more than {MOST_DEPTH} levels deep" if depth > MOST_DEPTH else "has too many values"
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise config_error(f"{path}, line {line}", what)


def _below(node: yaml.Node | None) -> list[tuple[str | int, yaml.Node]]:
    if isinstance(node, yaml.SequenceNode):
        return list(enumerate(node.value))
    if isinstance(node, yaml.MappingNode):
        return [(key.value if isinstance(key, yaml.ScalarNode) else "?", value) for key, value in node.value]
    return []


def _check_node(where: Where, node: yaml.Node | None, path: Path) -> None:
    """Refuses a value, and the keys of a mapping, that YAML reads other than they look."""
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(where, node, path)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(where, [key for key, _ in node.value], path)
    if node is not None and not isinstance(node, yaml.ScalarNode) and node.tag not in (f"{TAG}map", f"{TAG}seq"):
        raise _mistake(where, node, path, f"a configuration has no {_tag(node)}")


def _check_keys(where: Where, keys: Sequence[yaml.Node], path: Path) -> None:
    lines: dict[str, int] = {}
    for key in keys:
        if not isinstance(key, yaml.ScalarNode):
            raise _mistake(where, key, path, "a key is a name, not a list or a mapping")
        _check_scalar((*where, key.value), key, path)
        line = key.start_mark.line + 1
        if key.value in lines:
            raise config_error(
                at(*where, key.value), f"this key appears twice in {path}, in lines {lines[key.value]} and {line}"
            )
        lines[key.value] = line


def _check_scalar(where: Where, node: yaml.ScalarNode, path: Path) -> None:
    kind = node.tag.removeprefix(TAG)
    looks = AS_THEY_LOOK.get(kind)
    if looks is not None and looks.fullmatch(node.value):
        return
    if kind in ("int", "float"):
        read, way = _number(node), "write it in plain digits, or in quotes if it is text"
    else:
        read, way = "a date" if kind == "timestamp" else _tag(node), "put it in quotes if it is text"
    raise _mistake(where, node, path, f"YAML reads {shown(node.value)} as {read}; {way}")


def _number(node: yaml.ScalarNode) -> str:
    """Returns what YAML takes a number for, in digits."""
    try:
        return shown(_constructed(node))
    except (yaml.YAMLError, ValueError):  # `!!int abc`, or more digits than Python reads
        return "a number"


def _mistake(where: Where, node: yaml.Node, path: Path, what: str) -> UserError:
    return config_error(at(*where), f"{what} ({path}, line {node.start_mark.line + 1})")


def _tag(node: yaml.Node) -> str:
    return cropped(node.tag.replace(TAG, "!!"))


def _constructed(root: yaml.Node | None) -> Any:
    """Returns the Python values of nodes that have been checked."""
    loader = LOADER("")
    try:
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return cropped(" ".join(str(error).split()), 200)
