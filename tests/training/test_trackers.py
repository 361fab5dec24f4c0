"""Trackers get what metrics.jsonl says of each step, live and once, and change nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from softtok.__main__ import main
from softtok.config import trackers as config_module
from softtok.config.grid import Grid
from softtok.config.load import load
from softtok.config.settings import RuntimeSettings, Tracker
from softtok.config.trackers import NAMES
from softtok.errors import UserError
from softtok.training.state import Metrics
from softtok.training.trackers import Trackers
from softtok.training.train import Trainer, train
from tests.support.project import Project, shipped
from tests.support.specs import train_spec
from tests.support.training_runs import lines, of_machine

pytest.importorskip("tensorboard", reason="the optional extra `trackers` is not installed")


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns what TensorBoard shows of a run: the steps and values of each metric, as they were written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run / "tensorboard").iterdir()
    events = EventAccumulator(str(folder), purge_orphaned_data=False)
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def killed_in_step(number: int, patch: pytest.MonkeyPatch) -> list[dict[str, list[tuple[int, float]]]]:
    """Ends a training at the beginning of a step as a kill does, without a save; returns what was logged by then."""
    take_step, seen = Trainer.take_step, []

    def dies(self: Trainer, step: int) -> Metrics:
        if step == number:
            seen.append(scalars(self.out))
            raise RuntimeError("killed")
        return take_step(self, step)

    patch.setattr(Trainer, "take_step", dies)
    return seen


def test_tensorboard_has_every_step_once_also_after_a_kill(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]
) -> None:
    run, runtime = tmp_path / "run", RuntimeSettings(trackers=["tensorboard"], save_every=3)
    with pytest.MonkeyPatch.context() as patch:
        seen = killed_in_step(6, patch)
        with pytest.raises(RuntimeError, match="killed"):
            train(train_spec(), runtime, tiny_toy, toy_sets["train"], run)
    assert [step for step, _ in seen[0]["reward"]] == [1, 2, 3, 4, 5], "before the training is done"
    train(train_spec(), runtime, tiny_toy, toy_sets["train"], run)  # goes on after step 3
    plain = tmp_path / "plain"
    train(train_spec(), RuntimeSettings(), tiny_toy, toy_sets["train"], plain)
    assert lines(run) == lines(plain), "what a run becomes does not depend on it"
    assert not (plain / "tensorboard").exists() and not list((plain / ".state").glob("trackers*"))

    written = scalars(run)
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in told for name, value in line.items() if isinstance(value, int | float)} - {"step"}
    assert set(written) == names and {"reward", "validation", "tokens_per_s", "wall_s"} <= names
    for name in names:
        expected = [(line["step"], line[name]) for line in told if isinstance(line.get(name), int | float)]
        assert [step for step, _ in written[name]] == [step for step, _ in expected], name
        if not of_machine(name):  # steps 4 and 5 were taken twice, and not in equal times
            assert [value for _, value in written[name]] == pytest.approx([value for _, value in expected], rel=1e-4)


def test_a_tracker_that_is_added_later_gets_the_steps_before(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path]
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        killed_in_step(5, patch)
        with pytest.raises(FileNotFoundError, match="tensorboard"):  # there is no log to read
            train(train_spec(), RuntimeSettings(save_every=2), tiny_toy, toy_sets["train"], run)
    train(train_spec(), RuntimeSettings(trackers=["tensorboard"]), tiny_toy, toy_sets["train"], run)
    assert [step for step, _ in scalars(run)["reward"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in scalars(run)["validation"]] == [0, 2, 4, 6]


class Recorder:
    """Stands in for a tracker of accelerate's that needs an account: it notes calls, and fails when it is told to."""

    requires_logging_directory = False
    calls: ClassVar[list[tuple[str, Any]]] = []
    fails_at: int | None = None
    broken = ""

    def __init__(self, project: str, **options: Any) -> None:
        self.calls.append(("open", (project, options)))

    def start(self) -> None:
        if self.broken:
            raise OSError(self.broken)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(("settings", values))

    def log(self, values: dict[str, Any], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("no\nroute")
        self.calls.append(("log", step))

    def finish(self) -> None:
        self.calls.append(("finish", None))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """Stands in for Weights & Biases."""
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Recorder)
    monkeypatch.setattr(config_module, "_installed", lambda package: package == "wandb")
    monkeypatch.setattr(Recorder, "calls", [])
    return Recorder


STEPS = [{"step": step, "reward": float(step), "validation": None, "made_on": "cpu"} for step in range(5)]


def opened(run: Path, key: str = "0123456789abcdef0123") -> Trackers:
    return Trackers(["wandb", "wandb"], train_spec(), run, key)


def logged(tracker: type[Recorder]) -> list[int]:
    return [what for call, what in tracker.calls if call == "log"]


