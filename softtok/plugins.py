"""A user's own code behind a door: a reward, a data adapter, a token mode, an objective or a figure.

A choice is a built-in name, `FILE.py:NAME` (a path relative to the configuration file) or `package.module:NAME` (an
installed module). It is handled in three places:

    locate     when the configuration is read: finds the file, checks name and arguments in its syntax tree, hashes it.
               Nothing is imported.
    load       in a job, in each process that needs it: refuses a file that has changed since, then imports it.
    blaming    around every call: whatever the code raises becomes one line that names file and line.

A `Reference` is part of the spec, so an edited file is another result. What the file imports is not hashed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import math
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from importlib.machinery import ModuleSpec, SourceFileLoader
from numbers import Real
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from softtok.errors import UserError

C = TypeVar("C")

CHOICE = re.compile(r"(?P<source>.+\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Reference(BaseModel):
    """A user's code as a spec names it: `source` is a file, relative to the working folder, or a dotted module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"

    @property
    def is_file(self) -> bool:
        """Whether `source` is a path and not a module's name."""
        return self.source.endswith(".py")


@dataclass(frozen=True)
class Form:
    """One way to call a function: with `required` arguments by name, and with `optional` ones where it has them.

    An `open` form hands over further arguments by name, which the configuration does not know (a data set's columns).
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
    """What may stand at one key of the configuration: built-in names, or code of a certain shape.

    A function fits one of `forms`. Where `methods` is given, a class is wanted: each of these methods, where the class
    itself defines it, takes these arguments (a base class may bring the others).
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
    """What a function can be called with by name: all names, those without a default, and whether any name will do."""

    named: frozenset[str]
    needed: frozenset[str]
    any_name: bool

    @classmethod
    def of(cls, function: ast.FunctionDef | ast.AsyncFunctionDef, skip: int = 0) -> Arguments:
        """Those of a syntax tree; `skip` leaves out `self`."""
        found = function.args
        plain = [arg.arg for arg in (*found.posonlyargs, *found.args)]
        needed = plain[skip : len(plain) - len(found.defaults)]
        needed += [a.arg for a, default in zip(found.kwonlyargs, found.kw_defaults, strict=True) if default is None]
        named = {*plain[max(skip, len(found.posonlyargs)) :], *(arg.arg for arg in found.kwonlyargs)}
        return cls(frozenset(named), frozenset(needed), found.kwarg is not None)


# ---- when the configuration is read: nothing is imported ----


def is_plugin(choice: str) -> bool:
    """Whether a choice names code of the user's own and not something built in."""
    return ":" in choice


def locate(choice: str, door: Door, folders: Sequence[Path] = (Path(),)) -> str | Reference:
    """A built-in name as it is, or a reference to the code that `choice` names. Raises UserError, one line.

    `folders`: where paths start; those of the configuration's files. The first that has the file counts.
    """
    if not is_plugin(choice):
        if choice in door.built_in:
            return choice
        near = get_close_matches(choice, door.built_in, 1)
        known = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(door.built_in) or 'none'}"
        raise UserError(f"{door.key}: {choice!r} is not possible; {known}, or code of your own as FILE.py:NAME")
    parts = CHOICE.fullmatch(choice)
    if parts is None:
        raise UserError(f"{door.key}: {choice!r} is not FILE.py:NAME or package.module:NAME")
    source, name = parts["source"], parts["name"]
    path = _file(source, folders, door.key) if source.endswith(".py") else _module_file(source, door.key)
    content = _content(path, door.key)
    _check_shape(_definition(content, path, name, door.key), door, path)
    named = str(path) if source.endswith(".py") else source
    return Reference(source=named, name=name, sha256=hashlib.sha256(content).hexdigest())


def _file(source: str, folders: Sequence[Path], key: str) -> Path:
    """The file, relative to the working folder unless it was given as an absolute path."""
    given = Path(source).expanduser()
    for folder in folders:
        path = folder / given
        if path.is_file():
            return path if given.is_absolute() else Path(os.path.relpath(path))
    places = " or ".join(sorted({str(folder.resolve()) for folder in folders}))
    raise UserError(f"{key}: there is no file {source!r} in {places}")


