"""docs/rooms.svg shows the imports as they are."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs import rooms

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house() -> rooms.House:
    return rooms.read()


def test_the_committed_picture_is_in_step_with_the_imports(house: rooms.House) -> None:
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.draw(house), "run `make rooms`"


def imported_by(path: Path) -> set[str]:
    """The modules of the package that a file imports, read from its syntax tree."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if (ROOT / inner.replace(".", "/")).with_suffix(".py").is_file() else node.module)
    return {name for name in found if name.startswith("softtok.")}


def test_every_import_between_rooms_is_counted(house: rooms.House) -> None:
    pairs = Counter[tuple[str, str]]()
    for path in sorted(ROOT.glob("softtok/*/**/*.py")):
        room = path.relative_to(ROOT / "softtok").parts[0]
        others = [name.split(".")[1] for name in imported_by(path)]
        pairs.update((room, other) for other in others if other != room and other in house.rooms)
    assert pairs == house.imports
    assert sum(pairs.values()) > 20


def test_the_picture_has_every_room_and_every_count(house: rooms.House) -> None:
    """In the contract's order, those with torch marked, and no arrow towards a later room."""
    packages = {path.parent.name for path in ROOT.glob("softtok/*/__init__.py")}
    assert sorted(house.rooms) == sorted(packages - set(rooms.OUTSIDE))
    assert house.torch == {"models", "method", "training", "evaluation"}
    assert all(house.rooms.index(user) > house.rooms.index(used) for user, used in house.imports)
    texts = [element.text for element in ElementTree.fromstring(rooms.draw(house)).iter() if element.text]
    assert [text.rstrip("/") for text in texts if text.endswith("/")] == house.rooms
    counts = Counter(int(text) for text in texts if text.isdigit())
    assert counts == Counter(house.imports.values())
