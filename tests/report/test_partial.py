"""`softtok tables`: from what has finished, naming what has not, without touching a report."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softtok.__main__ import main
from softtok.report.page import make_report
from tests.support.project import shipped
from tests.support.study_project import STUDY, StudyProject
from tests.support.synthetic_runs import write_planned


class TablesProject(StudyProject):
    """A study of which tables are asked."""

    def tables(self, *options: str, study: str = STUDY) -> int:
        return main(["tables", study, "--config", str(self.path), "--results", str(self.results), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TablesProject:
    project, config = TablesProject(tmp_path_factory.mktemp("finished")), shipped()
    study = config["studies"]["demo"] | {"training_modes": ["hard", "soft"], "seeds": [0, 1]}
    project.config = config | {"studies": {STUDY: study}, "run": [STUDY]}
    write_planned(project.folder, project.spec, problems=12, steps=8, cot=48, diverged=(("soft", 1),))
    return project


@pytest.fixture
def project(finished: TablesProject, tmp_path: Path) -> TablesProject:
    return finished.copy(tmp_path / "project")


def log(run: Path, name: str, *events: dict[str, Any]) -> None:
    (run / ".state").mkdir(exist_ok=True)
    (run / f".state/{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_finished_study_gives_the_tables_of_its_report(
    project: TablesProject, capsys: pytest.CaptureFixture[str]
) -> None:
    make_report(project.spec, project.folder / "report", project.folder)
    for options in ((), ("--partial",)):
        assert project.tables(*options) == 0
        text = capsys.readouterr().out
        for path in (project.folder / "report/tables").glob("*.md"):
            assert path.read_text() in text
        assert "all runs have finished" in text
        assert "rows marked †: toy, sums, soft, seed 1 at step 4" in text
        assert "Missing" not in text
        assert "Partial" not in text


def test_what_is_missing_is_named_with_its_reason(project: TablesProject, capsys: pytest.CaptureFixture[str]) -> None:
    hard0, hard1, soft0, soft1 = (project.run(mode, seed) for mode in ("hard", "soft") for seed in (0, 1))
    (hard0 / "manifest.json").unlink()
    failed = {"event": "failed", "time": "T", "error": "RuntimeError('no\nmemory')"}
    log(hard0, "attempts", {"event": "start", "time": "T"}, failed)
    shutil.rmtree(hard1)
    hard1.mkdir()
    log(hard1, "attempts", {"event": "start", "time": "2026-01-02T03:04:05"})
    next(soft0.glob("eval/sums/*.parquet")).unlink()
    log(soft0, "evaluate", {"event": "start", "time": "T"}, failed)
    next(soft1.glob("choices/*.parquet")).write_text("no parquet")
    assert project.tables("--partial") == 0
    text = capsys.readouterr().out
    for line in (
        "(1 of 5 runs are complete; 2 more lack results of tests)",
        "- toy, sums, hard, seed 0: failed: RuntimeError('no memory')",
        "- toy, sums, hard, seed 1: not finished: started 2026-01-02T03:04:05, and killed since",
        "- toy, sums, soft, seed 0: sums (six): not measured; the last attempt at such a job failed: RuntimeError",
        "- toy, sums, soft, seed 1: largest: ",
    ):
        assert line in text, line
    assert "is not a readable parquet file" in text
    assert text.count("\n- ") == 4
    hard = [line for line in text.splitlines() if line.startswith("| hard |")]
    assert hard
    assert all(set(line.split("|")[2:-1]) == {" 0 ", " – "} for line in hard)
    soft = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| soft † |")]
    # Hard inference; modes on sums and long-sums; answers on sums and long-sums; largest; majority.
    assert soft == ["1–2", "1", "2", "1", "2", "1", "1–2"]
    assert text.count("Partial: n is what has finished of 2 planned runs per row (base 1).") == 7


def test_runs_that_are_trained_and_not_tested_are_not_called_finished(
    project: TablesProject, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in project.results.glob("runs/*/*/*/*/eval/sums/*.parquet"):
        path.unlink()
    assert project.tables("--partial") == 0
    assert "**Missing** (0 of 5 runs are complete; 5 more lack results of tests):" in capsys.readouterr().out


def test_seeds_that_lack_the_same_share_a_line(project: TablesProject, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        shutil.rmtree(project.run("soft", seed))
    assert project.tables("--partial") == 0
    assert "- toy, sums, soft, seeds 0, 1: not trained\n" in capsys.readouterr().out


def test_before_anything_has_finished_there_are_empty_tables(
    project: TablesProject, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project.results)
    assert project.tables("--partial") == 0
    text = capsys.readouterr().out
    assert "(0 of 5 runs are complete)" in text
    assert "- toy, base, seed 0: not made" in text
    assert "No cell has a value." in text


def test_without_partial_it_refuses_and_names_what_is_missing(
    project: TablesProject, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project.run("soft", 1))
    next(project.run("hard", 0).glob("choices/*.parquet")).unlink()
    assert project.tables() == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error == (
        "softtok: error: study 'small' is not complete: toy, sums, hard, seed 0: largest: not measured and 1 more; "
        "`--partial` makes tables of what has finished\n"
    )


def test_a_table_that_mixes_devices_says_so_and_one_that_does_not_is_silent(
    project: TablesProject, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(project.run("soft", 0) / "manifest.json", lambda manifest: manifest["provenance"].update(device="gpu"))
    edit(project.run("soft", 0) / "manifest.json", lambda manifest: manifest["provenance"].update(torch="9.9"))
    next(project.run("soft", 0).glob("eval/sums/*.parquet")).unlink()
    assert project.tables("--partial") == 0
    captions = {line.split(".")[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("**")}
    mixed = "The runs differ in torch (2.13.0 in 4 of 5 runs, 9.9 in 1 of 5 runs); device"
    assert mixed in captions["**Hard inference: every model thinks in ordinary tokens"]
    assert mixed in captions["**All inference modes on long-sums"]
    assert "differ" not in captions["**All inference modes on sums"]  # that run has nothing there


def test_tables_are_written_where_they_are_wanted_and_never_among_the_reports(
    project: TablesProject, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project.run("soft", 1))
    before = sorted(project.results.rglob("*"))
    assert project.tables("--partial", "--out", str(project.folder / "out")) == 0
    assert capsys.readouterr().out == ""
    names = {path.name for path in (project.folder / "out").iterdir()}
    assert {"tables.md", "hard-inference.csv", "inference-modes-sums.tex", "majority-voting.md"} <= names
    with open(project.folder / "out/hard-inference.csv", newline="") as file:
        assert {(cell["training_mode"], cell["n"]) for cell in csv.DictReader(file)} == {
            ("base", "1"), ("hard", "2"), ("soft", "1")
        }  # fmt: skip
    for place in (f"reports/{STUDY}", "reports/x/../y", "reports"):
        assert project.tables("--partial", "--out", str(project.results / place)) == 1
        assert "which holds finished reports; choose another folder" in capsys.readouterr().err
    assert sorted(project.results.rglob("*")) == before


def test_a_study_that_is_not_there_is_one_line(project: TablesProject, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.tables("--partial", study="smal") == 1
    assert "did you mean 'small'?" in capsys.readouterr().err
