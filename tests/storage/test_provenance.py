"""What made a result: the commit that changed the package last, whatever else has changed in the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from softtok.storage import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package and a configuration, of one commit."""
    for name in ("softtok/storage/provenance.py", "config.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("1")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "softtok/storage/provenance.py"))
    return tmp_path


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    return subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a change")
    return git(folder, "rev-parse", "--short=12", "HEAD")


def test_a_configuration_is_no_change_of_the_code(checkout: Path) -> None:
    """Its settings are in the specs; a report of a sweep that grows would always warn of differing commits."""
    first = provenance._commit()
    assert first == git(checkout, "rev-parse", "--short=12", "HEAD")
    (checkout / "config.yaml").write_text("2")
    (checkout / "softtok/notes.txt").write_text("not tracked")
    assert provenance._commit() == first
    (checkout / "softtok/notes.txt").unlink()
    assert commit(checkout) != first == provenance._commit()


def test_a_change_of_the_code_is_told(checkout: Path) -> None:
    first = provenance._commit()
    (checkout / "softtok/storage/provenance.py").write_text("2")
    assert provenance._commit() == f"{first}-dirty"
    assert commit(checkout) == provenance._commit() != first


def test_outside_of_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "softtok/storage/provenance.py"))
    assert provenance._commit() == ""
