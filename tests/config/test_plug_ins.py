"""Plug-ins in config.yaml: an edited file is another result, what is wrong is one line, `softtok check` tries all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from softtok.__main__ import main
from softtok.config.grid import Grid
from softtok.config.load import load, read
from softtok.errors import UserError
from softtok.problems.answer_format import AnswerFormat
from tests.support.configurations import Edit, basic, both, put
from tests.support.project import ROOT

REWARD = "def f(answer, gold):\n    return answer == gold\n"
ADAPTER = "def a(row):\n    return {'question': row['question'], 'gold': row['gold']}\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("code.py").write_text(REWARD + ADAPTER, encoding="utf-8")


def grid(*edits: Edit) -> Grid:
    config = basic()
    for edit in edits:
        edit(config)
    return Grid(load(config))


def made(found: Grid) -> dict[str, set[str]]:
    """The places of everything that jobs make, by kind."""
    return {
        "train": {stem for stem, data in found.data.items() if data.spec.kind == "train"},
        "test": {stem for stem, data in found.data.items() if data.spec.kind == "test"},
        "runs": {folder for folder, run in found.runs.items() if run.train_set},
        "evaluations": set(found.evaluations),
    }


def changed(*edits: Edit, before: dict[str, set[str]]) -> set[str]:
    after = made(grid(*edits))
    return {kind for kind, places in after.items() if places != before[kind]}


TRAIN = put("train_sets/sums/reward", "code.py:f")
TEST = put("test_sets/sums/reward", "code.py:f")
ADAPTED = put("train_sets/sums/adapter", "code.py:a")


class TestIdentity:
    @pytest.mark.parametrize(
        ("edit", "kinds"),
        [
            (TRAIN, {"train", "runs"}),
            (TEST, {"test", "evaluations"}),  # and no run, though the train set excludes the test set's questions
            (put("test_sets/sums/reward", "exact"), {"test", "evaluations"}),
            (ADAPTED, {"train", "runs"}),
            (put("train_sets/sums/answer_format", {"stop_phrase": "So:"}), {"runs"}),
            (put("test_sets/sums/answer_format", {"extract": "all"}), {"evaluations"}),
        ],
    )
    def test_a_setting_changes_what_depends_on_it_and_nothing_else(self, edit: Edit, kinds: set[str]) -> None:
        assert changed(edit, before=made(grid())) == kinds

    @pytest.mark.parametrize(
        ("edit", "kinds"), [(TRAIN, {"runs"}), (TEST, {"evaluations"}), (ADAPTED, {"train", "runs"})]
    )
    def test_an_edited_file_is_another_result_and_going_back_the_old_one(self, edit: Edit, kinds: set[str]) -> None:
        """A reward's edit leaves the prepared data as it is."""
        before = made(grid(edit))
        Path("code.py").write_text(REWARD + ADAPTER + "# edited\n", encoding="utf-8")
        assert changed(edit, before=before) == kinds
        Path("code.py").write_text(REWARD + ADAPTER, encoding="utf-8")
        assert changed(edit, before=before) == set()

    def test_the_grading_of_runs_and_evaluations(self) -> None:
        found = grid(
            TRAIN, put("train_sets/sums/solved_at", 0.5), put("test_sets/sums/answer_format", {"extract": "all"})
        )
        (run, *_) = [run for run in found.runs.values() if run.train_set]
        assert run.spec.grading is not None
        assert str(run.spec.grading.reward) == "code.py:f"
        assert run.spec.grading.solved_at == 0.5
        assert run.train_set is not None
        assert run.train_set.spec.columns
        gradings = {e.data.name: e.spec.grading for e in found.evaluations.values()}
        assert gradings["sums"].answer_format == AnswerFormat(extract="all")
        assert gradings["sums"].reward == "math-strict"

    def test_paths_start_at_the_configuration_files(self) -> None:
        Path("sub").mkdir()
        Path("code.py").rename("sub/code.py")
        config: dict[str, Any] = basic()
        TRAIN(config)
        Path("sub/config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (run, *_) = [run for run in Grid(read(Path("sub/config.yaml"))).runs.values() if run.train_set]
        assert run.spec.grading is not None
        assert str(run.spec.grading.reward) == "sub/code.py:f"


def learned(key: str, value: Any) -> Edit:
    """Returns an edit of the train set."""
    return put(f"train_sets/sums/{key}", value)


def evaluated(key: str, value: Any) -> Edit:
    """Returns an edit of the test set."""
    return put(f"test_sets/sums/{key}", value)


MISTAKES: dict[str, tuple[Edit, str]] = {
    "no file": (learned("reward", "none.py:f"), "config: train_sets.sums.reward: there is no file 'none.py'"),
    "no name": (learned("reward", "code.py:g"), "train_sets.sums.reward: code.py defines no 'g'"),
    "signature": (evaluated("reward", "code.py:a"), "test_sets.sums.reward: code.py, line 3: a(row) has other"),
    "built-in": (evaluated("reward", "exakt"), "'exakt' is not possible; did you mean 'exact'?"),
    "adapter": (learned("adapter", "code.py:f"), "train_sets.sums.adapter: code.py, line 1: f(answer, gold)"),
    "adapter by name": (learned("adapter", "math"), "train_sets.sums.adapter: 'math' is not possible"),
    "adapter and fields": (
        put("test_sets/local/adapter", "code.py:a"),
        "test_sets.local.gold: has no use beside `adapter`",
    ),
    "threshold of a built-in": (evaluated("solved_at", 0.5), "test_sets.sums.solved_at: has no use with reward: math"),
    "tokens null": (
        put("training_modes/soft/tokens", None),
        "training_modes.soft.tokens: the value should be a valid string, not None",
    ),
    "objective as a list": (
        put("training", {"objective": ["a"]}),
        "training.objective: the value should be a valid string",
    ),
    "reward of a choice set": (put("choice_sets/words/reward", "exact"), "choice_sets.words.reward: unknown key"),
    "format": (evaluated("answer_format", {"extract": "al"}), "test_sets.sums.answer_format.extract: 'al' is not"),
    "format's key": (evaluated("answer_format", {"stop": "x"}), "answer_format.stop: unknown key"),
    "prefill": (evaluated("answer_format", {"prefill": "x"}), "test_sets.sums.answer_format.prefill: extract: boxed"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str) -> None:
    edit, says = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        grid(edit)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class TestCheck:
    def check(self, *edits: Edit) -> int:
        config = basic()
        for edit in edits:
            edit(config)
        Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return main(["check", "first"])

    def test_all_plug_ins_of_a_study_are_tried(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.check(both(TRAIN, TEST, ADAPTED)) == 0
        assert capsys.readouterr().out.splitlines() == [
            "adapter code.py:a (train set sums): works",
            "reward code.py:f (train set sums): works",
            "reward code.py:f (test set sums): works",
            "first: the configuration and all plug-ins are valid",
        ]

    @pytest.mark.parametrize(
        ("edit", "code", "says"),
        [
            (TRAIN, "def f(answer, gold):\n    return 1 / 0\n", "code.py, line 2: f raises ZeroDivisionError"),
            (TEST, "def f(answer, gold):\n    return 0 * 1e999\n", "code.py, line 1: f returns nan"),
            (ADAPTED, "def a(row):\n    return row['x']\n", "code.py, line 2: a raises KeyError: 'x'"),
        ],
    )
    def test_what_is_wrong_is_one_line(
        self, edit: Edit, code: str, says: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("code.py").write_text(code, encoding="utf-8")
        assert self.check(edit) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"softtok: error: {says}")

    def test_an_unknown_study_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("config.yaml").write_text(yaml.safe_dump(basic()), encoding="utf-8")
        assert main(["check", "frist"]) == 1
        assert "there is no study 'frist'" in capsys.readouterr().err


def test_two_figures_of_one_name_would_share_a_file() -> None:
    for name in ("one.py", "two.py"):
        Path(name).write_text("def f(metrics, training):\n    return None\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"studies\.first\.figures\[1\]: two figures are named 'f'"):
        grid(put("studies/first/figures", ["one.py:f", "two.py:f"]))


class TestRewards:
    """Which reward a data set has: the paper's where its numbers are compared, `math-strict` elsewhere."""

    def rewards(self, *edits: Edit) -> dict[str, str]:
        return {e.data.name: str(e.spec.grading.reward) for e in grid(*edits).evaluations.values()}

    def test_the_default_is_strict(self) -> None:
        assert self.rewards() == {"sums": "math-strict"}

    def test_a_set_with_a_name_in_the_paper_has_the_papers_reward(self) -> None:
        named = put("test_sets/sums/paper", "gsm8k")
        assert self.rewards(named) == {"sums": "math"}
        assert self.rewards(named, put("test_sets/sums/reward", "math-strict")) == {"sums": "math-strict"}

    def test_the_shipped_sets_of_the_paper_say_so(self) -> None:
        raw = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
        sets = [entry for section in ("train_sets", "test_sets") for entry in raw[section].values()]
        named = [entry for entry in sets if "paper" in entry]
        assert len(named) == 7
        assert {entry.get("reward", raw["train_sets"].get(entry.get("like"), {}).get("reward")) for entry in named} == {
            "math"
        }
        found = read(ROOT / "config.yaml")
        assert {name: entry.reward for name, entry in found.test_sets.items()} == {
            "sums": "math-strict",
            "long-sums": "math-strict",
            "gsm8k": "math",
            "svamp": "math-strict",
            "svamp-100": "math-strict",
            "gsm8k-50": "math",
            "gsm8k-few": "math",
            "math500": "math",
            "olympiadbench": "math",
        }
