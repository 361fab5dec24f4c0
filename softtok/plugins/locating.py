"""What runs when the configuration is read: finds a plug-in's file, checks its shape in the syntax tree, hashes it.

Nothing is imported.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from softtok.errors import UserError

CHOICE = re.compile(r"(?P<source>.+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Reference(BaseModel):
    """A user's code as a spec refers to it; `source` is a file, relative to the working folder, or a dotted module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"

    @property
    def is_file(self) -> bool:
        """Whether `source` is a path, not the name of a module."""
        return self.source.endswith(".py")


@dataclass(frozen=True)
class Form:
    """One way to call a function: with the `required` arguments by name, and the `optional` ones that it has.

    An `open` form passes further arguments by name that the configuration does not know, such as columns of a data set.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    open: bool = False

    def fits(self, arguments: Arguments) -> bool:
        """Whether a function with these arguments can be called in this form."""
        given = {*self.required, *self.optional}
        return arguments.named.issuperset(self.required) and (self.open or arguments.needed <= given)

    def __str__(self) -> str:
        shown = [*self.optional, *self.required, *(["**columns"] if self.open else [])]
        return f"({', '.join(shown)})"


@dataclass(frozen=True)
class Door:
    """What one key of the configuration accepts: built-in names, or code of a certain shape.

    A function must fit one of `forms`. If `methods` is given, a class is needed. Each of these methods that the class
    itself defines must take these arguments; a base class may define the others.
    """

    key: str
    built_in: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()
    methods: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def wanted(self) -> str:
        """The shape in words, for messages."""
        if self.methods:
            return "a class with " + ", ".join(f"{name}({', '.join(args)})" for name, args in self.methods.items())
        return " or ".join(f"a function {form}" for form in self.forms)


@dataclass(frozen=True)
class Arguments:
    """What can be passed to a function by name: all names, those without a default, and whether any name works."""

    named: frozenset[str]
    needed: frozenset[str]
    any_name: bool

    @classmethod
    def of(cls, function: ast.FunctionDef | ast.AsyncFunctionDef, skip: int = 0) -> Arguments:
        """Returns the arguments of a function in a syntax tree, without the first `skip` ones (`self`)."""
        found = function.args
        plain = [arg.arg for arg in (*found.posonlyargs, *found.args)]
        needed = plain[skip : len(plain) - len(found.defaults)]
        needed += [a.arg for a, default in zip(found.kwonlyargs, found.kw_defaults, strict=True) if default is None]
        named = {*plain[max(skip, len(found.posonlyargs)) :], *(arg.arg for arg in found.kwonlyargs)}
        return cls(frozenset(named), frozenset(needed), found.kwarg is not None)


def is_plugin(choice: str) -> bool:
    """Whether a choice names a user's code and not something built in."""
    return ":" in choice


def locate(choice: str, door: Door, folders: Sequence[Path] = (Path(),)) -> str | Reference:
    """Returns a built-in name as it is, or a reference to the code that `choice` names. Raises UserError.

    Relative paths start from `folders`, those of the configuration's files. The first folder with the file counts.
    """
    if not is_plugin(choice):
        if choice in door.built_in:
            return choice
        near = get_close_matches(choice, door.built_in, 1)
        known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(door.built_in) or 'none'}"
        raise UserError(f"{door.key}: {choice!r} is not possible; {known} (code of your own: FILE.py:NAME)")
    parts = CHOICE.fullmatch(choice)
    if parts is None:
        raise UserError(f"{door.key}: {choice!r} is not FILE.py:NAME or package.module:NAME")
    source, name = parts["source"], parts["name"]
    path = _file(source, folders, door.key) if source.endswith(".py") else module_file(source, door.key)
    content = read_source(path, door.key)
    _check_shape(definition(content, path, name, door.key), door, path)
    named = str(path) if source.endswith(".py") else source
    return Reference(source=named, name=name, sha256=hashlib.sha256(content).hexdigest())


def _file(source: str, folders: Sequence[Path], key: str) -> Path:
    """Returns the file, relative to the working folder unless it was given as an absolute path."""
    given = Path(os.path.expanduser(source))
    for folder in folders:
        path = folder / given
        if os.path.isfile(path):
            return path if given.is_absolute() else Path(os.path.relpath(path))
    places = " or ".join(sorted({str(folder.resolve()) for folder in folders}))
    raise UserError(f"{key}: there is no file {source!r} in {places}")


def module_file(module: str, key: str) -> Path:
    """Returns the source file of an installed module without importing its parents."""
    for entry in sys.path:
        stem = Path(entry or ".").joinpath(*module.split("."))
        for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
            if os.path.isfile(path):
                return path
    raise UserError(f"{key}: there is no module {module!r} with a source file on Python's path")


def read_source(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror}") from None


def definition(content: bytes, path: Path, name: str, key: str) -> ast.stmt:
    """Returns the last statement at top level that defines `name`."""
    try:
        tree = ast.parse(content, filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise UserError(f"{key}: {path}, line {line}: {getattr(error, 'msg', error)}") from None
    defined = {known: statement for statement in _top_level(tree.body) for known in _names(statement)}
    if name in defined:
        return defined[name]
    near = get_close_matches(name, defined, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it defines {', '.join(defined) or 'nothing'}"
    raise UserError(f"{key}: {path} defines no {name!r}; {hint}")


def _top_level(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields the statements that run at import, also those in branches of `if`, `try` and `with`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for branch in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(statement, branch, []))
            for handler in getattr(statement, "handlers", []):
                yield from _top_level(handler.body)


def _names(statement: ast.stmt) -> Iterator[str]:
    """Yields the names that a statement defines."""
    if isinstance(statement, Definition):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _check_shape(statement: ast.stmt, door: Door, path: Path) -> None:
    """Raises UserError for a definition that cannot be what the door takes.

    A name that is assigned, imported or decorated may have any signature. The dry check tests it.
    """
    if not isinstance(statement, Definition) or statement.decorator_list:
        return
    at = f"{door.key}: {path}, line {statement.lineno}: {statement.name}"
    if isinstance(statement, ast.ClassDef):
        if not door.methods:
            raise UserError(f"{at} is a class; {door.key} takes {door.wanted}")
        _check_methods(statement, door, path)
    elif isinstance(statement, ast.AsyncFunctionDef) or door.methods:
        raise UserError(f"{at} is {'a' if door.methods else 'an async'} function; {door.key} takes {door.wanted}")
    elif not any(form.fits(Arguments.of(statement)) for form in door.forms):
        raise UserError(f"{at}({ast.unparse(statement.args)}) has other arguments; {door.key} takes {door.wanted}")


def _check_methods(statement: ast.ClassDef, door: Door, path: Path) -> None:
    own = {method.name: method for method in statement.body if isinstance(method, ast.FunctionDef)}
    for name, arguments in door.methods.items():
        method = own.get(name)
        if method is None and not statement.bases:
            raise UserError(
                f"{door.key}: {path}, line {statement.lineno}: class {statement.name} has no method {name};"
                f" {door.key} takes {door.wanted}"
            )
        # A static method has no `self`. The dry check tests methods with other decorators.
        if method is not None and not method.decorator_list:
            form = Form(required=arguments)
            if not form.fits(Arguments.of(method, skip=1)):
                raise UserError(
                    f"{door.key}: {path}, line {method.lineno}: {statement.name}.{name} takes"
                    f" ({ast.unparse(method.args)}) and is called with ({', '.join(arguments)})"
                )
