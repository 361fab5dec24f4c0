"""`softtok preview SET`: three prompts as a model sees them, and what the reward says of right and wrong answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from softtok.__main__ import main
from softtok.problems.preview import variants
from tests.support.configurations import basic


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with config.yaml and its local data."""
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"What is {n} + {n}?", "a": f"{2 * n} (apples)", "o": ["A)x", "B)y"], "r": "B"} for n in range(9)]
    Path("x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = basic()
    config["models"]["other"] = {"toy": {}, "prompt": "Other {question}"}
    config["test_sets"]["mine"] = {
        "file": {"path": "x.jsonl"},
        "question": "{q} Think.",
        "gold": {"field": "a", "before": " ("},
    }
    config["test_sets"]["raw"] = {"like": "mine", "gold": {"field": "a", "before": None}}
    config["train_sets"]["mine"] = {"like": "sums", "toy": None, **config["test_sets"]["mine"]}
    config["choice_sets"]["mine"] = {
        "file": {"path": "x.jsonl"},
        "question": "q",
        "choices": {"field": "o"},
        "answer": "r",
    }
    Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Returns what a preview prints."""
    assert main(["preview", *arguments]) == 0
    return capsys.readouterr().out


def test_three_prompts_with_gold_and_verdicts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "mine", "--prompt-of", "toy")
    train, test, choice = text.split("\n\ntest set")[0], text.split("\n\ntest set")[1], text.split("\n\nchoice set")[1]
    assert train.startswith("train set from data set x.jsonl, 9 rows")
    for n in range(3):
        assert f"--- row{n}\nQ: What is {n} + {n}? Think. A:\ngold: '{2 * n}'\n  correct   '{2 * n}'" in test
    assert "row3" not in text
    assert "  wrong     '5'" in test, "an answer that is wrong is shown to be"
    assert "Question: What is 0 + 0?\nA. x\nB. y\nAnswer:\nright: B, 'y'" in choice


def test_a_gold_that_no_model_would_write_is_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "raw")
    assert "gold: '4 (apples)'\n  correct   '4 (apples)'\n" in text
    assert "'4'\n" in text


def test_the_prompt_is_that_of_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\nOther What is 1 + 1? Think.\n" in shown(capsys, "raw", "--prompt-of", "other")


def test_a_name_that_is_none_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["mien"], "did you mean 'mine'?"),
        (["mine", "--prompt-of", "toi"], "did you mean 'toy'?"),
    ):
        assert main(["preview", *arguments]) == 1
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("gold", ["18", "1,234", "9 (apples)", "yes", "B", r"\frac{1}{2}", "-0.5", ""])
def test_variants_start_with_the_gold_and_are_all_different(gold: str) -> None:
    found = variants(gold)
    assert found[0] == gold
    assert len(set(found)) == len(found) > 2
