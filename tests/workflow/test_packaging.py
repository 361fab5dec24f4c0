"""pyproject.toml, constraints.txt and environment.yml say the same; the repository keeps its own rules."""

import ast
import re
import subprocess
import tomllib
from typing import Any

import pytest
import yaml

from tests.support.project import ROOT


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines), "every line is an exact pin"
    return {normal(name): version for name, version in (line.split("==") for line in lines)}


def names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0]) for text in requirements}


def test_every_direct_dependency_is_pinned(project: dict[str, Any], pins: dict[str, str]) -> None:
    extras = project["optional-dependencies"]
    assert names(project["dependencies"]).union(*map(names, extras.values())) <= pins.keys()
    assert pins["torch"] == "2.13.0"


def test_conda_environment_has_the_same_packages(project: dict[str, Any], pins: dict[str, str]) -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert {normal(name): version for name, version in (line.split("==") for line in pip)} == {
        name: pins[name] for name in names(project["dependencies"])
    }


def test_installed_versions_are_the_pinned_ones(project: dict[str, Any], pins: dict[str, str]) -> None:
    from importlib.metadata import version

    extras = project["optional-dependencies"]
    wanted = names(project["dependencies"]) | names(extras["tokenizers"]) | names(extras["gguf"])
    installed = {name: version(name).partition("+")[0] for name in wanted}
    assert installed == {name: pins[name] for name in installed}


def test_the_package_says_that_it_is_typed() -> None:
    from importlib.resources import files

    assert (files("softtok") / "py.typed").is_file()
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["softtok"]
    assert "py.typed" in patterns


def test_no_large_or_generated_file_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert not [path for path in tracked if path.exists() and path.stat().st_size > 1_000_000]
    assert not [path for path in tracked if path.relative_to(ROOT).parts[0] in ("results", ".snakemake", ".venv")]


def test_every_file_that_the_readme_names_is_there() -> None:
    """Paths in backquotes or blocks that begin with a folder of the repository; not those with a placeholder."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "results")
    named = set(re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]+", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(named) >= 4
    assert not [path for path in named if not (ROOT / path.rstrip(".")).exists() and not path.startswith(".venv")]


def test_no_test_module_imports_another() -> None:
    """What several use is in tests/support, so that each test module can be moved, split and removed by itself."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                names = [*module.split("."), *(part for alias in node.names for part in alias.name.split("."))]
                assert not [name for name in names if name.startswith("test_") or name == "conftest"], path
