"""What is saved survives kills, power cuts, full disks and damaged files, or says in one line what to do."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from softtok.__main__ import main
from softtok.config.settings import RuntimeSettings
from softtok.errors import UserError
from softtok.problems.workers import BrokenWorkersError, Workers
from softtok.storage.files import atomic, read_columns, read_json, write_text
from softtok.storage.locks import EXIT_INTERRUPTED
from softtok.storage.provenance import attempt, attempts
from softtok.storage.retries import saved_step
from softtok.training.checkpoint import read_progress, write_progress
from softtok.training.train import Trainer, train
from tests.support.specs import HARD, data_spec, train_spec
from tests.support.training_runs import lines

SPEC = train_spec(HARD, steps=3, warmup_steps=1, max_cot_tokens=8, validate_every=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(SPEC, RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    return run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Path:
    """Killed in its last step."""
    run = tmp_path_factory.mktemp("runs") / "stopped"
    take_step = Trainer.take_step

    def killed(self: Trainer, step: int) -> dict[str, Any]:
        if step == 3:
            raise KeyboardInterrupt
        return take_step(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "take_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(SPEC, RuntimeSettings(save_every=1), tiny_toy, toy_sets["train"], run)
    return run


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 32 KiB: what a full disk does, as far as a write can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32768, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def flipped(content: bytes) -> bytes:
    """One bit of a tensor in the middle, which PyTorch would read as another number."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: b"\0" * 999, flipped]
)
def test_a_damaged_save_is_put_aside_and_the_run_starts_afresh(
    damage: Callable[[bytes], bytes],
    stopped: Path,
    finished: Path,
    tmp_path: Path,
    tiny_toy: Path,
    toy_sets: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    saved = run / ".state" / "progress.pt"
    damaged = damage(saved.read_bytes())
    saved.write_bytes(damaged)
    train(SPEC, RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    told = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    assert len(told) == 1 and str(saved) in told[0] and "starting from step 0" in told[0]
    assert (run / ".state" / "progress.damaged").read_bytes() == damaged
    assert lines(run) == lines(finished)
    step = read_json(finished / "manifest.json")["best_step"]
    assert [path.name for path in (run / ".state").glob("best-*")] == [f"best-{step}"]


def test_half_a_line_in_the_log_of_attempts_is_left_out(
    stopped: Path, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    log = run / ".state" / "attempts.jsonl"
    log.write_bytes(log.read_bytes()[:-20] + b"\xff")
    train(SPEC, RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    assert [event["event"] for event in read_json(run / "manifest.json")["attempts"]] == ["start", "start"]
    assert [event["event"] for event in attempts(log)] == ["start", "start", "done"]


@pytest.mark.parametrize("where", ["checkpoint/model.safetensors", ".state/best"])
def test_weights_damaged_in_place_are_not_taken_for_the_checkpoint(
    where: str,
    finished: Path,
    tmp_path: Path,
    tiny_toy: Path,
    toy_sets: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The checkpoint's file and the one it is made again of are the same."""
    run = tmp_path / "run"
    train(SPEC, RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    if where == ".state/best":
        (best,) = (run / ".state").glob("best-*")
        shutil.rmtree(best)
    else:
        with open(run / where, "r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"damage")
    shutil.rmtree(run / "checkpoint")
    for _ in range(2):
        with pytest.raises(UserError, match=r"not the weights that were saved.*; remove .*progress.pt and run") as told:
            train(SPEC, RuntimeSettings(), tiny_toy, toy_sets["train"], run)
        assert "\n" not in str(told.value) and not (run / "checkpoint").exists()
    (run / ".state" / "progress.pt").unlink()
    train(SPEC, RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    assert (
        read_json(run / "manifest.json")["checkpoint_sha256"]
        == read_json(finished / "manifest.json")["checkpoint_sha256"]
    )


@pytest.mark.parametrize("damage", ["gone", "half", "no object"])
def test_a_model_without_its_manifest_is_one_line(
    damage: str, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_toy, model)
    manifest = model / "model.json"
    manifest.unlink() if damage == "gone" else manifest.write_text({"half": '{"sha', "no object": "[]"}[damage])
    options = {"spec": SPEC.as_json(), "runtime": "{}", "model": model, "data": toy_sets["train"], "out": tmp_path}
    assert main(["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"softtok: error: {manifest} cannot be read (")
    assert told.endswith(f"; remove the folder {model} and run snakemake again")


def test_a_damaged_data_set_is_one_line(tmp_path: Path, toy_sets: dict[str, Path]) -> None:
    data = tmp_path / "data.parquet"
    content = toy_sets["train"].read_bytes()
    for damaged in (content[: len(content) // 2], b""):
        data.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"^{data} is not a readable parquet file \(.*\); remove it and run snake"):
            read_columns(data, ["id"])
    data.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{data} has no column 'x'; remove it and run snakemake again$"):
        read_columns(data, ["id", "x"])


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        calls.append(f"{Path(source).name} -> {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_text(tmp_path / "file", "text")
    temporary = calls[0]
    assert calls == [temporary, f"{temporary} -> file", tmp_path.name]
    calls.clear()
    with atomic(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "weights").write_text("many")
    assert calls == ["weights", folder.name, f"{folder.name} -> folder", tmp_path.name]
    calls.clear()
    write_progress(tmp_path / "progress.pt", {"step": 1}, 0)
    assert len(calls) == 3 and calls[1].endswith("-> progress.pt")


def test_two_writers_of_a_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    with atomic(tmp_path / "file") as one, atomic(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one"


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path: Path, small_files: None) -> None:
    path = tmp_path / "state" / "progress.pt"
    write_progress(path, {"step": 1}, 100)
    with pytest.raises(UserError, match=rf"^{path.parent}: cannot be written \(.*\); it takes 1.50 GB, .* GB are free"):
        write_progress(path, {"step": 2, "tensor": torch.zeros(100_000)}, 1_500_000_000)
    assert {item.name for item in path.parent.iterdir()} == {"progress.pt", "step"}
    assert saved_step(path.parent) == 1
    assert read_progress(path) == {"step": 1}, "the last save is as it was"


def test_weights_that_do_not_fit_on_the_disk_are_one_line(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], small_files: None
) -> None:
    trainer = Trainer(SPEC, RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    with pytest.raises(UserError, match=r"\.state: cannot be written .*; it takes 0.00 GB"):
        trainer.state.save_weights()
    assert list((tmp_path / "run" / ".state").iterdir()) == []


def test_a_mistake_of_another_kind_while_saving_is_not_taken_for_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise torch.OutOfMemoryError("no room on the GPU")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(torch.OutOfMemoryError):
        write_progress(tmp_path / "progress.pt", {}, 0)


def test_a_full_disk_does_not_hide_why_a_job_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("softtok.storage.files.open", full, raising=False)
    with pytest.raises(ValueError, match="the reason"), attempt(tmp_path / "log.jsonl"):
        raise ValueError("the reason")


def test_a_full_disk_is_one_line_in_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("softtok.problems.prepare.prepare", full)
    spec = data_spec("test", {"toy": {"task": "sums", "problems": 2}}).as_json()
    assert main(["data", "--spec", spec, "--out", str(tmp_path / "data")]) == 1
    told = "softtok: error: [Errno 28] No space left on device: 'somewhere'; make room and run it again\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("breaks", ["in a step", "in a validation"])
def test_workers_that_break_while_a_signal_is_pending_cost_nothing(
    breaks: str,
    finished: Path,
    tmp_path: Path,
    tiny_toy: Path,
    toy_sets: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job saves and exits with 75, and goes on as if nothing had happened; without a signal it is an error."""
    run, ask, calls = tmp_path / "run", Workers.ask, Counter[str]()

    def broken(self: Workers, *arguments: Any) -> dict[Any, Any]:
        calls["all"] += 1
        # Step 0 is validated; then a step and its validation ask once each, the latter in batches.
        if calls["all"] >= {"in a step": 4, "in a validation": 5}[breaks]:
            if calls["signals"]:
                os.kill(os.getpid(), signal.SIGTERM)
            raise BrokenWorkersError("the workers do not start")
        return ask(self, *arguments)

    for signals, expected in ((0, BrokenWorkersError), (1, SystemExit)):
        with monkeypatch.context() as patch:
            patch.setattr(Workers, "ask", broken)
            calls.update(all=-calls["all"], signals=signals)
            with pytest.raises(expected) as ended:
                train(SPEC, RuntimeSettings(), tiny_toy, toy_sets["train"], run)
            assert signals == 0 or ended.value.args == (EXIT_INTERRUPTED,)
        assert (run / ".state" / "progress.pt").exists() == bool(signals)
    train(SPEC, RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    assert lines(run) == lines(finished)
    assert (
        read_json(run / "manifest.json")["checkpoint_sha256"]
        == read_json(finished / "manifest.json")["checkpoint_sha256"]
    )
