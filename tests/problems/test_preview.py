"""`softtok preview SET`: three prompts as a model sees them, and what the reward says of right and wrong answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from softtok.__main__ import main
from softtok.problems.preview import variants
from tests.support.chat_templates import chat_tokenizer
from tests.support.configurations import basic
from tests.support.gguf_files import Draft, shape_of, smollm_like, vocabulary, weights_of, write
from tests.support.tiny_models import tiny_model


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


def with_prompts(folder: Path, **of_set: Any) -> None:
    """Adds a train set of examples, and says how the test set `mine` is asked."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    rows = [{"q": f"What is {n} + {n}?", "a": f"Twice {n} is {2 * n}. #### {2 * n}"} for n in (2, 20, 30)]
    Path("worked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    worked = {"file": {"path": "worked.jsonl"}, "question": "{q} Think.", "gold": {"field": "a", "after": "####"}}
    config["train_sets"]["worked"] = worked | {"exclude": ["mine"]}
    config["models"]["llama"] = {"toy": {"tokenizer": "llama-3", "width": 16, "layers": 1, "heads": 2, "steps": 0}}
    config["models"]["chat"] = {"path": str(folder / "chat"), "chat_template": True}
    config["test_sets"]["mine"] |= of_set
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def test_examples_are_shown_before_anything_is_prepared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And without those that are test questions, as the prepared set has them."""
    with_prompts(folder, shots={"train_set": "worked", "k": 2}, system="Solve it.")
    text = shown(capsys, "mine", "--model", "other")
    examples = "".join(
        f"Other What is {n} + {n}? Think. Twice {n} is {2 * n}. The final answer is: \\boxed{{{2 * n}}}.\n\n"
        for n in (20, 30)
    )
    assert f"--- row1\nSolve it.\n\n{examples}Other What is 1 + 1? Think.\ngold: '2'" in text


def test_the_ids_are_those_of_the_models_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_prompts(folder, prompt="Q: {question}")
    text = shown(capsys, "mine", "--model", "llama")
    (line,) = re.findall(r"Q: What is 1 \+ 1\? Think\.\n(.*)\n", text)
    ids = chat_tokenizer("llama-3")("Q: What is 1 + 1? Think.")["input_ids"]
    assert line == f"{len(ids)} ids: {ids}" and ids[0] == 128_000


def test_a_chat_is_shown_as_its_template_writes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_prompts(folder, system="Solve it.")
    tokenizer = chat_tokenizer("qwen-2.5")
    tokenizer.save_pretrained(folder / "chat")
    (folder / "chat" / "config.json").write_text("{}")
    messages = [{"role": "system", "content": "Solve it."}, {"role": "user", "content": "What is 1 + 1? Think."}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt)["input_ids"]
    assert f"--- row1\n{prompt}\n{len(ids)} ids: {ids}\n" in shown(capsys, "mine", "--model", "chat")


def test_a_chat_without_its_tokenizer_is_shown_as_messages(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_prompts(folder, chat_template=True)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["models"]["far"] = {"hub": "nobody/nothing"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    text = shown(capsys, "mine", "--model", "far")
    assert "\nthe tokenizer of model far is not on this machine yet: prompts are the messages of a chat\n" in text
    assert "--- row1\nuser: What is 1 + 1? Think.\ngold: '2'" in text


def test_ids_that_cannot_be_shown_are_not_left_out_silently(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "\nthe tokenizer of model toy is not on this machine yet: prompts have no ids\n"
    assert told in shown(capsys, "mine", "--model", "toy")
    assert told not in shown(capsys, "mine")


def test_a_gguf_file_shows_its_ids_before_it_is_converted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = smollm_like()
    lm = tiny_model("llama", vocabulary=tokenizer.get_vocab_size(), width=64)
    path = write(folder / "tiny.gguf", Draft(shape_of(lm) | vocabulary(tokenizer), weights_of(lm)))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config["models"]["file"] = {"gguf": str(path), "prompt": "Q: {question}\n\n17"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    text = shown(capsys, "mine", "--model", "file")
    ids = tokenizer.encode("Q: What is 1 + 1? Think.\n\n17").ids
    assert f"--- row1\nQ: What is 1 + 1? Think.\n\n17\n{len(ids)} ids: {ids}\n" in text
