"""What was written is what is read: a damaged file gives the same output as a whole one, or one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from softtok.__main__ import main
from softtok.config.settings import DeviceSettings, RuntimeSettings
from softtok.errors import UserError
from softtok.evaluation.choices import choices
from softtok.evaluation.evaluate import evaluate
from softtok.models import base_model, references
from softtok.models.base_model import base_run, make_model
from softtok.models.loading import load
from softtok.problems.prepare import prepare
from softtok.problems.spec import GoldRule
from softtok.report.collect import collect
from softtok.report.study import Study
from softtok.storage.files import (
    file_sha256,
    open_table,
    read_columns,
    read_manifest,
    text_hash,
    write_manifest,
    write_table,
)
from softtok.storage.shards import Shard
from softtok.training.train import Trainer, train
from tests.support.damage import (
    Evaluation,
    assert_same_evaluation,
    changed_copy,
    damages,
    evaluation,
    flipped,
    refused,
    seal,
)
from tests.support.report_specs import report_spec
from tests.support.specs import (
    HARD,
    base_spec,
    choices_spec,
    data_spec,
    evaluation_spec,
    folder_model,
    hub_model,
    toy_model,
    train_spec,
)
from tests.support.synthetic_runs import write_study
from tests.support.training_runs import lines, weights

TABLE = pa.table({"id": ["a", "b"], "gold": [["1", "2"], ["x softtok.sha256 y"]], "right": [True, False]})


# single files, every byte of them


def test_no_flipped_bit_of_a_parquet_file_changes_what_is_read(tmp_path: Path) -> None:
    """Page checksums alone leave out the metadata, which is most of a small file."""
    path = tmp_path / "table.parquet"
    write_table(path, TABLE, {"fact": "known"})
    content = path.read_bytes()
    assert pq.read_table(path).equals(TABLE), "any reader of parquet reads it"
    for place in range(len(content)):
        path.write_bytes(flipped(content, place, place % 8))
        found = refused(lambda: read_columns(path, ["id", "gold", "right"]))
        assert found is None or found.equals(TABLE), place
    path.write_bytes(content)
    with open_table(path) as file:
        assert file.metadata.metadata[b"fact"] == b"known"


def test_pages_have_checksums_of_their_own(tmp_path: Path) -> None:
    """For readers that know nothing of ours."""
    path = tmp_path / "table.parquet"
    texts = ["What is 3 + 4?", "How many pears do ten people pick?"]
    write_table(path, pa.table({"text": texts}))
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(b"pears"), 0))
    assert pq.read_table(path)["text"].to_pylist() != texts
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "table.parquet")
    assert read_columns(tmp_path / "table.parquet", TABLE.column_names).equals(TABLE)
    (tmp_path / "model.json").write_text('{"sha256": "0"}')
    assert read_manifest(tmp_path / "model.json") == {"sha256": "0"}


def test_a_table_is_compared_with_the_manifest_beside_it(tmp_path: Path, toy_sets: dict[str, Path]) -> None:
    """Two whole files that do not belong together."""
    path = tmp_path / "test.parquet"
    shutil.copy(toy_sets["test"].with_suffix(".json"), tmp_path / "test.json")
    shutil.copy(toy_sets["test"], path)
    assert read_columns(path, ["id"]).num_rows == 6
    shutil.copy(toy_sets["train"], path)
    with pytest.raises(UserError, match=rf"^{path} is not what .*test.json says that it is; remove it and run snake"):
        read_columns(path, ["id"])


def test_no_flipped_bit_of_a_manifest_changes_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "made" / "model.json"
    value = {"sha256": "ab" * 32, "rms": 0.1, "prompt": "Question: {question}\n", "seed": 3, "nested": {"7": None}}
    write_manifest(path, value)
    assert read_manifest(path) == value
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(flipped(content, place, place % 8))
        found = refused(lambda: read_manifest(path))
        assert found is None or {name: found.get(name) for name in value} == value, place


def test_no_flipped_bit_of_a_shard_changes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is damaged is dropped, and so made again; a damaged header drops nothing."""
    path, header = tmp_path / "shard.jsonl", {"mode": "hard"}
    items = [{"problem_id": f"row{place}", "correct": place % 2, "text": "3 + 4 = 7"} for place in range(4)]
    Shard(path, header).append(items)
    content = path.read_bytes()
    start = content.index(b"\n")
    for place in range(0, len(content), 3):
        path.write_bytes(flipped(content, place, place % 8))
        found = Shard(path, header).lines
        assert [item for item in items if item in found] == found, place
        assert len(found) == 4 if place < start else len(found) >= 2, place
        assert "damaged lines" in capsys.readouterr().err
        assert Shard(path, header).lines == found, "it is whole again"
        assert capsys.readouterr().err == ""


