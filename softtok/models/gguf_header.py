"""Reads the header of a GGUF file: its values by key, and its table of tensors; not the weights.

The layout is that of versions 2 and 3: magic, version, number of tensors, number of keys, the keys with their values,
the table of tensors, and the weights from the next multiple of the alignment on. All numbers are little-endian.

The 100,000 texts of a vocabulary and its merges are read in a fraction of a second. The package `gguf`, which makes
several arrays of each text, takes ten times as long.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softtok.config.gguf_files import MAGIC
from softtok.errors import UserError

VERSIONS = (2, 3)
ALIGNMENT = 32
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of values of a fixed size, as `struct` names them."""
TEXT, ARRAY = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the file: its shape as in torch, its type's number, and where its bytes begin."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, StoredTensor]
    data: int  # where the weights begin


def read_header(path: Path) -> Header:
    """Returns the header of a GGUF file. Raises UserError if it is no GGUF file, or a broken one."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Reader(content).header(path)
    except (OSError, ValueError, struct.error) as error:  # struct's: the file ends in the middle of a value
        why = "it ends too early" if isinstance(error, struct.error) else error
        raise UserError(f"{path} is damaged or cut short ({why}); copy it again") from error


class _Reader:
    """Reads one value after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.place = 0

    def header(self, path: Path) -> Header:
        """Returns all of the header. Raises ValueError or struct.error if it is broken."""
        if self.content[:4] != MAGIC:
            raise ValueError(f"it does not begin with {MAGIC.decode()!r}")
        self.place = 4
        version, tensors, keys = self.number("I"), self.number("Q"), self.number("Q")
        if version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise UserError(f"{path} is of version {version} of GGUF; {known} can be read: give a newer file")
        values: dict[str, Any] = {}
        for _ in range(keys):
            key = self.text()
            values[key] = self.value(self.number("I"))
        table = dict(self.tensor() for _ in range(tensors))
        if len(table) != tensors:
            raise ValueError("it names a tensor twice")
        alignment = values.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        data = -(-self.place // alignment) * alignment
        return Header(path, values, table, data)

    def number(self, kind: str) -> Any:
        """Returns a number of one of `struct`'s types."""
        (number,) = struct.unpack_from(f"<{kind}", self.content, self.place)
        self.place += struct.calcsize(f"<{kind}")
        return number

    def text(self) -> str:
        """Returns a text, which is stored with its length in bytes before it."""
        return self.take(self.number("Q")).decode("utf-8")

    def take(self, count: int) -> bytes:
        """Returns the next bytes."""
        if count > len(self.content) - self.place:
            raise ValueError("it ends too early")
        start, self.place = self.place, self.place + count
        return self.content[start : self.place]

    def value(self, kind: int) -> Any:
        """Returns a value of a type that the file gives by its number."""
        if kind == TEXT:
            return self.text()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise ValueError(f"it holds a value of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            size = struct.calcsize(f"<{NUMBERS[inner]}")
            return list(struct.unpack(f"<{count}{NUMBERS[inner]}", self.take(count * size)))
        if inner != TEXT:
            raise ValueError(f"it holds an array of the unknown type {inner}")
        return [self.text() for _ in range(count)]

    def tensor(self) -> tuple[str, StoredTensor]:
        """Returns a line of the table of tensors; the file has the fastest dimension first, torch has it last."""
        name, dimensions = self.text(), self.number("I")
        shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
        return name, StoredTensor(shape, self.number("I"), self.number("Q"))
