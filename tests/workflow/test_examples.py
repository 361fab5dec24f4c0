"""The examples, one for each door, as a user runs them: checked, trained, evaluated and drawn through Snakemake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from softtok.__main__ import main
from tests.support.project import ROOT, Project, counts, shipped

WORDS = ("--configfile", "examples/config.yaml")
PLUG_INS = [
    "adapter examples/adapter.py:story (train set stories)",
    "adapter examples/adapter.py:story (test set stories)",
    "reward examples/rewards.py:colour (train set colours)",
    "reward examples/rewards.py:colour (test set colours)",
    "figure examples/figure.py:gains",
    "tokens examples/laplace_noise.py:LaplaceNoise",
    "objective examples/dapo.py:DAPO",
]


# `softtok check`


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a copy of the examples and the configuration."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "config.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check() -> int:
    """Runs `softtok check` on the examples of the working folder."""
    return main(["check", "--config", "config.yaml", "examples/config.yaml"])


@pytest.mark.usefixtures("folder")
def test_check_tries_all_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert check() == 0
    *tried, last = capsys.readouterr().out.splitlines()
    assert set(tried) >= {f"{name}: works" for name in PLUG_INS}
    assert last == "examples: the configuration and all plug-ins are valid"


@pytest.mark.parametrize(
    ("file", "code", "broken", "says"),
    [
        ("rewards.py", "said == gold", "said == gold.colour", "colour raises AttributeError"),
        ("rewards.py", "return 1.0", "return 0 * 1e999", "colour returns nan"),
        ("rewards.py", "answer: str", "reply: str", "train_sets.colours.reward"),
        ("adapter.py", '"Answer"', '"Reply"', "story raises KeyError: 'Reply'"),
        ("laplace_noise.py", "-self.scale *", "-9 *", "LaplaceNoise score: noise_M is"),
        ("dapo.py", "max(1,", "min(0,", "DAPO normaliser: is not positive everywhere"),
        ("figure.py", "return figure", "return axes", "gains raises NameError"),
    ],
)
def test_check_names_file_and_line_of_a_broken_example(
    file: str, code: str, broken: str, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = folder / "examples" / file
    assert code in example.read_text(encoding="utf-8")
    example.write_text(example.read_text(encoding="utf-8").replace(code, broken), encoding="utf-8")
    assert check() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"examples/{file}, line " in line
    assert says in line


# Through Snakemake


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The examples, run once; the first attempt is stopped after the first trained model."""
    project = Project.create(tmp_path_factory.mktemp("examples") / "project", shipped())
    shutil.copytree(ROOT / "examples", project.folder / "examples")
    project.build_interrupted("results/runs/parrot/*/*/*/manifest.json", "--cores", "2", *WORDS)
    return project


@pytest.mark.slow
def test_the_own_figure_is_in_the_report(finished: Project) -> None:
    report = finished.results / "reports/examples"
    page = (report / "report.html").read_text()
    assert "What training adds to pass@1" in page
    assert "Right: the mean reward of each training step." in page
    for suffix in (".svg", ".png"):
        assert (report / f"figures/own--gains{suffix}").stat().st_size > 1000


@pytest.mark.slow
def test_the_adapter_joins_the_question_and_cuts_out_the_number(finished: Project) -> None:
    (train,) = finished.folder.glob("results/data/train/stories-*.parquet")
    problems = pd.read_parquet(train)
    question = "Ida has 4 apples and gets 5 more. How many apples has she now?"
    (gold,) = problems.gold[problems.question == question]
    assert list(gold) == ["9"], "of `9 (apples)`"
    rows = (ROOT / "examples/stories_train.jsonl").read_text().splitlines()
    assert len(problems) == len(rows) - 1, "one row has no number"
    (test,) = finished.folder.glob("results/data/test/stories-*.parquet")
    assert [list(gold) for gold in pd.read_parquet(test).gold] == [["9"], ["5"], ["12"], ["13"]]


@pytest.mark.slow
def test_the_own_reward_is_learnt(finished: Project) -> None:
    """On questions that no training has seen, by each token mode and objective."""
    metrics = pd.read_csv(finished.results / "reports/examples/metrics.csv", keep_default_na=False)
    first = metrics[(metrics.metric == "pass@k") & (metrics.k.astype(str) == "1") & (metrics.test_set == "colours")]
    reached = first.set_index(["training_mode", "inference_mode"]).value.astype(float)
    for mode in ("hard", "laplace", "hard-dapo"):
        assert reached[mode, "hard-sample-4"] - reached["base", "hard-sample-4"] > 20
        assert reached[mode, "hard-sample-4"] > 80


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "jobs"),
    [
        ("rewards.py", {"train": 3, "evaluate": 4}),
        ("adapter.py", {"dataset": 2, "train": 1, "evaluate": 2}),
        ("dapo.py", {"train": 1, "evaluate": 1}),
        ("figure.py", {}),
    ],
)
def test_an_edit_causes_the_jobs_that_depend_on_it(file: str, jobs: dict[str, int], finished: Project) -> None:
    edited = finished.folder / "examples" / file
    before = edited.read_bytes()
    try:
        edited.write_bytes(before + b"\n# edited\n")
        report = {"report_spec": 1, "report": 1, "all": 1}  # the last is the target
        assert counts(finished.snakemake("-n", *WORDS)) == jobs | report
    finally:
        edited.write_bytes(before)


@pytest.mark.slow
def test_an_edit_taken_back_causes_nothing(finished: Project) -> None:
    assert "Nothing to be done" in finished.snakemake("-n", *WORDS).stdout