def test_lines_of_another_header_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "shard.jsonl"
    Shard(path, {"mode": "hard"}).append([{"problem_id": "row0"}])
    body = path.read_bytes().partition(b"\n")[2]
    path.write_bytes(b'{"mode":"soft"}\n' + body)
    assert Shard(path, {"mode": "soft"}).lines == []


# jobs


Inputs = dict[str, Path]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Inputs:
    """A project of its own: a toy model, data, a trained run and the run of the untouched model."""
    folder = tmp_path_factory.mktemp("project")
    made = {"model": folder / "model", "run": folder / "run", "base": folder / "base"}
    shutil.copytree(tiny_toy, made["model"])
    for kind, path in toy_sets.items():
        made[kind] = folder / path.name
        shutil.copy(path, made[kind])
        shutil.copy(path.with_suffix(".json"), folder)
    spec = train_spec(HARD, steps=2, warmup_steps=1, max_cot_tokens=8, validate_every=1)
    train(spec, RuntimeSettings(), made["model"], made["train"], made["run"])
    base_run(base_spec(toy_model()), made["model"], made["base"])
    return made


def evaluated(made: Inputs, run: str, out: Path, again: bool = False) -> Evaluation:
    """Returns what an evaluation gives that has no records yet, or all (`again`)."""
    if not again:
        shutil.rmtree(made[run] / ".state" / "shards", ignore_errors=True)
    evaluate(evaluation_spec("hard-sample", "soft-sample"), RuntimeSettings(), made[run], made["test"], out)
    return evaluation(out)


@pytest.mark.parametrize("run", ["run", "base"])
def test_an_evaluation_of_damaged_inputs_is_refused_or_the_same(run: str, inputs: Inputs, tmp_path: Path) -> None:
    whole = evaluated(inputs, run, tmp_path / "whole.parquet")
    files = [path for path in (inputs[run] / "checkpoint").iterdir() if path.is_file()]
    files += [inputs["test"], inputs["test"].with_suffix(".json")]
    files += [] if run == "run" else [path for path in inputs["model"].iterdir() if path.is_file()]
    assert {"checkpoint.json", "test.parquet", "model.safetensors", "tokenizer.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        for what, damaged in damages(content, 4, path.name):
            path.write_bytes(damaged)
            found = refused(lambda: evaluated(inputs, run, tmp_path / "damaged.parquet"))
            if found is not None:
                assert_same_evaluation(found, whole, f"{path.name}, {what}")
        path.write_bytes(content)


def test_an_evaluation_makes_damaged_records_again(inputs: Inputs, tmp_path: Path) -> None:
    whole = evaluated(inputs, "run", tmp_path / "whole.parquet")
    for path in sorted((inputs["run"] / ".state" / "shards").iterdir()):
        for what, damaged in damages(path.read_bytes(), 2, path.name):
            path.write_bytes(damaged)
            assert_same_evaluation(evaluated(inputs, "run", tmp_path / "out.parquet", again=True), whole, what)


def test_choices_of_damaged_inputs_are_refused_or_the_same(inputs: Inputs, tmp_path: Path) -> None:
    def scored() -> pd.DataFrame:
        shutil.rmtree(inputs["run"] / ".state" / "shards", ignore_errors=True)  # what was scored before
        choices(choices_spec("letters"), RuntimeSettings(), inputs["run"], inputs["choice"], tmp_path / "out.parquet")
        return pd.read_parquet(tmp_path / "out.parquet")

    rows = scored()
    for path in (inputs["choice"], inputs["choice"].with_suffix(".json")):
        content = path.read_bytes()
        for what, damaged in damages(content, 6, path.name):
            path.write_bytes(damaged)
            found = refused(scored)
            assert found is None or found.equals(rows), f"{path.name}, {what}"
        path.write_bytes(content)


def test_training_on_damaged_inputs_is_refused_or_the_same(inputs: Inputs, tmp_path: Path) -> None:
    """Its saved state too: a damaged one is put aside, and the run starts again."""
    spec = train_spec(HARD, steps=2, warmup_steps=1, max_cot_tokens=8, validate_every=1)
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "finish", lambda *_: None)
        patch.setattr(Trainer, "validate", lambda self: 50.0)
        train(spec, RuntimeSettings(save_every=1), inputs["model"], inputs["train"], stopped)

    def trained() -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(stopped, run)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "validate", lambda self: 50.0)
            train(spec, RuntimeSettings(), inputs["model"], inputs["train"], run)
        return lines(run), weights(run / "checkpoint")

    whole = trained()
    files = [inputs["train"], inputs["model"] / "model.safetensors", stopped / ".state" / "progress.pt"]
    for path in (*files, *(stopped / ".state" / "best-1").iterdir()):
        content = path.read_bytes()
        for what, damaged in damages(content, 2, path.name):
            path.write_bytes(damaged)
            found = refused(trained)
            assert found is None or found[0] == whole[0], f"{path.name}, {what}"
            assert found is None or all(torch.equal(found[1][name], value) for name, value in whole[1].items()), what
        path.write_bytes(content)