def _module_file(module: str, key: str) -> Path:
    """The source file of an installed module, found without importing its parents."""
    for entry in sys.path:
        stem = Path(entry or ".").joinpath(*module.split("."))
        for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")):
            if path.is_file():
                return path
    raise UserError(f"{key}: there is no module {module!r} with a source file on Python's path")


def _content(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror}") from None


def _definition(content: bytes, path: Path, name: str, key: str) -> ast.stmt:
    """The last statement at top level that defines `name`."""
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
    """Statements that run at import, those in the branches of `if`, `try` and `with` too."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With):
            for branch in ("body", "orelse", "finalbody"):
                yield from _top_level(getattr(statement, branch, []))
            for handler in getattr(statement, "handlers", []):
                yield from _top_level(handler.body)


def _names(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement defines."""
    if isinstance(statement, Definition):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _check_shape(statement: ast.stmt, door: Door, path: Path) -> None:
    """Raises UserError where a definition cannot be what the door wants.

    What is assigned, imported or decorated may have any signature: the dry check tells.
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


def _check_methods(definition: ast.ClassDef, door: Door, path: Path) -> None:
    own = {method.name: method for method in definition.body if isinstance(method, ast.FunctionDef)}
    for name, arguments in door.methods.items():
        method = own.get(name)
        if method is None and not definition.bases:
            raise UserError(
                f"{door.key}: {path}, line {definition.lineno}: class {definition.name} has no method {name};"
                f" {door.key} takes {door.wanted}"
            )
        # A static method has no `self`; with other decorators the dry check tells.
        if method is not None and not method.decorator_list:
            form = Form(required=arguments)
            if not form.fits(Arguments.of(method, skip=1)):
                raise UserError(
                    f"{door.key}: {path}, line {method.lineno}: {definition.name}.{name} takes"
                    f" ({ast.unparse(method.args)}) and is called with ({', '.join(arguments)})"
                )


# ---- in a job ----


@dataclass(frozen=True)
class Plugin:
    """A user's code as it was when the job began: its file's content goes to every process of the job.

    So an edit while a job runs changes nothing in it, and a process that starts later runs the same code.
    """

    reference: Reference
    path: str
    content: bytes

    @cached_property
    def line(self) -> int:
        """The line where the name is defined."""
        return _definition(self.content, Path(self.path), self.reference.name, str(self.reference)).lineno

    def load(self) -> Any:
        """What the name stands for, its file imported (once in each process). Raises UserError, one line."""
        process = os.getpid()
        with blaming(self, "while it is imported"):
            module = _import_file(self) if self.reference.is_file else _import_module(self)
            found = getattr(module, self.reference.name)
        if os.getpid() != process:  # the file forked: only one process may go on with the job
            os._exit(0)
        return found

    def fault(self, what: str) -> UserError:
        """An error of the code that raises nothing, such as a wrong return value."""
        return UserError(f"{self.path}, line {self.line}: {self.reference.name} {what}")


def read(reference: Reference) -> Plugin:
    """The code that a spec refers to, not yet imported. Raises UserError where it is gone or has changed."""
    source = reference.source
    path = Path(source) if reference.is_file else _module_file(source, str(reference))
    content = _content(path, str(reference))
    if hashlib.sha256(content).hexdigest() != reference.sha256:
        raise UserError(
            f"{path} has changed since the configuration was read; run snakemake again, which reads it anew"
        )
    return Plugin(reference, str(path), content)


def load(reference: Reference) -> Any:
    """Returns what a reference names: `read`, then `Plugin.load`."""
    return read(reference).load()


def load_class(reference: Reference, base: type[C]) -> type[C]:
    """Returns the class that a reference names. Raises UserError, one line, where it is not a kind of `base`."""
    plugin = read(reference)
    found = plugin.load()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise plugin.fault(f"is {shown(found)}, not a subclass of {base.__module__}.{base.__name__}")
    return found


@contextmanager
def blaming(plugin: Plugin, doing: str) -> Iterator[None]:
    """Turns whatever the user's code raises inside into one line: file, line, exception and what was being done."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(blame(plugin, error, doing)) from error


