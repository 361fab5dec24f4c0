"""What two things must have in common to count as the same one: weights, shards, and the jobs of a grid."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import pytest

from softtok.config import grid
from softtok.config.schema import Files
from softtok.config.specs import parse
from softtok.problems.spec import ToyRows
from softtok.storage.files import folder_sha256, text_hash
from softtok.storage.shards import Shard
from tests.support.configurations import Edit, both, drop, grid_of, hashes, put


def test_the_hash_of_weights_is_that_of_their_content_and_names(tmp_path: Path) -> None:
    def digest() -> str:
        return folder_sha256(tmp_path, "*.safetensors")

    weights = tmp_path / "a.safetensors"
    weights.write_text("1")
    (tmp_path / "config.json").write_text("{}")
    first = digest()
    (tmp_path / "config.json").write_text("{ }")
    assert digest() == first
    weights.write_text("2")
    assert digest() != first
    weights.write_text("1")
    weights.rename(tmp_path / "b.safetensors")
    assert digest() != first


def test_a_line_cut_short_is_gone_from_the_file_before_the_next_is_added(tmp_path: Path) -> None:
    path, header = tmp_path / "shard.jsonl", {"a": 1}
    Shard(path, header).append([{"x": 1}, {"x": 2}])
    path.write_text(path.read_text()[:-3])
    Shard(path, header).append([{"x": 3}])
    assert Shard(path, header).lines == [{"x": 1}, {"x": 3}]


OF_HUB = both(drop("models/toy/toy"), put("models/toy/hub", "org/model"), put("models/toy/revision", "a"))
OF_TEXT = put("models/toy/toy", {"tokenizer": "bpe", "text": "sums"})


@pytest.mark.parametrize(
    ("edit", "further", "changed"),
    [
        (OF_HUB, put("models/toy/revision", "b"), {"models", "runs"}),
        (OF_TEXT, put("train_sets/sums/limit", 50), {"models", "data", "runs"}),
    ],
    ids=["revision of a hub model", "text of a toy"],
)
def test_what_a_model_is_made_from_is_part_of_its_identity(edit: Edit, further: Edit, changed: set[str]) -> None:
    before, after = hashes(grid_of(edit)), hashes(grid_of(edit, further))
    assert {kind for kind in before if before[kind] != after[kind]} == changed
    assert before["models"].isdisjoint(after["models"])


@pytest.mark.parametrize(
    ("version", "changed"),
    [
        ("DATA_VERSION", {"data", "runs", "evaluations", "choices"}),
        ("MODEL_VERSION", {"models", "runs"}),
        ("TRAIN_VERSION", {"runs"}),
        ("EVAL_VERSION", {"evaluations"}),
        ("CHOICES_VERSION", {"choices"}),
    ],
)
def test_a_raised_version_makes_all_of_its_kind_anew(
    version: str, changed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashes(grid_of())
    monkeypatch.setattr(grid, version, getattr(grid, version) + 1)
    after = hashes(grid_of())
    assert {kind for kind in before if before[kind] != after[kind]} == changed
    for kind in changed:
        kept = before[kind] & after[kind]
        base_alone = kind == "runs" and version == "DATA_VERSION"  # a base run has no train set
        assert len(kept) == (1 if base_alone else 0), kind


def test_toy_problems_are_of_their_kinds_side_of_the_generator() -> None:
    sources = [(data.kind, data.spec.source) for data in grid_of().data.values()]
    splits = {(kind, source.split) for kind, source in sources if isinstance(source, ToyRows)}
    assert splits == {("train", "train"), ("test", "test"), ("choice", "test")}


def test_files_of_a_pattern_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a data set and its identity would depend on the order of a folder."""
    paths = [tmp_path / f"part{number}.jsonl" for number in (2, 0, 1)]
    for path in paths:
        path.write_text("")
    monkeypatch.setattr(glob, "glob", lambda _: [str(path) for path in paths])
    assert Files(path="part*.jsonl").found(str(tmp_path)) == sorted(paths)


def test_no_spec_of_a_job_holds_a_tag_and_its_hash_is_that_of_the_text_as_written() -> None:
    """Pages take params into scripts; the spec that a job parses is the same."""
    text = "</script><script>alert(1)</script> <!-- & 'a' \"b\" \u2028 \\"
    grid = grid_of(put("studies/first/title", text), put("models/toy/prompt", f"{text} {{question}}"))
    study = grid.studies["first"]
    made: list[Any] = [study, *grid.runs.values(), *grid.models.values(), *grid.data.values()]
    for one in made:
        assert not set("<>&\u2028") & set(one.json)
        assert parse(type(one.spec), one.json) == one.spec
        assert one.hash == text_hash(one.spec.as_json())
    assert study.spec.title == text
