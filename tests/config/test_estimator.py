"""The estimator of a soft CoT's gradient: what pathwise excludes is one line, and other runs keep their specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from softtok.__main__ import main
from softtok.config.load import schema_json
from softtok.config.schema import Block, Config, TrainingMode
from softtok.config.settings import TrainingSettings
from softtok.errors import UserError
from tests.support.configurations import Edit, basic, both, grid_of, hashes, put

KEYS = {"estimator", "adjoint_iterations"}
OBJECTIVE = "from softtok.method.objectives import Objective\n\n\nclass Mine(Objective):\n    pass\n"


def soft(**training: Any) -> Edit:
    """Returns an edit that trains the mode soft in this way."""
    return put("training_modes/soft/training", training)


def pathwise(**training: Any) -> Edit:
    return soft(estimator="pathwise", **training)


AT = "config: training_modes.soft.training.estimator: "
REFUSED: dict[str, tuple[Edit, str]] = {
    "hard tokens": (
        put("training_modes/hard/training", {"estimator": "pathwise"}),
        "config: training_modes.hard.training.estimator: pathwise needs soft CoT tokens with noise; tokens: sampled",
    ),
    "gamma 0": (
        both(put("training_modes/soft/noise_scale", 0.0), pathwise()),
        f"{AT}pathwise needs soft CoT tokens with noise; noise_scale: 0",
    ),
    "Mixture of Inputs": (
        both(
            put("training_modes/hard/inputs_beta", 1.0), put("training_modes/hard/training", {"estimator": "pathwise"})
        ),
        "config: training_modes.hard.inputs_beta: is for inference only",
    ),
    "GRPO": (pathwise(objective="grpo", updates_per_step=2), f"{AT}pathwise is for objective: rloo, not grpo"),
    "PPO": (pathwise(objective="ppo-clip"), f"{AT}pathwise is for objective: rloo, not ppo-clip"),
    "an objective of one's own": (
        pathwise(objective="mine.py:Mine"),
        f"{AT}pathwise is for objective: rloo, not mine.py:Mine",
    ),
    "the answer's term alone": (pathwise(cot_term=False), f"{AT}pathwise is for cot_term: true, not false"),
    "a KL term": (pathwise(kl_coefficient=0.1), f"{AT}pathwise is for kl_coefficient: 0, not 0.1"),
    "iterations of the score": (
        soft(adjoint_iterations=3),
        "config: training_modes.soft.training.adjoint_iterations: has no effect on estimator: score",
    ),
    "iterations of the score, at their default": (
        soft(adjoint_iterations=2),
        "config: training_modes.soft.training.adjoint_iterations: has no effect on estimator: score",
    ),
    "iterations of a score that overrides": (
        both(
            put("models/toy/training/estimator", "pathwise"),
            put("studies/first/training_modes", ["soft"]),
            soft(estimator="score", adjoint_iterations=3),
        ),
        "config: training_modes.soft.training.adjoint_iterations: has no effect on estimator: score",
    ),
    "fewer iterations than none": (pathwise(adjoint_iterations=-1), "training_modes.soft.training.adjoint_iterations"),
    "another estimator": (soft(estimator="path"), "training_modes.soft.training.estimator: 'path' is not possible"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pathwise_excludes_is_one_line_that_names_the_key(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OBJECTIVE, encoding="utf-8")
    edit, message = REFUSED[name]
    with pytest.raises(UserError) as caught:
        grid_of(edit)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


NOISE: dict[str, dict[str, Any]] = {
    "embedding": {"noise_scale": 0.33},
    "hidden": {"noise_scale": 0.33, "noise_at": "hidden"},
    "logits": {"noise_scale": 0.33, "noise_at": "logits"},
    "gumbel": {"noise": "gumbel"},
}


@pytest.mark.parametrize("temperature", [0.5, 1e-4])
@pytest.mark.parametrize("place", NOISE)
def test_pathwise_trains_all_soft_tokens_with_a_fixed_e_or_not(place: str, temperature: float) -> None:
    """E is part of F wherever the noise lies, so that its gradient is a choice there; for the score it is none."""
    mode = {"tokens": "soft", "temperature": temperature, **NOISE[place]}
    for training in ({}, {"embedding_gradient": False}, {"entropy_bonus": 0.1}, {"stop_on": "nearest"}):
        given = {"estimator": "pathwise", "adjoint_iterations": 0, **training}
        runs = grid_of(put("training_modes/soft", {**mode, "training": given})).runs.values()
        assert [run.spec.training.adjoint_iterations for run in runs if run.spec.training and run.name == "soft"] == [0]
    fixed = put("training_modes/soft", {**mode, "training": {"embedding_gradient": False}})
    if place == "embedding":
        grid_of(fixed)
    else:
        with pytest.raises(UserError, match=r"soft\.training\.embedding_gradient: has no effect on a mixture after"):
            grid_of(fixed)


def trained(*edits: Edit) -> dict[str, TrainingSettings]:
    """Returns the resolved settings of the trained runs, by mode."""
    return {run.name: run.spec.training for run in grid_of(*edits).runs.values() if run.spec.training}


def test_the_score_in_a_mode_overrides_pathwise_of_its_model() -> None:
    """The score is the default, which an override must not lose on its way."""
    everywhere = put("models/toy/training/estimator", "pathwise")
    with pytest.raises(UserError, match=r"training_modes\.hard\.training\.estimator: pathwise .* set estimator: score"):
        grid_of(everywhere)
    of_hard = put("training_modes/hard/training", {"estimator": "score"})
    found = trained(everywhere, of_hard)
    assert {name: settings.estimator for name, settings in found.items()} == {"hard": "score", "soft": "pathwise"}
    assert found["hard"] == trained()["hard"]
    fewer = put("train_sets/sums/training/adjoint_iterations", 5)
    again = both(everywhere, of_hard, fewer, soft(adjoint_iterations=2))
    assert trained(everywhere, of_hard, fewer)["soft"].adjoint_iterations == 5
    assert trained(again)["soft"].adjoint_iterations == 2, "two is the default, and overrides five"


def test_a_report_shows_the_score_where_it_is_written_down() -> None:
    edits = put("models/toy/training/estimator", "pathwise"), put("training_modes/hard/training/estimator", "score")
    config = grid_of(put("training_modes/hard/training", {}), *edits).studies["first"].spec.config
    assert config["training_modes"]["hard"]["training"] == {"estimator": "score"}
    assert config["models"]["toy"]["training"] == {"steps": 20, "validation_problems": 8, "estimator": "pathwise"}
    assert config["training_modes"]["soft"].keys().isdisjoint({"training"})


# Specs of other runs


def all_json(*edits: Edit) -> dict[str, str]:
    """Returns the specs of a grid's runs and report, as they are hashed."""
    grid = grid_of(*edits)
    return {folder: run.spec.as_json() for folder, run in grid.runs.items()} | {
        name: study.spec.as_json() for name, study in grid.studies.items()
    }