def test_a_report_of_damaged_results_is_refused_or_the_same(tmp_path: Path) -> None:
    sketch = write_study(tmp_path, modes=("hard",), seeds=1, problems=6, steps=6, cot=8)
    spec = report_spec(sketch)
    seal(tmp_path, spec)
    study = Study(spec)
    whole = collect(study, tmp_path)
    files = [path for entry in spec.runs for path in (tmp_path / entry.path).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".csv", ".parquet"}
    for path in files:
        content = path.read_bytes()
        for what, damaged in damages(content, 6, path.name) if content else ():
            path.write_bytes(damaged)
            found = refused(lambda: collect(study, tmp_path))
            if found is not None:
                pd.testing.assert_frame_equal(found.metrics, whole.metrics, obj=f"{path.name}, {what}")
                pd.testing.assert_frame_equal(found.training, whole.training, obj=f"{path.name}, {what}")
                assert found.runs == whole.runs
        path.write_bytes(content)


def test_a_damaged_spec_of_a_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A figure in it may be another and still be valid."""
    spec = report_spec(write_study(tmp_path, modes=("hard",), seeds=1, problems=6, steps=6, cot=8))
    path = tmp_path / f"demo-{text_hash(spec.as_json())}.json"
    content = spec.as_json().encode()
    path.write_bytes(content)
    assert main(["report", "--spec", str(path), "--root", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    for _, damaged in damages(content, 20, "spec"):
        path.write_bytes(damaged)
        assert main(["report", "--spec", str(path), "--root", str(tmp_path), "--out", str(tmp_path / "none")]) == 1
        (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("softtok: error: ")]
        assert str(path) in told and not (tmp_path / "none").exists()


def test_a_source_that_has_changed_since_the_configuration_was_read_is_refused(tmp_path: Path) -> None:
    """Its hash is part of the set's name; other rows would be found under it."""
    path, out = tmp_path / "mine.jsonl", tmp_path / "mine.parquet"
    path.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    source = {"path": str(path), "sha256": [file_sha256(path)]}
    spec = data_spec("test", {"file": source}, question="question", gold=GoldRule(field="answer"))
    prepare(spec, out, {}, None)
    path.write_text('{"question": "1 + 1?", "answer": "3"}\n')
    with pytest.raises(UserError, match="has changed since the configuration was read; run snakemake again"):
        prepare(spec, tmp_path / "other.parquet", {}, None)


