"""`softtok report STUDY --partial`: a report at any time, with a banner of what is missing, honest n and claims."""

import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from softtok.__main__ import main
from softtok.report.page import make_report
from softtok.storage.progress import Note, shown_as_running
from tests.support.project import shipped
from tests.support.study_project import STUDY, StudyProject
from tests.support.synthetic_runs import write_planned


class ReportProject(StudyProject):
    """A study of which partial reports are asked."""

    def report(self, *options: str) -> int:
        where = ["--config", str(self.path), "--results", str(self.results)]
        return main(["report", STUDY, "--partial", *where, *options])

    @property
    def page(self) -> Path:
        return self.results / "reports" / STUDY / "partial/report.html"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ReportProject:
    project, config = ReportProject(tmp_path_factory.mktemp("finished")), shipped()
    study = config["studies"]["demo"] | {"training_modes": ["hard", "soft"], "seeds": [0, 1], "test_sets": ["sums"]}
    project.config = config | {"studies": {STUDY: study}, "run": [STUDY]}
    write_planned(project.folder, project.spec, problems=8, steps=4)
    return project


@pytest.fixture
def project(finished: ReportProject, tmp_path: Path) -> ReportProject:
    return finished.copy(tmp_path / "project")


def test_a_partial_report_names_what_is_missing_running_failed_or_damaged(
    project: ReportProject, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project.run("hard", 1) / "eval")
    shutil.rmtree(soft1 := project.run("soft", 1))
    (soft1 / ".state").mkdir(parents=True)
    (soft1 / ".state/attempts.jsonl").write_text(json.dumps({"event": "start", "time": "2026-11-29T01:02:03"}) + "\n")
    next(project.run("soft", 0).glob("choices/*.parquet")).write_text("no parquet")
    assert project.report() == 0
    told = capsys.readouterr().out
    text = project.page.read_text()
    banner = text[text.index('id="partial"') : text.index("<nav")]
    assert "4 of 5 runs are here" in banner and "partial report: " in told
    for line in (
        "toy, sums, hard, seed 1: sums (six): not measured",
        "toy, sums, soft, seed 1: not finished: started 2026-11-29T01:02:03, and killed since",
        "toy, sums, soft, seed 0: largest: ",
    ):
        assert line in banner and line in told, line
    assert "is not a readable parquet file" in banner
    claims = pd.read_csv(project.page.parent / "claims.csv", keep_default_na=False)
    of_tests = claims["claim"].isin(["C1", "C2", "C3"])
    assert set(claims[of_tests]["verdict"]) == {"not run"}, "nothing is decided by what finished first"
    cells = pd.read_csv(project.page.parent / "tables/hard-inference.csv")
    assert dict(zip(cells["training_mode"], cells["n"], strict=True)) == {"base": 1, "hard": 1, "soft": 1}
    assert "n is what has finished of 2 planned runs per row" in text


def test_what_is_missing_and_being_made_is_running(project: ReportProject, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tested := project.run("hard", 1) / "eval")
    for path in project.run("soft", 0).glob("choices/*"):
        path.unlink()
    (project.run("soft", 1) / "manifest.json").unlink()
    test = next(run for run in project.spec.runs if project.folder / run.path == tested.parent)
    jobs = {
        ("hard", 1): f"eval.sums.six-{test.tests['sums']['six']}",
        ("soft", 0): f"choices.largest-{test.choices['largest']}",
        ("soft", 1): "train",
    }
    with ExitStack() as running:
        for run, job in jobs.items():
            path = running.enter_context(shown_as_running(project.run(*run) / ".state", job))
            if job == "train":
                path.parent.mkdir()
                note = Note(
                    pid=1, host="", time=0.0, unit="steps", done=3, total=4, left_s=1.0, tokens_s=None, facts={}
                )
                path.write_text(note.as_json())
        assert project.report() == 0
    told = capsys.readouterr().out
    assert "toy, sums, hard, seed 1: sums (six): running\n" in told
    assert "toy, sums, soft, seed 0: largest: running\n" in told
    assert "toy, sums, soft, seed 1: running, at 3 of 4 steps\n" in told
    assert project.report() == 0
    assert "running" not in capsys.readouterr().out


def test_a_report_of_one_run_alone_can_be_made_and_of_none_is_one_line(
    project: ReportProject, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode, seed in (("hard", 0), ("hard", 1), ("soft", 0), ("soft", 1)):
        shutil.rmtree(project.run(mode, seed))
    assert project.report() == 0
    assert "1 of 5 runs are here" in project.page.read_text()
    shutil.rmtree(project.results / "runs")
    assert project.report() == 1
    assert "no run of study 'small' has finished yet" in capsys.readouterr().err


def test_the_whole_report_takes_the_place_of_the_partial_one(project: ReportProject) -> None:
    shutil.move(project.run("soft", 1), project.folder / "aside")
    assert project.report() == 0
    shutil.move(project.folder / "aside", project.run("soft", 1))
    make_report(project.spec, project.results / "reports" / STUDY, project.folder)
    assert not project.page.exists()
    assert 'id="partial"' not in (project.results / "reports" / STUDY / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["report", STUDY], "give --out, and --spec or --records; or STUDY --partial"),
        (["report", "--partial"], "--partial needs STUDY or --spec"),
        (["report", STUDY, "--partial", "--records", "x"], "--partial needs STUDY or --spec, and is not for --records"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 1
    assert words in capsys.readouterr().err


def test_damaged_thoughts_are_left_out_and_samples_are_shown(project: ReportProject) -> None:
    rows = next(project.run("soft", 0).glob("eval/sums/*.parquet"))
    rows.with_suffix(".thoughts.parquet").write_text("no parquet")
    shutil.rmtree(project.run("hard", 1) / "eval")
    assert project.report() == 0
    assert 'id="viewer-index"' in project.page.read_text(encoding="utf-8")


def test_a_whole_report_leaves_a_folder_of_that_name_that_is_no_report(project: ReportProject, tmp_path: Path) -> None:
    (kept := tmp_path / "out/partial/thesis.txt").parent.mkdir(parents=True)
    kept.write_text("mine")
    make_report(project.spec, tmp_path / "out", project.folder)
    assert kept.read_text() == "mine"