def test_specs_without_the_settings_do_not_hold_them() -> None:
    """Runs made before the settings existed are the same as now, and their reports."""
    for text in all_json().values():
        assert not any(key in text for key in KEYS)
    held = [json.loads(text)["training"] for text in all_json().values() if json.loads(text).get("training")]
    assert len(held) == 2
    for training in held:
        assert training.keys() == TrainingSettings.model_fields.keys() - KEYS
    report = json.loads(all_json()["first"])["config"]["training"]
    assert list(report) == [name for name in TrainingSettings.model_fields if name not in KEYS]


def test_defaults_that_are_written_down_are_the_same_runs() -> None:
    without, written = grid_of(), grid_of(put("training", {"estimator": "score", "adjoint_iterations": 2}))
    assert hashes(written) == hashes(without)
    assert written.studies["first"].hash == without.studies["first"].hash
    assert hashes(grid_of(pathwise(adjoint_iterations=2))) == hashes(grid_of(pathwise()))


def test_other_settings_are_other_runs() -> None:
    edits = (soft(), pathwise(), pathwise(adjoint_iterations=0), pathwise(adjoint_iterations=1))
    made = [hashes(grid_of(edit))["runs"] for edit in edits]
    assert len(set.union(*made)) == 2 + len(edits), "the base's, hard's, and one of soft for each"
    assert all(len(runs) == 3 for runs in made)


@pytest.mark.parametrize(
    "training", [{}, {"estimator": "pathwise"}, {"estimator": "pathwise", "adjoint_iterations": 0}]
)
def test_a_spec_is_read_back_as_it_was(training: dict[str, Any]) -> None:
    settings = TrainingSettings(**training)
    assert TrainingSettings.model_validate_json(settings.as_json()) == settings


def test_settings_that_were_written_down_have_the_order_of_their_class() -> None:
    """A report's spec is text in this order: another order in another process would make it anew."""
    names = list(Block.model_fields)
    lists: dict[str, Any] = {name: [] for name in reversed(names)}
    assert list(Block(**lists).given()) == names
    given: dict[str, Any] = {"validate_every": 3, "estimator": "score", "adjoint_iterations": 2, "cot_term": False}
    written = [name for name in TrainingSettings.model_fields if name in given]
    assert list(TrainingSettings(**given).given().items()) == [(name, given[name]) for name in written]


def test_the_schema_has_both_settings_wherever_a_training_block_is() -> None:
    schema = json.loads(schema_json())
    fields = schema["$defs"]["TrainingSettings"]["properties"]
    assert fields["estimator"]["enum"] == ["score", "pathwise"] and fields["estimator"]["default"] == "score"
    assert fields["adjoint_iterations"]["default"] == 2 and fields["adjoint_iterations"]["minimum"] == 0
    assert "training" in Config.model_fields and "training" in TrainingMode.model_fields


# `softtok check`


def check(folder: Path, *edits: Edit) -> int:
    config = basic()
    for edit in edits:
        edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return main(["check", "first"])


def test_check_remarks_once_on_pathwise_fuzzy_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seeds, valid = put("studies/first/seeds", [0, 1, 2]), "first: the configuration and all plug-ins are valid"
    assert check(tmp_path, seeds, put("training_modes/soft/temperature", 1e-4), pathwise()) == 0
    remarked, last = capsys.readouterr().out.splitlines()
    assert remarked.startswith("training mode 'soft': temperature: 0.0001 is below 0.02")
    assert remarked.endswith("at a near tie the factor p(1-p)/tau reaches 2,500")
    assert last == valid
    for temperature, training in ((1e-4, soft()), (0.02, pathwise())):
        assert check(tmp_path, seeds, put("training_modes/soft/temperature", temperature), training) == 0
        assert capsys.readouterr().out.splitlines() == [valid]


def test_check_tries_the_path_of_tokens_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from softtok.method.token_modes import SoftTokens\n\n\nclass Mine(SoftTokens):\n"
    path = (
        "    def path(self, predicted, record, at, mean_MD=None):\n        return super().path(predicted, record, at)"
    )
    own = put("training_modes/soft/tokens", "mine.py:Mine")
    for body, status, says in (
        (path, 0, "mine.py:Mine: works"),
        (f"{path}.detach()", 1, "mine.py, line 4: Mine path:"),
    ):
        (tmp_path / "mine.py").write_text(f"{code}{body}\n", encoding="utf-8")
        assert check(tmp_path, own, pathwise()) == status
        captured = capsys.readouterr()
        assert says in captured.out + captured.err
