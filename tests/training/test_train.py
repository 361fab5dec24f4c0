"""The training loop resumes without a trace, keeps its best checkpoint, and records divergence.

Held-out problems are left alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from softtok.__main__ import main
from softtok.config.settings import RuntimeSettings
from softtok.errors import UserError
from softtok.method.teacher_forcing import SharedPrompts
from softtok.method.vocabulary_products import Vocabulary
from softtok.models.language_model import LanguageModel
from softtok.storage.files import content_hash, read_json
from softtok.storage.locks import Interruption, exclusive_lock
from softtok.training.state import RunState
from softtok.training.train import Trainer, prompts_of_step, train
from tests.support.processes import noted_stderr, until
from tests.support.specs import HARD, SOFT
from tests.support.specs import train_spec as spec
from tests.support.training_runs import lines, stopped_in_step, weights


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_toy: Path, toy_sets: dict[str, Path]) -> Path:
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    return run


def test_outputs_and_manifest(uninterrupted: Path, tiny_toy: Path) -> None:
    manifest = read_json(uninterrupted / "manifest.json")
    assert manifest["steps"] == 6
    assert manifest["diverged"] is None
    assert [attempt["event"] for attempt in manifest["attempts"]] == ["start"]
    assert {"commit", "torch", "device"} <= manifest["provenance"].keys()
    assert manifest["provenance"]["precision"] == "fp32", "it is in no hash, and changes results"
    steps = lines(uninterrupted)
    assert [line["step"] for line in steps] == list(range(7))
    assert [line["step"] for line in steps if "validation" in line] == [0, 2, 4, 6]
    assert all(
        {"gradient_norm_cot", "gradient_norm_answer"} <= line.keys() for line in steps if line["step"] in (2, 4, 6)
    )
    checkpoint = read_json(uninterrupted / "checkpoint" / "checkpoint.json")
    assert checkpoint["sha256"] == manifest["checkpoint_sha256"]
    before = weights(tiny_toy)
    assert any(not torch.equal(value, before[name]) for name, value in weights(uninterrupted / "checkpoint").items())
    rms = before["model.embed_tokens.weight"].square().mean().sqrt().item()
    assert checkpoint["embedding_rms"] == pytest.approx(rms), "sigma is measured on the base, not on the trained model"
    saved = torch.load(uninterrupted / ".state" / "progress.pt")
    assert saved["optimizer"] is None, "the optimizer's state goes when the run is done"


def test_rollout_is_on_policy_and_recomputed_exactly(uninterrupted: Path) -> None:
    steps = [line for line in lines(uninterrupted) if "noise_check" in line]
    assert steps, "some step had a non-zero advantage"
    assert all(line["recomputation_gap"] < 1e-3 for line in steps)
    # The mean of chi-square noise over T*D coordinates: T*D >= 100 * 32 here, so 10 % is over five standard errors.
    assert np.mean([line["noise_check"] for line in steps]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_run_resumes_as_if_nothing_had_happened(
    stop_after: int,
    uninterrupted: Path,
    tmp_path: Path,
    tiny_toy: Path,
    toy_sets: dict[str, Path],
) -> None:
    run = tmp_path / "run"
    with stopped_in_step(stop_after):
        train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "a caller's Ctrl-C works again afterwards"
    assert not (run / "manifest.json").exists()
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    assert lines(run) == lines(uninterrupted)
    expected = weights(uninterrupted / "checkpoint")
    assert all(torch.equal(value, expected[name]) for name, value in weights(run / "checkpoint").items())
    events = [attempt["event"] for attempt in read_json(run / "manifest.json")["attempts"]]
    assert events == ["start", "interrupted", "start"]


def test_a_killed_process_resumes(
    uninterrupted: Path, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]
) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "softtok", "train", "--spec", spec().as_json(), "--runtime", '{"save_every": 1}',
        "--model", str(tiny_toy), "--data", str(toy_sets["train"]), "--out", str(run),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    saved = run / ".state" / "progress.pt"
    deadline = time.monotonic() + 120
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert lines(run) == lines(uninterrupted)


def test_state_of_another_spec_is_not_resumed(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "finish", lambda *_: None)
        train(spec(learning_rate=5e-5), RuntimeSettings(save_every=4), tiny_toy, toy_sets["train"], run)
    assert (run / ".state" / "progress.pt").exists()
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    assert "another spec" in capsys.readouterr().out
    assert lines(run) == lines(uninterrupted)


def test_machine_settings_do_not_change_the_result(
    uninterrupted: Path, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]
) -> None:
    runtime = RuntimeSettings(micro_batch_tokens=100, tile_tokens=7, rollout_rows=3, save_every=1)
    train(spec(), runtime, tiny_toy, toy_sets["train"], tmp_path / "run")
    for ours, theirs in zip(lines(tmp_path / "run"), lines(uninterrupted), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if name not in ("recomputation_gap", "near_ties"):
                assert value == pytest.approx(theirs[name], rel=2e-3), f"{name} at step {ours['step']}"


def test_best_checkpoint_is_the_one_that_validated_best(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([90.0, 60.0, 60.0, 10.0])  # the base, then steps 2, 4 and 6
    monkeypatch.setattr(Trainer, "validate", lambda self: next(scores))
    kept: dict[int, dict[str, torch.Tensor]] = {}
    take_step = Trainer.take_step

    def remember(self: Trainer, step: int) -> dict[str, Any]:
        line = take_step(self, step)
        kept[step] = {name: value.detach().clone() for name, value in self.lm.model.state_dict().items()}
        return line

    monkeypatch.setattr(Trainer, "take_step", remember)
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert (manifest["best_step"], manifest["best_validation"]) == (4, 60.0), (
        "the base does not compete; of equals the later wins"
    )
    for name, value in weights(tmp_path / "run" / "checkpoint").items():
        assert torch.equal(value, kept[4][name])


def test_a_kill_while_a_better_checkpoint_is_saved_costs_no_weights(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill falls between the weights of step 4 and the file that says that they are the best.

    Validated again, step 4 is worse than step 2 (a GPU need not give the same numbers twice).
    """
    run = tmp_path / "run"
    save = torch.save
    saved = []

    def killed(value: dict[str, Any], path: Path) -> None:
        if value["step"] == 4:
            raise KeyboardInterrupt
        saved.append((run / ".state" / "best-2" / "model.safetensors").read_bytes())
        save(value, path)

    with monkeypatch.context() as patch:
        scores = iter([10.0, 50.0, 60.0])
        patch.setattr(Trainer, "validate", lambda self: next(scores))
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(spec(), RuntimeSettings(save_every=2), tiny_toy, toy_sets["train"], run)
    (run / ".state" / ".best-4.123.tmp").mkdir()  # as a kill in the middle of the weights leaves it
    (run / ".state" / ".progress.pt.123.tmp").touch()
    scores = iter([40.0, 30.0])

    def worse(self: Trainer) -> float:
        assert not list(self.state.folder.glob(".*.tmp")), "what is half written is gone before there is more to write"
        return next(scores)

    monkeypatch.setattr(Trainer, "validate", worse)
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    manifest = read_json(run / "manifest.json")
    assert (manifest["best_step"], manifest["best_validation"]) == (2, 50.0)
    assert (run / "checkpoint" / "model.safetensors").read_bytes() == saved[-1]
    left = {path.name for path in (run / ".state").iterdir()}
    expected = {"best-2", "progress.pt", "attempts.jsonl", "step", "locks", "notes"}
    assert left == expected, "nothing half written or out of date"