# models that are elsewhere


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_users_folder_is_compared_with_what_it_was_at_first(file: str, tiny_toy: Path, tmp_path: Path) -> None:
    mine, made, run = tmp_path / "mine", tmp_path / "made", tmp_path / "run"
    shutil.copytree(tiny_toy, mine)
    (mine / "model.json").unlink()
    make_model(folder_model(mine), RuntimeSettings(), made, None)
    base_run(base_spec(folder_model(mine)), made, run)
    (mine / "trainer_state.json").write_text("{}")
    for folder in (made, run / "checkpoint"):
        load(folder, DeviceSettings())
    content = (mine / file).read_bytes()
    (mine / file).write_bytes(flipped(content, len(content) // 2, 0))
    what = "weights have changed" if file.endswith("safetensors") else f"{file} has changed"
    for folder in (made, run / "checkpoint"):
        with pytest.raises(UserError, match=rf"^model folder {mine}: its {what} since first use .*put the old file"):
            load(folder, DeviceSettings())


def test_a_damaged_cache_of_the_hub_is_told(tiny_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, run = tmp_path / "cache" / "models--org--tiny" / "snapshots" / "abc", tmp_path / "run"
    shutil.copytree(tiny_toy, cached)
    (cached / "model.json").unlink()
    monkeypatch.setattr(base_model, "fetch", lambda name, revision: cached)
    for module in (base_model, references):
        monkeypatch.setattr(module, "locked", lambda name, commit: cached)
    make_model(hub_model("org/tiny"), RuntimeSettings(), tmp_path / "made", None)
    base_run(base_spec(toy_model()), tmp_path / "made", run)
    for folder in (tmp_path / "made", run / "checkpoint"):
        load(folder, DeviceSettings())
    content = (cached / "tokenizer.json").read_bytes()
    (cached / "tokenizer.json").write_bytes(flipped(content, 100, 1))
    again = rf"model org/tiny: .*tokenizer.json is damaged.*remove the folder {cached.parents[1]} and run snakemake"
    for folder in (tmp_path / "made", run / "checkpoint"):
        with pytest.raises(UserError, match=again):
            load(folder, DeviceSettings())


def test_a_model_that_was_made_again_and_is_another_is_told(inputs: Inputs, tmp_path: Path) -> None:
    """On another machine a toy may come out differently; what was measured is of the first."""
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(inputs["model"], model)
    base_run(base_spec(toy_model()), model, run)
    shutil.rmtree(model)
    changed_copy(inputs["model"], model)
    with pytest.raises(UserError, match=rf"^{run}/checkpoint is of other weights than {model} has now; remove {run}"):
        load(run / "checkpoint", DeviceSettings())


DAMAGED_PLACES: dict[str, tuple[Callable[[Inputs], Path], str]] = {
    "a checkpoint": (lambda made: made["run"] / "checkpoint", "checkpoint and .*progress.pt"),
    "a model": (lambda made: made["model"], "model"),
}


@pytest.mark.parametrize("name", DAMAGED_PLACES)
def test_the_line_says_what_to_remove(name: str, inputs: Inputs) -> None:
    place, what = DAMAGED_PLACES[name]
    path = place(inputs) / "tokenizer.json"
    content = path.read_bytes()
    path.write_bytes(flipped(content, 50, 2))
    told = rf"^{path} is damaged, .*; remove the folder .*{what} and run snakemake again$"
    with pytest.raises(UserError, match=told):
        load(path.parent, DeviceSettings())
    path.write_bytes(content)


def test_old_manifests_know_the_weights_alone(inputs: Inputs, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(inputs["model"], model)
    manifest = read_manifest(model / "model.json")
    del manifest["files"]
    write_manifest(model / "model.json", manifest)
    load(model, DeviceSettings())
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(flipped(content, len(content) // 2, 0))
    with pytest.raises(UserError, match="is damaged"):
        load(model, DeviceSettings())


def test_a_users_folder_may_be_one_that_was_made_here(inputs: Inputs, tmp_path: Path) -> None:
    made = tmp_path / "made"
    make_model(folder_model(inputs["run"] / "checkpoint"), RuntimeSettings(), made, None)
    files = read_manifest(made / "model.json")["files"]
    assert files.keys() >= {"model.safetensors", "tokenizer.json", "config.json"} and "checkpoint.json" not in files
    load(made, DeviceSettings())
