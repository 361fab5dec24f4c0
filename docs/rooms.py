"""Draws docs/rooms.svg, the picture of the package's rooms, from the imports themselves.

Run `make rooms` or `python docs/rooms.py`.

The rooms stand on the diagonal, in the order that the import contract in pyproject.toml gives them. A badge says how
many pairs of modules import each other: its row is the room that imports, its column the room that is imported. So a
badge above the diagonal would break the contract.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import grimp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/rooms.svg"
PACKAGE = "softtok"
TORCH = ("torch", "transformers", "accelerate")
OUTSIDE = ("errors", "plugins", "__main__")  # parts of the package that are no rooms

BOX_WIDTH, BOX_HEIGHT, STEP_X, STEP_Y, MARGIN = 168, 46, 96, 62, 16
COLUMN = 34  # from a box's left edge to the line of those that import it
RADIUS = 12
STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.page { fill: #ffffff }
.room { fill: #ffffff; stroke: #57606a; stroke-width: 1.5 }
.torch { fill: #fde3c8; stroke: #b45309; stroke-width: 1.5 }
.name { font-weight: 600; font-size: 15px }
.small { font-size: 12px }
.line { stroke: #8c959f; stroke-width: 1.5; fill: none }
.arrow { fill: #8c959f }
.badge { fill: #ffffff; stroke: #57606a }
.count { font-size: 12px; text-anchor: middle }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.page { fill: #0d1117 }
.room { fill: #0d1117; stroke: #9198a1 }
.torch { fill: #4a2b0b; stroke: #f0a35e }
.line { stroke: #6e7681 }
.arrow { fill: #6e7681 }
.badge { fill: #0d1117; stroke: #9198a1 }
}
"""


class House(NamedTuple):
    """The rooms in order, the modules beside them, and what the imports say of the rooms."""

    rooms: list[str]
    beside: list[str]
    modules: Counter[str]  # room -> its modules
    imports: Counter[tuple[str, str]]  # (room that imports, room that is imported) -> pairs of modules
    torch: set[str]  # rooms that import torch or what is built on it


def read() -> House:
    """Reads the order of the rooms from the import contract, and the imports from the package."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = [name.strip(" ()") for layer in reversed(layers) for name in re.split(r"[|:]", layer)]
    graph = grimp.build_graph(PACKAGE, include_external_packages=True, cache_dir=None)
    rooms = [name for name in placed if name not in OUTSIDE]
    modules, imports, torch = Counter[str](), Counter[tuple[str, str]](), set()
    for importer in sorted(graph.modules):
        room = _room(importer, rooms)
        if room is None:
            continue
        modules[room] += importer.count(".") > 1  # not the package itself, which is empty
        for imported in graph.find_modules_directly_imported_by(importer):
            other = _room(imported, rooms)
            if other not in (None, room):
                imports[room, str(other)] += 1
            if imported.split(".")[0] in TORCH:
                torch.add(room)
    beside = [f"{name}{'/' if (ROOT / PACKAGE / name).is_dir() else '.py'}" for name in placed if name in OUTSIDE]
    return House(rooms, beside, modules, imports, torch)


def _room(module: str, rooms: list[str]) -> str | None:
    """The room that a module belongs to; None if it is outside of the rooms."""
    package, _, rest = module.partition(".")
    room = rest.split(".")[0]
    return room if package == PACKAGE and room in rooms else None


def draw(house: House) -> str:
    """The picture as SVG text; equal imports give equal text."""
    places = {room: (MARGIN + i * STEP_X, MARGIN + i * STEP_Y) for i, room in enumerate(house.rooms)}
    width = 2 * MARGIN + (len(places) - 1) * STEP_X + BOX_WIDTH
    height = 2 * MARGIN + (len(places) - 1) * STEP_Y + BOX_HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>The rooms of {PACKAGE} and their imports</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    for room, (x, y) in places.items():
        used = [places[other][0] for other in house.rooms if house.imports[room, other]]
        users = [places[other][1] for other in house.rooms if house.imports[other, room]]
        middle, column = y + BOX_HEIGHT // 2, x + COLUMN
        if used:  # from the room's box to the columns of what it imports
            parts.append(f'<path class="line" d="M{x} {middle}H{min(used) + COLUMN}"/>')
        if users:  # from the rows of those that import it up to the room's box
            bottom = y + BOX_HEIGHT
            parts.append(f'<path class="line" d="M{column} {max(users) + BOX_HEIGHT // 2}V{bottom + 6}"/>')
            parts.append(f'<path class="arrow" d="M{column} {bottom}l-5 9h10z"/>')
    for room, (x, y) in places.items():
        parts += _box(room, house, x, y)
    for (room, other), count in sorted(house.imports.items()):
        x, y = places[other][0] + COLUMN, places[room][1] + BOX_HEIGHT // 2
        parts.append(f'<circle class="badge" cx="{x}" cy="{y}" r="{RADIUS}"/>')
        parts.append(f'<text class="count" x="{x}" y="{y + 4}">{count}</text>')
    return "\n".join([*parts, *_legend(house, width - MARGIN), "</svg>", ""])


def _box(room: str, house: House, x: int, y: int) -> list[str]:
    torch = room in house.torch
    facts = f"{house.modules[room]} modules, {'torch' if torch else 'no torch'}"
    shape = f'x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6"'
    return [
        f'<rect class="{"torch" if torch else "room"}" {shape}/>',
        f'<text class="name" x="{x + 12}" y="{y + 20}">{room}/</text>',
        f'<text class="small" x="{x + 12}" y="{y + 37}">{facts}</text>',
    ]


def _legend(house: House, right: int) -> list[str]:
    """How to read the picture, in its upper right corner."""
    lines = [
        "A row shows what a room imports, a column who imports it.",
        "Numbers count pairs of modules, imports inside functions too.",
        f"Beside the rooms: {', '.join(house.beside)}.",
    ]
    return [
        f'<text class="small" text-anchor="end" x="{right}" y="{MARGIN + 16 + 19 * i}">{line}</text>'
        for i, line in enumerate(lines)
    ]


if __name__ == "__main__":
    PICTURE.write_text(draw(read()), encoding="utf-8")
