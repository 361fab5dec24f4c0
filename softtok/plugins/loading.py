"""What runs in a job: refuses a plug-in whose file has changed, imports it, and names file and line of its errors."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ModuleSpec, SourceFileLoader
from numbers import Real
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

from softtok.errors import UserError
from softtok.plugins.locating import Reference, definition, module_file, read_source

C = TypeVar("C")


@dataclass(frozen=True)
class Plugin:
    """A user's code as it was when the job began; every process of the job gets this content of the file.

    So an edit during a job does not change the job, and a process that starts later runs the same code.
    """

    reference: Reference
    path: str
    content: bytes

    @cached_property
    def line(self) -> int:
        """The line where the name is defined."""
        return definition(self.content, Path(self.path), self.reference.name, str(self.reference)).lineno

    def load(self) -> Any:
        """Imports the file, once in each process, and returns the object of that name. Raises UserError."""
        process = os.getpid()
        with blaming(self, "while it is imported"):
            module = _import_file(self) if self.reference.is_file else _import_module(self)
            found = getattr(module, self.reference.name)
        if os.getpid() != process:  # the file forked; only one process may go on with the job
            os._exit(0)
        return found

    def fault(self, what: str) -> UserError:
        """Returns an error for code that raises nothing but is wrong, for example in its return value."""
        return UserError(f"{self.path}, line {self.line}: {self.reference.name} {what}")


def read(reference: Reference) -> Plugin:
    """Returns the code of a reference without importing it. Raises UserError if the file is missing or has changed."""
    source = reference.source
    path = Path(source) if reference.is_file else module_file(source, str(reference))
    content = read_source(path, str(reference))
    if hashlib.sha256(content).hexdigest() != reference.sha256:
        raise UserError(
            f"{path} has changed since the configuration was read; run snakemake again, which reads it again"
        )
    return Plugin(reference, str(path), content)


def load(reference: Reference) -> Any:
    """Returns the object that a reference names, with `read` and `Plugin.load`."""
    return read(reference).load()


def load_class(reference: Reference, base: type[C]) -> type[C]:
    """Returns the class that a reference names. Raises UserError if it is not a subclass of `base`."""
    plugin = read(reference)
    found = plugin.load()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise plugin.fault(f"is {shown(found)}, not a subclass of {base.__module__}.{base.__name__}")
    return found


@contextmanager
def blaming(plugin: Plugin, doing: str) -> Iterator[None]:
    """Turns what the user's code raises in this block into a UserError with file, line, exception and what was done."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(blame(plugin, error, doing)) from error


def blame(plugin: Plugin, error: BaseException, doing: str) -> str:
    """Returns one line about an exception, with the last line of the user's file in its traceback."""
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
    """Returns a bool or finite number that a plug-in returned; NumPy and PyTorch scalars count. Raises UserError."""
    plain = value
    if not isinstance(value, Real) and callable(item := getattr(value, "item", None)):
        with suppress(Exception):  # an array with more than one entry; it is refused below
            plain = item()
    if isinstance(plain, bool):
        return plain
    if not isinstance(plain, Real):
        raise plugin.fault(f"returns {shown(value)} {where}, not a number")
    if not math.isfinite(plain):
        raise plugin.fault(f"returns {plain} {where}, not a finite number")
    return float(plain)


def shown(value: object) -> str:
    """Returns a value as messages show it, on one line and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Loader(SourceFileLoader):
    """Imports content that was read and hashed before, so the file is not read twice and no old bytecode is used."""

    def __init__(self, module: str, plugin: Plugin) -> None:
        super().__init__(module, os.path.abspath(plugin.path))
        self.content = plugin.content

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.content, self.path, "exec", dont_inherit=True)


def _import_file(plugin: Plugin) -> ModuleType:
    """Imports a file under a name that is unique to its path and content, so that pickle finds the module again."""
    path = os.path.abspath(plugin.path)
    digest = hashlib.sha256(path.encode() + b"\0" + plugin.content).hexdigest()[:16]
    name = f"softtok_plugin_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _Loader(name, plugin)
    spec = ModuleSpec(name, loader, origin=path)
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as dataclasses look up their module
    try:
        with _beside(os.path.dirname(path)):
            loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


_SIBLINGS: dict[str, dict[str, ModuleType]] = {}
"""The modules that users' files have imported from their own folder, by folder and name."""


@contextmanager
def _beside(folder: str) -> Iterator[None]:
    """Lets a user's file import its neighbours, even if another folder has a file of the same name.

    Within this block the folder comes first on Python's path, as for a script. Afterwards it stays there as the last
    entry, for imports inside functions.
    """
    importlib.invalidate_caches()
    if folder in sys.path and folder not in _SIBLINGS:  # its modules are shared with everybody
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
    """Whether a module, or its package, is directly in this folder (not further down, as in an environment)."""
    top = name.partition(".")[0]
    if top == "softtok" or top not in sys.modules:
        return False
    package = os.path.join(folder, top)
    files = (f"{package}.py", os.path.join(package, "__init__.py"))
    return getattr(sys.modules[top], "__file__", None) in files or package in getattr(sys.modules[top], "__path__", ())


def _import_module(plugin: Plugin) -> ModuleType:
    """Imports an installed module as usual. Raises UserError if Python finds another file under this name."""
    importlib.invalidate_caches()
    module = importlib.import_module(plugin.reference.source)
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, plugin.path):
        raise UserError(f"{plugin.reference}: Python imports {found} and not {plugin.path}")
    return module
