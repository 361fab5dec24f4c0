"""`softtok unused`: what settings have left behind, and nothing that a study still leads to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softtok.__main__ import main
from tests.support.project import Project, shipped

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A folder with a configuration and everything that the demo and a study of a local file would have made."""
    project = Project(tmp_path)
    project.write("mine.jsonl", text='{"question": "1 + 1?", "answer": "2"}\n')
    config = shipped()
    fields = {"question": "question", "gold": {"field": "answer"}}
    config["train_sets"]["mine"] = {"file": {"path": "mine.jsonl"}, **fields}
    config["models"]["other"] = {"hub": "someone/model"}
    demo = config["studies"]["demo"]
    own = {"models": ["other"], "train_sets": ["mine"], "training_modes": ["hard"]}
    config["studies"] = {"demo": demo, "own": demo | own}
    project.config = config
    grid = project.grid(tmp_path)
    for study in grid.studies.values():
        project.finish(study, grid)
    return project


def files(project: Project) -> list[Path]:
    return sorted(path for path in project.folder.rglob("*") if path.is_file())


def options(project: Project) -> list[str]:
    return ["--config", str(project.path), "--results", str(project.results), "--data-root", str(project.folder)]


@pytest.fixture
def unused(project: Project, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    def called() -> list[str]:
        before = files(project)
        assert main(["unused", *options(project)]) == 0
        assert files(project) == before
        lines = capsys.readouterr().out.splitlines()
        paths = [line.split("\t")[1].removeprefix(f"{project.folder}/results/") for line in lines]
        return [re.sub(r"-[0-9a-f]{8}(\.[.a-z]+)?", "", path) for path in paths]

    return called


def test_nothing_that_a_study_leads_to_is_listed(project: Project, unused: Callable[[], list[str]]) -> None:
    assert unused() == []


CHANGES: dict[str, tuple[Change, list[str]]] = {
    "a seed less": (
        lambda config: config["studies"]["demo"].update(seeds=[0, 1]),
        [f"runs/toy/sums/{mode}/seed2" for mode in ("fuzzy", "hard", "soft")],
    ),
    "another mode": (
        lambda config: config["training_modes"]["soft"].update(noise_scale=0.4),
        [f"runs/toy/sums/soft/seed{seed}" for seed in range(3)],
    ),
    "a test set less": (
        lambda config: [study.update(test_sets=["sums"]) for study in config["studies"].values()],
        ["data/test/long-sums"] * 2,
    ),
    "a choice set less, in one study": (
        lambda config: config["studies"]["own"].update(choice_sets=[]),
        [
            f"runs/other/{run}/choices/largest"
            for run in ("mine/hard/seed0", "mine/hard/seed1", "mine/hard/seed2", "none/base/seed0")
        ],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_change_left_behind_is_listed(project: Project, unused: Callable[[], list[str]], name: str) -> None:
    change, left = CHANGES[name]
    project.edit(change)
    found = unused()
    assert found[: len(left)] == left
    rest = found[len(left) :]
    if name == "a test set less":  # its evaluations, two files each, of every run
        assert len(rest) == 2 * 14 and all("/eval/long-sums/" in path for path in rest)
    else:
        assert rest == []


def test_another_model_leaves_all_runs_behind_but_no_test_set(
    project: Project, unused: Callable[[], list[str]]
) -> None:
    project.edit(lambda config: config["models"]["toy"]["toy"].update(width=64))
    found = unused()
    assert found[0] == "models/toy" and len(found) == 11
    assert all(path.startswith("runs/toy/") and path.count("/") == 4 for path in found[1:])


def test_what_is_not_ours_is_left_out(project: Project, unused: Callable[[], list[str]]) -> None:
    project.write("results/runs/notes.txt", "results/models/mine/w", "results/runs/toy/sums/hard/seeds.md")
    assert unused() == []


def test_what_a_missing_file_would_lead_to_is_left_out(project: Project, unused: Callable[[], list[str]]) -> None:
    (project.folder / "mine.jsonl").rename(project.folder / "moved.jsonl")
    assert unused() == []
    (project.folder / "mine.jsonl").write_text('{"question": "1 + 2?", "answer": "3"}\n')
    assert unused() == ["data/train/mine"] * 2 + [f"runs/other/mine/hard/seed{seed}" for seed in range(3)]


def test_sizes_are_told(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.edit(lambda config: config["studies"]["demo"].update(seeds=[0, 1], training_modes=["hard"]))
    (project.folder / next(iter(project.grid(project.folder).runs))).joinpath("unrelated").write_text("1")
    assert main(["unused", *options(project)]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 7 and "0.0 MB\t" in printed.out
    assert printed.err.startswith("7 places, 0.0 GB in ") and printed.err.endswith("none was removed\n")