def blame(plugin: Plugin, error: BaseException, doing: str) -> str:
    """One line about an exception: the last line of the user's own file that was on its way."""
    path = os.path.abspath(plugin.path)
    lines = [
        number
        for frame, number in traceback.walk_tb(error.__traceback__)
        if os.path.abspath(frame.f_code.co_filename) == path
    ]
    if isinstance(error, SyntaxError) and error.filename and os.path.abspath(error.filename) == path:
        lines.append(error.lineno or 1)
    where = f"{plugin.path}, line {lines[-1]}" if lines else f"{plugin.path}, line {plugin.line}"
    said = " ".join(str(error).split())
    shown = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{where}: {plugin.reference.name} raises {shown} {doing}"


def number(plugin: Plugin, value: object, where: str) -> bool | float:
    """A returned bool or finite number, NumPy's and PyTorch's scalars too. Raises UserError for anything else."""
    plain = value
    if not isinstance(value, Real) and callable(item := getattr(value, "item", None)):
        with suppress(Exception):  # of an array with more than one entry: told below
            plain = item()
    if isinstance(plain, bool):
        return plain
    if not isinstance(plain, Real):
        raise plugin.fault(f"returns {shown(value)} {where}, not a number")
    if not math.isfinite(plain):
        raise plugin.fault(f"returns {plain} {where}, not a finite number")
    return float(plain)


def shown(value: object) -> str:
    """A value as messages show it, on one line and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Loader(SourceFileLoader):
    """Imports content that was read and hashed before: no second reading, and no stale bytecode."""

    def __init__(self, module: str, plugin: Plugin) -> None:
        super().__init__(module, os.path.abspath(plugin.path))
        self.content = plugin.content

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.content, self.path, "exec", dont_inherit=True)


def _import_file(plugin: Plugin) -> ModuleType:
    """The module of a file, under a name that only this path and content have, so that pickle finds it again."""
    path = os.path.abspath(plugin.path)
    digest = hashlib.sha256(path.encode() + b"\0" + plugin.content).hexdigest()[:16]
    name = f"softtok_plugin_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = ModuleSpec(name, _Loader(name, plugin), origin=path)
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    try:
        with _beside(os.path.dirname(path)):
            spec.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    return module


_SIBLINGS: dict[str, dict[str, ModuleType]] = {}
"""Modules that users' files import from their own folder, by folder and name."""


@contextmanager
def _beside(folder: str) -> Iterator[None]:
    """Lets a user's file import its neighbours, also where another folder has a file of the same name.

    The folder comes first on Python's path meanwhile, as for a script. It then stays there as the last entry, for
    imports inside functions.
    """
    importlib.invalidate_caches()
    if folder in sys.path and folder not in _SIBLINGS:  # its modules are everybody's
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
        return
    for name in [name for other, modules in _SIBLINGS.items() if other != folder for name in modules]:
        sys.modules.pop(name, None)
    sys.modules.update(_SIBLINGS.get(folder, {}))
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)
        fresh = {name: sys.modules[name] for name in set(sys.modules) - before if _lies_in(folder, name)}
        _SIBLINGS.setdefault(folder, {}).update(fresh)


def _lies_in(folder: str, name: str) -> bool:
    """Whether a module, or its package, stands right in this folder (not further down, as in an environment)."""
    top = name.partition(".")[0]
    if top == "softtok" or top not in sys.modules:
        return False
    package = os.path.join(folder, top)
    files = (f"{package}.py", os.path.join(package, "__init__.py"))
    return getattr(sys.modules[top], "__file__", None) in files or package in getattr(sys.modules[top], "__path__", ())


def _import_module(plugin: Plugin) -> ModuleType:
    """An installed module, imported as usual; another file of the same name that was imported before is refused."""
    importlib.invalidate_caches()
    module = importlib.import_module(plugin.reference.source)
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, plugin.path):
        raise UserError(f"{plugin.reference}: Python imports {found} and not {plugin.path}")
    return module