def test_a_run_goes_on_under_its_own_name(tmp_path: Path, wandb: type[Recorder]) -> None:
    for steps in (2, 5):
        with opened(tmp_path) as trackers:
            trackers.log(STEPS[:steps])
    first, second = (what for call, what in wandb.calls if call == "open")
    assert first == second and first[0] == "softtok"
    assert first[1]["resume"] == "allow" and first[1]["id"] == "0123456789abcdef"
    ((_, settings),) = [call for call in wandb.calls if call[0] == "settings"]
    assert settings["samples_per_prompt"] == 8 and settings["tokens"] == "soft"
    assert not [value for value in settings.values() if not isinstance(value, int | float | str)]
    assert logged(wandb) == [0, 1, 2, 3, 4]
    assert [call for call, _ in wandb.calls].count("finish") == 2
    with opened(tmp_path, "another training, in the same place") as trackers:
        trackers.log(STEPS[:2])
    assert logged(wandb)[5:] == [0, 1], "nothing of another model or other data is taken for it"


def test_a_tracker_that_fails_ends_no_training_and_gets_the_rest_later(
    tmp_path: Path, wandb: type[Recorder], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Recorder, "fails_at", 2)
    with opened(tmp_path) as trackers:
        for steps in range(1, 6):
            trackers.log(STEPS[:steps])
    assert logged(wandb) == [0, 1]
    assert capsys.readouterr().out == (
        "softtok: warning: tracker wandb failed at step 2 (no route); going on without it\n"
    )
    monkeypatch.setattr(Recorder, "fails_at", None)
    with opened(tmp_path) as trackers:
        trackers.log(STEPS)
    assert logged(wandb) == [0, 1, 2, 3, 4]


def test_a_kill_between_note_and_log_costs_a_step_and_doubles_none(tmp_path: Path, wandb: type[Recorder]) -> None:
    class Killed(BaseException):
        pass

    def dies(self: Recorder, values: dict[str, Any], step: int) -> None:
        raise Killed

    with opened(tmp_path) as trackers, pytest.MonkeyPatch.context() as patch:
        trackers.log(STEPS[:2])
        patch.setattr(Recorder, "log", dies)
        with pytest.raises(Killed):
            trackers.log(STEPS[:3])
    with opened(tmp_path) as trackers:
        trackers.log(STEPS[:4])
    assert logged(wandb) == [0, 1, 3]


def test_what_does_not_start_or_is_not_installed_is_one_line_before_a_step(
    tmp_path: Path, tiny_toy: Path, toy_sets: dict[str, Path], wandb: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "take_step", lambda *_: pytest.fail("a step was taken"))
    monkeypatch.setattr(Recorder, "broken", "no\nAPI key")
    with pytest.raises(UserError, match=r"^runtime: trackers: wandb does not start \(no API key\); mend that, or .*$"):
        train(train_spec(), RuntimeSettings(trackers=["wandb"]), tiny_toy, toy_sets["train"], tmp_path / "run")
    monkeypatch.setattr("softtok.training.train.Trainer", lambda *_: pytest.fail("a model was loaded"))
    for name, how in (("comet_ml", r"\.venv/bin/pip install comet-ml"), ("tensorboard", "make install-trackers")):
        runtime = RuntimeSettings.model_validate({"trackers": ["wandb", name]})
        with pytest.raises(UserError, match=rf"^runtime: trackers: {name} is not installed here; install it \({how}\)"):
            train(train_spec(), runtime, tiny_toy, toy_sets["train"], tmp_path / "run")


def test_the_names_are_accelerates() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(NAMES) == set(LOGGER_TYPE_TO_CLASS)
    with pytest.raises(ValueError, match="tensorboard"):
        RuntimeSettings.model_validate({"trackers": ["tensorbord"]})


def test_snakemake_and_check_refuse_a_missing_tracker_of_what_they_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config_module, "_installed", lambda package: package == "tensorboard")
    config = shipped()
    config["runtime"]["trackers"] = ["tensorboard", "wandb"]
    with pytest.raises(UserError, match=r"^config: runtime\.trackers: wandb is not installed here"):
        load(config)
    config["runtime"]["trackers"] = ["tensorboard"]
    config["models"]["toy-bpe"].setdefault("runtime", {})["trackers"] = ["wandb"]
    load(config)
    with pytest.raises(UserError, match=r"^config: models\.toy-bpe\.runtime\.trackers: wandb is not installed"):
        load(config, (), ["gsm8k-smoke"])
    project = Project.create(tmp_path / "project", config)
    assert main(["check", "gsm8k-smoke", "--config", str(project.path)]) == 1
    assert "models.toy-bpe.runtime.trackers: wandb is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["tensorboard"], []])
def test_no_result_depends_on_the_setting(given: list[Tracker]) -> None:
    def specs(runtime: dict[str, Any]) -> list[str]:
        grid = Grid(load(shipped() | {"runtime": runtime}))
        kinds = (grid.data, grid.models, grid.runs, grid.evaluations, grid.choices, grid.studies)
        return [job.json for jobs in kinds for job in jobs.values()]

    assert specs({"trackers": given}) == specs({})
