"""Append-only shards that survive a kill."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from softtok.storage.files import canonical_json, write_text


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

    Damaged lines, such as one cut short by a crash, are dropped. A file with another header is started anew.
    """

    def __init__(self, path: Path, header: Any):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        head = canonical_json(header) + "\n"
        found = path.read_bytes() if path.exists() else b""
        whole = found[: found.rfind(b"\n") + 1]
        damaged = 0
        if whole.startswith(head.encode()):
            self.lines, damaged = records_of(whole[len(head.encode()) :])
        if damaged:
            print(f"softtok: {path}: damaged lines ({damaged}); what stood there is made again", file=sys.stderr)
        if damaged or whole != found or not whole.startswith(head.encode()):
            write_text(path, head + "".join(canonical_json(line) + "\n" for line in self.lines))

    def append(self, items: list[dict[str, Any]]) -> None:
        """Adds items, which are on disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(canonical_json(item) + "\n" for item in items))
            file.flush()
            os.fsync(file.fileno())
        self.lines += items
