"""Rules of the house that no linter checks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.relative_to(ROOT) for path in ROOT.glob("softtok/**/*.py"))
LONGEST = 40  # lines of a function in method/


def lengths(source: str) -> dict[str, int]:
    """Function -> its lines, from `def` to its end."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[1] == "method"], ids=str)
def test_functions_of_the_method_fit_on_a_screen(path: Path) -> None:
    found = lengths((ROOT / path).read_text(encoding="utf-8"))
    assert {name: lines for name, lines in found.items() if lines > LONGEST} == {}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_the_formatter_is_not_switched_off(path: Path) -> None:
    assert "# fmt:" not in (ROOT / path).read_text(encoding="utf-8")


def test_a_function_is_as_long_as_its_lines() -> None:
    assert lengths("def one():\n    pass\n\n\nclass A:\n    def two(self):\n        x = 1\n        return x\n") == {
        "one": 2,
        "two": 3,
    }
