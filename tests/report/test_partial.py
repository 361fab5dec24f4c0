"""`softtok tables`: from what has finished, naming what has not, without touching a report."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from softtok.__main__ import main
from softtok.config.grid import Grid
from softtok.config.load import read
from softtok.report.page import make_report
from tests.support.synthetic_runs import write_data, write_study

ROOT = Path(__file__).parents[2]
STUDY = "small"


class Project:
    """A folder with config.yaml and finished runs of its study, at the paths that the workflow would use."""

    def __init__(self, folder: Path) -> None:
        config = yaml.safe_load((ROOT / "config.yaml").read_text())
        config["studies"] = {STUDY: config["studies"]["demo"] | {"training_modes": ["hard", "soft"], "seeds": [0, 1]}}
        config["run"] = [STUDY]
        self.folder, self.results = folder, folder / "results"
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self.spec = Grid(read(folder / "config.yaml")).studies[STUDY].spec
        made = write_study(
            folder / "made", modes=("hard", "soft"), seeds=2, choice_sets=("largest",), problems=12, steps=8,
            diverged=(("soft", 1),),
        )  # fmt: skip
        by_name = {(run["mode"], run["seed"]): folder / "made" / run["path"] for run in made["runs"]}
        for run in self.spec["runs"]:
            source, target = by_name[run["mode"], run["seed"]], folder / run["path"]
            target.mkdir(parents=True)
            for name in ("train.json", "train.jsonl"):
                shutil.copy(source / name, target / name)
            for test_set, sets in run["tests"].items():
                for name, h8 in sets.items():
                    (target / "eval" / test_set).mkdir(parents=True)
                    for suffix in (".parquet", ".entropy.csv"):
                        shutil.copy(
                            source / "eval" / test_set / f"six-89ab4567{suffix}",
                            target / "eval" / test_set / f"{name}-{h8}{suffix}",
                        )
            (target / "choices").mkdir()
            for name, h8 in run["choices"].items():
                shutil.copy(
                    source / "choices" / f"{name}-cdef0123.parquet", target / "choices" / f"{name}-{h8}.parquet"
                )
        write_data(folder, self.spec)
        shutil.rmtree(folder / "made")

    def run(self, mode: str, seed: int) -> Path:
        return self.folder / next(r["path"] for r in self.spec["runs"] if (r["mode"], r["seed"]) == (mode, seed))

    def tables(self, *options: str, study: str = STUDY) -> int:
        where = ["--config", str(self.folder / "config.yaml"), "--results", str(self.results)]
        return main(["tables", study, *where, *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Project(tmp_path_factory.mktemp("finished")).folder


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Project:
    shutil.copytree(finished, tmp_path / "project")
    copy = Project.__new__(Project)
    copy.folder, copy.results = tmp_path / "project", tmp_path / "project/results"
    copy.spec = Grid(read(copy.folder / "config.yaml")).studies[STUDY].spec
    return copy


def log(run: Path, name: str, *events: dict[str, Any]) -> None:
    (run / ".state").mkdir(exist_ok=True)
    (run / f".state/{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_finished_study_gives_the_tables_of_its_report(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_what_is_missing_is_named_with_its_reason(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    hard0, hard1, soft0, soft1 = (project.run(mode, seed) for mode in ("hard", "soft") for seed in (0, 1))
    (hard0 / "train.json").unlink()
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
        "(3 of 5 runs have finished)",
        "- toy, sums, hard, seed 0: failed: RuntimeError('no memory')",
        "- toy, sums, hard, seed 1: not finished: started 2026-01-02T03:04:05, and running or killed since",
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
    assert soft == ["1–2", "1", "2", "1", "1–2"]  # hard inference, sums, long-sums, largest, majority
    assert text.count("Partial: n is what has finished of 2 planned runs per row (base 1).") == 5


def test_seeds_that_lack_the_same_share_a_line(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        shutil.rmtree(project.run("soft", seed))
    assert project.tables("--partial") == 0
    assert "- toy, sums, soft, seeds 0, 1: not trained\n" in capsys.readouterr().out


def test_before_anything_has_finished_there_are_empty_tables(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project.results)
    assert project.tables("--partial") == 0
    text = capsys.readouterr().out
    assert "(0 of 5 runs have finished)" in text
    assert "- toy, base, seed 0: not made" in text
    assert "No cell has a value." in text


def test_without_partial_it_refuses_and_names_what_is_missing(
    project: Project, capsys: pytest.CaptureFixture[str]
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
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(project.run("soft", 0) / "train.json", lambda manifest: manifest["provenance"].update(device="gpu"))
    edit(project.run("soft", 0) / "train.json", lambda manifest: manifest["provenance"].update(torch="9.9"))
    next(project.run("soft", 0).glob("eval/sums/*.parquet")).unlink()
    assert project.tables("--partial") == 0
    captions = {line.split(".")[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("**")}
    mixed = "The runs differ in torch (2.13.0 in 4 of 5 runs, 9.9 in 1 of 5 runs); device"
    assert mixed in captions["**Hard inference: every model thinks in ordinary tokens"]
    assert mixed in captions["**All inference modes on long-sums"]
    assert "differ" not in captions["**All inference modes on sums"]  # that run has nothing there


def test_tables_are_written_where_they_are_wanted_and_never_among_the_reports(
    project: Project, capsys: pytest.CaptureFixture[str]
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


def test_a_study_that_is_not_there_is_one_line(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.tables("--partial", study="smal") == 1
    assert "did you mean 'small'?" in capsys.readouterr().err
