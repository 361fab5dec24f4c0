"""Append-only shards that survive a kill."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from softtok.storage.files import canonical_json, content_hash, write_text


def records_of(lines: bytes) -> tuple[list[dict[str, Any]], int]:
    """Parses one JSON object per line; returns the objects and the number of damaged lines.

    A full disk or a power cut leaves damaged lines.
    """
    records, damaged = [], 0
    # Not splitlines, which also splits at characters such as U+2028 that JSON does not escape.
    for line in filter(None, lines.split(b"\n")):
        try:
            record = json.loads(line.decode("utf-8"))
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            damaged += 1
    return records, damaged


class Shard:
    """An append-only file of finished items: a header line that says what they belong to, then one JSON line per item.

    Each line has a checksum of its item and the header. So the items of a damaged header are still known to be its own,
    and those of another header are not. Damaged lines, such as one cut short by a crash, are dropped.
    """

    def __init__(self, path: Path, header: Any):
        self.path, self.head = path, canonical_json(header)
        self.lines: list[dict[str, Any]] = []
        found = path.read_bytes() if path.exists() else b""
        head, _, rest = found.partition(b"\n")
        records, damaged = records_of(rest)
        for record in records:
            checksum = record.pop("checksum", None)
            if checksum == self._checksum(record):
                self.lines.append(record)
            else:
                damaged += 1
        damaged += found != b"" and head != self.head.encode()
        if damaged:
            print(f"softtok: {path}: damaged lines ({damaged}); what stood there is made again", file=sys.stderr)
        if damaged or not found.endswith(b"\n"):
            write_text(path, self.head + "\n" + "".join(map(self._text, self.lines)))

    def append(self, items: list[dict[str, Any]]) -> None:
        """Adds items, which are on disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(map(self._text, items)))
            file.flush()
            os.fsync(file.fileno())
        self.lines += items

    def _checksum(self, item: dict[str, Any]) -> str:
        return content_hash([self.head, item], 16)

    def _text(self, item: dict[str, Any]) -> str:
        return canonical_json(item | {"checksum": self._checksum(item)}) + "\n"