@pytest.mark.parametrize(
    ("save_every", "killed_in", "saved", "kept"),
    [(3, 3, [], {2}), (3, 5, [3], {2, 4}), (3, 6, [3], {2, 4}), (5, 5, [], {4}), (5, 6, [5], {4})],
)
def test_a_kill_between_rare_saves_leaves_no_trace(
    save_every: int,
    killed_in: int,
    saved: list[int],
    kept: set[int],
    tmp_path: Path,
    tiny_toy: Path,
    toy_sets: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights that validate best between two saves do not replace those of the last save, nor do they pile up."""
    run = tmp_path / "run"
    saves: list[int] = []
    rare = RuntimeSettings(save_every=save_every)
    validate, take_step, save = Trainer.validate, Trainer.take_step, RunState.save
    better = {0: 0.0, 2: 50.0, 4: 60.0, 6: 55.0}

    def improving(self: Trainer) -> float:
        validate(self)
        return better[self.state.step]

    def killed(self: Trainer, step: int) -> dict[str, Any]:
        if step == killed_in:
            raise KeyboardInterrupt
        return take_step(self, step)

    def counted(self: RunState, done: bool = False) -> None:
        saves.append(self.step)
        save(self, done)

    monkeypatch.setattr(Trainer, "validate", improving)
    monkeypatch.setattr(RunState, "save", counted)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(spec(), rare, tiny_toy, toy_sets["train"], run)
    assert {path.name for path in (run / ".state").glob("*best-*")} == {f"best-{step}" for step in kept}
    assert saves == saved
    train(spec(), rare, tiny_toy, toy_sets["train"], run)
    assert saves == [save_every, 6], "and at the end, without a validation's own"
    assert {path.name for path in (run / ".state").glob("*best-*")} == {"best-4"}
    manifest = read_json(run / "manifest.json")
    assert (manifest["best_step"], manifest["best_validation"]) == (4, 60.0)
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "whole")
    assert lines(run) == lines(tmp_path / "whole")
    weights_of = [(folder / "checkpoint" / "model.safetensors").read_bytes() for folder in (run, tmp_path / "whole")]
    assert weights_of[0] == weights_of[1]


def test_one_training_at_a_time_is_at_a_run(
    uninterrupted: Path,
    tmp_path: Path,
    tiny_toy: Path,
    toy_sets: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job that outlived its Snakemake meets the job that the next Snakemake started.

    The second waits before it reads anything, and finds the run finished.
    """
    monkeypatch.setattr("softtok.storage.locks.LOCK_POLL_S", 0.01)
    printed = noted_stderr(monkeypatch)
    run = tmp_path / "run"
    failed: list[BaseException] = []
    monkeypatch.setattr(Trainer, "take_step", lambda *_: pytest.fail("a step was taken"))

    def second() -> None:
        try:
            train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
        except BaseException as error:
            failed.append(error)

    with exclusive_lock(run / ".state" / "locks" / "train", Interruption()):
        thread = threading.Thread(target=second)
        thread.start()
        until(lambda: "waiting for another job" in printed.getvalue() or not thread.is_alive())
        assert "waiting for another job" in printed.getvalue()
        assert "softtok: on " not in printed.getvalue(), "nothing is loaded before"
        shutil.copytree(uninterrupted, run, dirs_exist_ok=True)  # the first comes to its end
    thread.join()
    assert not failed
    assert (run / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    assert read_json(run / "checkpoint" / "checkpoint.json") == read_json(
        uninterrupted / "checkpoint" / "checkpoint.json"
    )


def test_the_time_of_a_run_is_that_of_all_its_attempts(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clock, stops = tmp_path / "run", [0.0], [3]
    take_step = Trainer.take_step

    def slow(self: Trainer, step: int) -> dict[str, Any]:
        clock[0] += 1000
        if step in stops:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, step)

    monkeypatch.setattr(Trainer, "take_step", slow)
    watch = SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter)
    monkeypatch.setattr("softtok.training.train.time", watch)
    monkeypatch.setattr("softtok.training.state.time", watch)
    with pytest.raises(SystemExit):
        train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    stops.clear()
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    assert read_json(run / "manifest.json")["wall_s"] == 7000, "the third step was given up, and took its time"


def test_a_micro_batch_that_does_not_fit_is_halved(
    tmp_path: Path,
    tiny_toy: Path,
    toy_sets: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a GPU whose memory ends in the middle of a pass: the step is that of one with enough."""
    runs: list[tuple[int, list[torch.Tensor]]] = []
    room = [10**6, 300]
    predictors = SharedPrompts.predictors

    def short(self: SharedPrompts, lm: LanguageModel, batch: np.ndarray, embeds: torch.Tensor) -> torch.Tensor:
        if len(batch) * (self.mask_BP.shape[1] + embeds.shape[1]) > room[len(runs)]:
            raise torch.OutOfMemoryError
        return predictors(self, lm, batch, embeds)

    monkeypatch.setattr(SharedPrompts, "predictors", short)
    for _ in room:
        trainer = Trainer(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)
        with trainer.judge:
            trainer.take_step(1)
        runs.append((trainer.tiling.micro_batch_tokens, list(trainer.optimizer.gradients.values())))
    (whole, wanted), (halved, found) = runs
    assert whole == 16384 and halved in (256, 512)
    less = f"micro_batch_tokens: {halved}, tile_tokens: {halved // 8}"
    assert f"out of memory in step 1; continuing with {less}" in capsys.readouterr().out
    assert all((a - b).norm() <= 1e-5 * a.norm() for a, b in zip(wanted, found, strict=True))
    room[0], runs = 1, []
    with trainer.judge, pytest.raises(torch.OutOfMemoryError):
        trainer.take_step(2)


def test_logits_that_are_no_numbers_are_divergence(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of NaNs no token can be sampled: the step ends before they become rewards, whatever those are."""
    known = Vocabulary.logits
    steps: list[int] = []

    def broken(vocabulary: Vocabulary, hidden: torch.Tensor) -> torch.Tensor:
        logits = known(vocabulary, hidden)
        return logits * torch.nan if len(steps) == 2 else logits

    take_step = Trainer.take_step

    def noted(self: Trainer, step: int) -> dict[str, Any]:
        steps.append(step)
        return take_step(self, step)

    monkeypatch.setattr(Trainer, "take_step", noted)
    monkeypatch.setattr(Vocabulary, "logits", broken)
    for name, mode in {"hard": HARD, "soft": SOFT}.items():
        steps.clear()
        train(spec(mode), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / name)
        manifest = read_json(tmp_path / name / "manifest.json")
        assert manifest["diverged"] == {"step": 2, "reason": "entropy of the CoT is nan"} and manifest["steps"] == 1


def test_divergence_is_a_recorded_result(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from softtok.training import optimizer

    norms = iter([1.0, 1.0, 1.0, 1.0, float("nan")])
    monkeypatch.setattr(optimizer.MasterAdamW, "gradient_norm", lambda self: next(norms))
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["diverged"] == {"step": 3, "reason": "gradient norm is nan"}
    assert manifest["best_step"] == 2
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").exists()


def test_problems_are_used_once_per_epoch_and_held_out_ones_never(
    tiny_toy: Path, toy_sets: dict[str, Path], tmp_path: Path
) -> None:
    trainer = Trainer(spec(prompts_per_step=3), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)
    other = Trainer(spec(prompts_per_step=3, seed=1), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)
    assert [p.id for p in trainer.validation] == [p.id for p in other.validation], "the same slice for every seed"
    assert not {p.id for p in trainer.validation} & {p.id for p in trainer.problems}
    assert len(trainer.problems) == 32
    settings = trainer.settings
    used = [p.id for step in range(1, 33) for p in prompts_of_step(step, trainer.problems, settings, 0)]
    for epoch in range(3):
        assert sorted(used[32 * epoch : 32 * (epoch + 1)]) == sorted(p.id for p in trainer.problems)
    assert used[:32] != used[32:64]
    assert (
        used[:32] != [p.id for step in range(1, 12) for p in prompts_of_step(step, trainer.problems, settings, 1)][:32]
    )


def test_too_few_problems_is_one_clear_line(tiny_toy: Path, toy_sets: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"40 problems leave 0 to train on after validation_problems: 40"):
        Trainer(spec(validation_problems=40), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path)


def test_seeds_differ(tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], uninterrupted: Path) -> None:
    train(spec(seed=1), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    assert [line["reward"] for line in lines(tmp_path / "run")[1:]] != [
        line["reward"] for line in lines(uninterrupted)[1:]
    ]


def test_interrupted_finish_is_finished_by_the_next_attempt(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake deletes declared outputs of a failed job; weights and state must be enough to make them again."""
    run = tmp_path / "run"
    from softtok.training import train as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_text", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    shutil.rmtree(run / "checkpoint")
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    assert lines(run) == lines(uninterrupted)
    assert read_json(run / "checkpoint" / "checkpoint.json") == read_json(
        uninterrupted / "checkpoint" / "checkpoint.json"
    )


@pytest.mark.parametrize("command", ["train", "evaluate", "choices", "base"])
def test_inputs_that_are_not_there_are_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"spec": "{}", "runtime": "{}", "data": str(tmp_path), "out": str(tmp_path / "out")}
    needs = {"train": "model", "evaluate": "run", "choices": "run", "base": "model"}[command]
    names = ["spec", *(["runtime", "data"] if command != "base" else []), "out"]
    options = [word for name in names for word in (f"--{name}", there[name])]
    assert main([command, *options, f"--{needs}", str(tmp_path / "gone")]) == 1
    assert capsys.readouterr().err == f"softtok: error: {tmp_path / 'gone'} does not exist; snakemake makes it\n"


def test_content_hash_ignores_key_order() -> None:
    assert (
        content_hash({"a": 1, "b": [1, 2]})
        == content_hash({"b": [1, 2], "a": 1})
        != content_hash({"a": 1, "b": [2, 1]})
    )


def test_hard_mode_runs_through_the_same_loop(tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]) -> None:
    train(spec(HARD, steps=2), RuntimeSettings(), tiny_toy, toy_sets["train"], tmp_path / "run")
    assert "noise_check" not in lines(tmp_path / "run")[-1]
    shutil.rmtree(tmp_path / "run")


def test_the_suite_s_toy_is_sometimes_right(uninterrupted: Path) -> None:
    """Else the gradients above would be of nothing."""
    assert all(0 < line["reward"] < 100 for line in lines(uninterrupted)[1:])
    assert all(line["gradient_norm"] > 0 for line in lines(uninterrupted)[1:])


def test_outputs_that_are_deleted_come_back_without_a_step(
    uninterrupted: Path, tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake deletes them when it did not see the end of the job that made them."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    for name in ("manifest.json", "metrics.jsonl"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoint")
    monkeypatch.setattr(Trainer, "take_step", lambda *_: pytest.fail("a step was taken"))
    train(spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], run)
    assert (run / "metrics.jsonl").read_text() == (uninterrupted / "metrics.jsonl").read_text()
    expected = weights(uninterrupted / "checkpoint")
    assert all(torch.equal(value, expected[name]) for name, value in weights(run / "checkpoint").items())
