"""`softtok unused`: what settings and killed jobs have left behind, and nothing that a study still leads to."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softtok.__main__ import main
from softtok.config.unused import RECENT_S
from softtok.storage.locks import Interruption, exclusive_lock
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
            for _ in ("its rows", "its cost")
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
    if name == "a test set less":  # its evaluations, four files each, of every run
        assert len(rest) == 4 * 14 and all("/eval/long-sums/" in path for path in rest)
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


# what is removed


def made(project: Project) -> set[str]:
    """Returns every path in results/, links as themselves."""
    return {str(path.relative_to(project.results)) for path in project.results.rglob("*")}


def one_seed_less(config: dict[str, Any]) -> None:
    config["studies"]["demo"].update(seeds=[0, 1])


def answered(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "no\n", "maybe\n", "yesterday\n"])
def test_nothing_is_removed_without_a_yes(
    answer: str, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.edit(one_seed_less)
    before = made(project)
    answered(monkeypatch, answer)
    assert main(["unused", "--remove", *options(project)]) == 0
    assert made(project) == before
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 3 and "remove? [y/N]" in printed.err and "none was removed" in printed.err


@pytest.mark.parametrize(("words", "answer"), [([], "y\n"), ([], "YES\n"), (["--yes"], "")])
def test_what_was_listed_is_removed_and_nothing_else(
    words: list[str], answer: str, project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project.edit(one_seed_less)
    before = made(project)
    answered(monkeypatch, answer)
    assert main(["unused", "--remove", *words, *options(project)]) == 0
    printed = capsys.readouterr()
    listed = [line.split("\t")[1].removeprefix(f"{project.results}/") for line in printed.out.splitlines()]
    assert len(listed) == 3 and "all was removed" in printed.err
    gone = before - made(project)
    assert gone == {path for path in before if any(path == one or path.startswith(f"{one}/") for one in listed)}
    assert main(["unused", *options(project)]) == 0
    assert capsys.readouterr().out == ""


def test_a_study_of_another_file_is_not_removed_without_a_question(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its runs would look unused where only the first of two configuration files is named."""
    project.edit(lambda config: config["studies"].pop("own"))
    before = files(project)
    project.write("results/specs/own-0123abcd.json", "results/specs/demo-0123abcd.json")
    assert main(["unused", *options(project)]) == 0
    assert "has reports of own, of which the configuration says nothing" in capsys.readouterr().err
    assert main(["unused", "--remove", "--yes", *options(project)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "has reports of own" in line
    assert set(before) <= set(files(project))


def test_yes_alone_is_a_mistake(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unused", "--yes", *options(project)]) == 1
    assert "--yes answers the question of --remove" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["my results", "my\nresults", "results\ttab", "-rf", "ergebnisse ä", "~", "$HOME", "*"]
)
def test_any_name_of_the_folder_of_results_will_do(
    name: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """The names below it are ours. A line for each place, and only these places go."""
    project.edit(one_seed_less)
    others = ["results/runs/kept", "my/kept", "kept"]
    project.write(*others)
    results = project.results.rename(project.folder / name)
    words = options(project)
    words[words.index(str(project.results))] = str(results)
    before = {path for path in project.folder.rglob("*") if path.is_file()}
    assert main(["unused", "--remove", "--yes", *words]) == 0
    assert capsys.readouterr().out.count("\n") == 3
    gone = before - {path for path in project.folder.rglob("*") if path.is_file()}
    assert gone and all(path.is_relative_to(results / "runs/toy/sums") and "/seed2-" in str(path) for path in gone)


@pytest.mark.parametrize(
    "name",
    [
        "runs/my model-0123abcd",
        "runs/toy/sums/soft/seed 2-0123abcd",
        "runs/toy/sums/soft/seed2-0123abcd extra",
        "runs/toy/sums/soft/seed2-0123abcd\n",
        "runs/to y/sums/soft/seed2-0123abcd",
        "runs/toy/sums/soft/mine-0123abcd",
        "models/mine-0123abc",
        "models/mine-0123ABCD",
        "models/my model-0123abcd",
        "data/mine/set-0123abcd.parquet",
        "data/test/set-0123abcd.csv",
        "notes-0123abcd",
        "reports/demo-0123abcd",
        "logs/runs/toy/sums/soft/seed2-0123abcd",
    ],
)
def test_names_that_are_not_given_here_are_left_out(
    name: str, project: Project, unused: Callable[[], list[str]]
) -> None:
    project.write(f"results/{name}/file")
    assert unused() == []


def test_links_are_neither_followed_nor_removed(
    project: Project, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Someone keeps runs on another disk; a link in a folder that goes is removed, and what it points to stays."""
    away = tmp_path_factory.mktemp("away")
    for place in ("runs/toy/sums/soft/seed2-0123abcd", "sums/soft/seed2-0123abcd", "mine-0123abcd", "eval/kept"):
        (away / place).mkdir(parents=True)
        (away / place / "kept").write_text("kept")
    results = project.results
    (results / "runs/linked").symlink_to(away)
    (results / "runs/toy/away").symlink_to(away / "sums")
    (results / "runs/toy/sums/hard/seed7-0123abcd").symlink_to(away / "sums")
    (results / "models/mine-0123abcd").symlink_to(away / "mine-0123abcd")
    unused_run = results / "runs/toy/sums/hard/seed8-0123abcd"
    unused_run.mkdir()
    (unused_run / "eval").symlink_to(away / "eval")
    (unused_run / "broken").symlink_to(away / "nothing")
    assert main(["unused", "--remove", "--yes", *options(project)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"       0.0 MB\t{unused_run}"]
    assert len(list(away.rglob("kept/kept"))) == 1 and len([one for one in away.rglob("kept") if one.is_file()]) == 4
    assert not unused_run.exists() and (results / "models/mine-0123abcd").is_symlink()
    moved = results.rename(away / "results")
    results.symlink_to(moved)
    (moved / "runs/toy/sums/hard/seed9-0123abcd").mkdir()
    assert main(["unused", "--remove", "--yes", *options(project)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1, "the folder of results itself may be a link"


LEFTOVERS = [
    "data/test/.sums-0123abcd.parquet.89ab4567.tmp",
    "models/.toy-0123abcd.89ab4567.tmp",
    "models/.toy-0123abcd.k3x_9z_a.tmp",
    "{run}/.checkpoint.89ab4567.tmp",
    "{run}/.manifest.json.89ab4567.tmp",
    "{run}/checkpoint/.checkpoint.json.89ab4567.tmp",
    "{run}/.state/.progress.pt.89ab4567.tmp",
    "{run}/.state/.best-40.89ab4567.tmp",
    "{run}/.state/shards/.0123456789abcdef.jsonl.89ab4567.tmp",
    "{run}/eval/sums/.six-0123abcd.entropy.csv.89ab4567.tmp",
    "{run}/choices/.largest-0123abcd.parquet.89ab4567.tmp",
    "reports/demo/.report.html.89ab4567.tmp",
    "reports/demo/figures/.pass-at-k.png.89ab4567.tmp",
]
NO_LEFTOVERS = [
    "{run}/.checkpoint.tmp",
    "{run}/checkpoint.89ab4567.tmp",
    "{run}/.mine/.checkpoint.89ab4567.tmp",
    "mine/.notes.89ab4567.tmp",
    ".notes.89ab4567.tmp",
    "{run}/.my notes.89ab4567.tmp",
]


def test_leftovers_of_killed_jobs_are_listed_and_removed(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Also in runs that a study leads to; those of a run at which a job is at work are left alone.

    What may still be written outside of runs is left alone, too: there are no locks.
    """
    first, second, *_ = project.grid(project.folder).runs
    run, busy = (name.removeprefix("results/") for name in (first, second))
    before = made(project)
    left = {name.format(run=run) for name in LEFTOVERS}
    for name in left:
        project.write(f"results/{name}/part" if ".checkpoint." in name else f"results/{name}")
    project.write(*(f"results/{name.format(run=run)}" for name in NO_LEFTOVERS))
    project.write(f"results/{busy}/.checkpoint.89ab4567.tmp", f"results/{busy}/.state/locks/train")
    for name in left - {name.format(run=run) for name in LEFTOVERS if name.startswith("{run}")}:
        os.utime(project.results / name, (time.time() - 2 * RECENT_S,) * 2)
    being_made = {"models/.toy-0123abcd.89ab4568.tmp", "reports/demo/.report.html.89ab4568.tmp"}
    project.write("results/models/.toy-0123abcd.89ab4568.tmp/part", "results/reports/demo/.report.html.89ab4568.tmp")
    os.utime(project.results / "models/.toy-0123abcd.89ab4568.tmp", (0, 0))  # the folder is old, its file is new
    with exclusive_lock(project.results / busy / ".state/locks/train", Interruption()):
        assert main(["unused", "--remove", "--yes", *options(project)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert {line.split("\t")[1].removeprefix(f"{project.results}/") for line in printed} == left
    rest = made(project) - before
    assert not left & rest
    assert {name.format(run=run) for name in NO_LEFTOVERS} | {f"{busy}/.checkpoint.89ab4567.tmp"} <= rest
    assert {name for name in being_made if (project.results / name).exists()} == being_made


def test_a_folder_that_cannot_be_removed_is_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("softtok.config.unused.remove", closed)
    project.edit(one_seed_less)
    assert main(["unused", "--remove", "--yes", *options(project)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("softtok: error: [Errno 13] Permission denied: ")
