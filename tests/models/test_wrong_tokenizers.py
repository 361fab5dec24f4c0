"""Tokenizers that do not belong to their model, and prompts that begin or end wrongly, are refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from softtok.config.settings import RuntimeSettings
from softtok.errors import UserError
from softtok.evaluation.choices import log_likelihoods
from softtok.method.batches import read_problems
from softtok.method.stopping import TextRules
from softtok.models.base_model import make_model
from softtok.models.loading import load
from softtok.models.real_tokenizers import PUBLISHED, real_tokenizer
from softtok.models.tokenizer_checks import encode, encode_prompts
from softtok.models.toy_model import bpe_tokenizer
from softtok.problems.prompt import PROMPT, render
from softtok.problems.prompting import Asking
from tests.support.model_folders import edit_json, save_model
from tests.support.specs import folder_model, toy_model

CPU = RuntimeSettings(device="cpu")
Edit = Callable[[Path], Any]
PAD, EOS = 0, 1  # of the tiny tokenizer
ROWS = 320
QUESTIONS = [
    "Janet has 3 apples.",
    "What is $\\frac{1}{2}$?\n\n",
    "Mind the end. <",
    "",
    "caf\u00e9 \u4e2d\u6587 \U0001f600",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with more rows than its tokenizer has tokens."""
    return save_model(tmp_path_factory.mktemp("saved") / "model", rows=ROWS)


def copied(folder: Path, into: Path, edit: Edit) -> Path:
    shutil.copytree(folder, into)
    edit(into)
    return into


def without_files(*names: str) -> Edit:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def with_tokens(count: int) -> Edit:
    def edit(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([f"<extra_{n}>" for n in range(count)])
        tokenizer.save_pretrained(folder)

    return edit


def with_template(single: str, **tokenizer_config: str) -> Edit:
    """Makes the tokenizer add its own tokens around a text."""

    def edit(folder: Path) -> None:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        special = [("<pad>", PAD), ("<eos>", EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
        tokenizer.save(str(folder / "tokenizer.json"))
        edit_json(folder, "tokenizer_config.json", **tokenizer_config)

    return edit


def edit_tokenizer(change: Callable[[dict[str, Any]], Any]) -> Edit:
    def edit(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        change(tokenizer)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    return edit


def another_class(folder: Path) -> None:
    """A tokenizer that keeps digits together, to be read as one that cuts them."""
    bpe_tokenizer(["234 234 234"] * 20, 270).save_pretrained(folder)
    edit_json(folder, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")


def ends(value: Any) -> Edit:
    return lambda folder: edit_json(folder, "generation_config.json", eos_token_id=value)


REFUSED: dict[str, tuple[Edit, str]] = {
    "tokens beyond V": (with_tokens(70), "of its tokenizer's tokens, from '<extra_"),
    "three tokens beyond V": (
        lambda folder: with_tokens(3)(save_model(shutil.rmtree(folder) or folder)),  # type: ignore[func-returns-value]
        "3 of its tokenizer's tokens, from '<extra_0>' (id ",
    ),
    "V smaller than the tokenizer": (
        lambda folder: save_model(shutil.rmtree(folder) or folder, rows=200),  # type: ignore[func-returns-value]
        "have no row in the embedding of 200 rows; give the model's own tokenizer",
    ),
    "no tokenizer": (without_files("tokenizer.json", "tokenizer_config.json"), "no tokenizer.json in /"),
    "only its settings": (without_files("tokenizer.json"), "no tokenizer.json in /"),
    "no vocabulary": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "cannot be loaded by transformers (",
    ),
    "EOS appended": (
        with_template("$A <eos>"),
        "its tokenizer appends '<eos>' to every text, so that prompts would end",
    ),
    "EOS appended behind a BOS": (with_template("<pad> $A <eos>", bos_token="<pad>"), "its tokenizer appends '<eos>'"),
    "another token appended": (with_template("$A <pad>"), "its tokenizer appends '<pad>' to every text"),
    "BOS twice": (
        with_template("<pad> <pad> $A", bos_token="<pad>"),
        "its tokenizer begins every text with <pad> twice; set add_bos_token to false",
    ),
    "an EOS beyond V": (ends(ROWS), f"its EOS id {ROWS} has no row in the embedding of {ROWS} rows; mend eos_token_id"),
    "one of several EOS beyond V": (ends([EOS, 5, 99999]), "its EOS id 99999 has no row"),
    "a negative EOS": (ends(-1), "its EOS id -1 has no row"),
    "words for an EOS": (ends("<eos>"), "generation_config.json is '<eos>'; it must be an id, or a list of ids"),
    "a fraction for an EOS": (ends(1.5), "generation_config.json is 1.5; it must be an id, or a list of ids"),
    "true for an EOS": (ends([True]), "generation_config.json is [True]; it must be an id, or a list of ids"),
    "lists in a list": (ends([[EOS]]), "it must be an id, or a list of ids"),
    "dropout": (edit_tokenizer(lambda t: t["model"].update(dropout=0.1)), "tokenizer.json has a dropout"),
    "small letters": (
        edit_tokenizer(lambda t: t.update(normalizer={"type": "Replace", "pattern": {"String": "f"}, "content": "x"})),
        "its tokenizer writes ' The xinal answer is: \\\\boxed{' for ' The final",
    ),
}


def refused(folder: Path, out: Path, prompt: str = "{question}") -> str:
    """Returns the one line with which `softtok model` refuses a folder; it leaves nothing."""
    with pytest.raises(UserError) as refusal:
        make_model(folder_model(folder).model_copy(update={"prompt": prompt}), CPU, out / "made", None)
    message = str(refusal.value)
    assert message.startswith(f"model {folder}: ") and "\n" not in message and len(message) < 450
    assert not list(out.glob("*"))
    return message


REFUSED_WHEN_MADE: dict[str, tuple[Edit, str]] = {
    "an EOS that it does not know": (
        lambda folder: edit_json(folder, "tokenizer_config.json", eos_token="</s>"),
        "tokenizer_config.json names the EOS '</s>', which tokenizer.json does not hold",
    ),
    "another class": (
        another_class,
        "transformers makes a Qwen2Tokenizer of it, which gives other tokens than tokenizer.json for \"Tom's 1,234.5",
    ),
}
"""The model's job sees more than later ones, which would need seconds for it."""


@pytest.mark.parametrize("case", REFUSED_WHEN_MADE)
def test_a_tokenizer_that_is_read_otherwise_is_refused(case: str, saved: Path, tmp_path: Path) -> None:
    edit, words = REFUSED_WHEN_MADE[case]
    assert words in refused(copied(saved, tmp_path / "model", edit), tmp_path / "out")


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_tokenizer_is_refused_in_one_line(
    case: str, saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit, words = REFUSED[case]
    folder = copied(saved, tmp_path / "model", edit)
    capfd.readouterr()
    message = refused(folder, tmp_path / "out")
    assert words in message
    with pytest.raises(UserError) as later:
        load(folder, CPU)
    assert str(later.value) == message
    assert capfd.readouterr().err == ""


def test_a_folder_without_tokenizer_is_refused_before_its_weights_are_read(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(saved, tmp_path / "model", without_files("tokenizer.json", "tokenizer_config.json"))
    monkeypatch.setattr("softtok.models.base_model.file_hashes", pytest.fail)
    assert f"no tokenizer.json in {folder}" in refused(folder, tmp_path / "out")


ACCEPTED: dict[str, tuple[Edit, list[int], set[int]]] = {
    "rows without a token": (lambda folder: None, [], {EOS}),
    "tokens within V": (with_tokens(3), [], {EOS}),
    "several EOS": (ends([5, 300, EOS]), [], {EOS, 5, 300}),
    "a BOS": (with_template("<pad> $A", bos_token="<pad>"), [PAD], {EOS}),
    "cut and padded": (
        edit_tokenizer(
            lambda t: t.update(
                truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
                padding={
                    "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": PAD,
                    "pad_type_id": 0, "pad_token": "<pad>",
                },
            )
        ),
        [],
        {EOS},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_right_tokenizer_gives_whole_prompts_and_all_ends(case: str, saved: Path, tmp_path: Path) -> None:
    """Compares with the tokens of the text, which the bare library gives; a saved copy gives the same."""
    edit, before, eos = ACCEPTED[case]
    folder = copied(saved, tmp_path / "model", edit)
    make_model(folder_model(folder), CPU, tmp_path / "made", None)
    lm = load(tmp_path / "made", CPU)
    bare = Tokenizer.from_file(str(saved / "tokenizer.json"))
    texts = [render(PROMPT, question) for question in QUESTIONS]
    expected = [before + bare.encode(text, add_special_tokens=False).ids for text in texts]
    assert encode(lm, texts) == expected
    rules = TextRules(lm)
    assert rules.eos == eos and rules.may_stop[sorted(eos)].all()
    lm.tokenizer.save_pretrained(tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(tmp_path / "copy")(texts)["input_ids"] == expected


# Prompts


WRONG_PROMPTS = {
    "a BOS in the template": ("<pad>User: {question}", "What?", "holds <pad> twice; the tokenizer begins every text"),
    "a BOS behind": ("User: {question} <pad>", "What?", "holds <pad> twice"),
    "an EOS at the end": ("User: {question}<eos>", "What?", "ends in <eos>, after which a model has nothing to say"),
}


@pytest.mark.parametrize("case", WRONG_PROMPTS)
def test_a_template_with_the_tokenizers_own_marks_is_refused(case: str, saved: Path, tmp_path: Path) -> None:
    template, _, words = WRONG_PROMPTS[case]
    folder = copied(saved, tmp_path / "model", with_template("<pad> $A", bos_token="<pad>"))
    assert words in refused(folder, tmp_path / "out", template)


@pytest.mark.parametrize(("question", "words"), [("What <pad>?", "twice"), ("What?<eos>", "ends in <eos>")])
def test_a_question_with_the_tokenizers_own_marks_is_refused(
    question: str, words: str, saved: Path, tmp_path: Path
) -> None:
    """Special tokens in a text are read as such. Problems and multiple choice alike."""
    lm = load(copied(saved, tmp_path / "model", with_template("<pad> $A", bos_token="<pad>")), CPU)
    table = pd.DataFrame({"id": ["row0", "row1"], "question": ["What?", question], "gold": [["1"], ["1"]]})
    table.to_parquet(tmp_path / "set.parquet")
    with pytest.raises(UserError, match=words):
        read_problems(tmp_path / "set.parquet", lm, Asking("{question}"))
    with pytest.raises(UserError, match=words):
        log_likelihoods(lm, [("What?", " A"), (question, " A")], 500)


def test_a_toy_with_a_wrong_template_is_refused_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softtok.models.toy_model.pretrain", pytest.fail)
    settings = {"tokenizer": "llama-3", "width": 16, "layers": 1, "heads": 2, "mlp_width": 32, "steps": 1}
    spec = toy_model("<|begin_of_text|>User: {question} Assistant:", **settings)
    with pytest.raises(UserError, match=r"holds <\|begin_of_text\|> twice"):
        make_model(spec, CPU, tmp_path / "toy", None)
    assert not list(tmp_path.iterdir())


# The published tokenizers


BEGIN = {"llama-3": [128_000], "qwen-2.5": []}
ENDS = {"llama-3": {128_001, 128_008, 128_009}, "qwen-2.5": {151_643, 151_645}}
CHATS = {
    "llama-3": "<|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen-2.5": "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
}
PARTS = ["{question}", PROMPT, "Q: {question}\n\n", *CHATS.values()]


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A published tokenizer with its name."""
    return request.param, real_tokenizer(request.param, 4096)


def test_published_prompts_hold_bos_once_at_most_and_never_end_in_eos(published: tuple[str, Any]) -> None:
    name, tokenizer = published
    for template in (*PARTS[:3], CHATS[name]):
        texts = [render(template, question) for question in QUESTIONS if template != "{question}" or question]
        for text, ids in zip(texts, encode_prompts(name, tokenizer, ENDS[name], texts), strict=True):
            assert ids == BEGIN[name] + tokenizer(text, add_special_tokens=False)["input_ids"]
            assert ids.count(128_000) == len(BEGIN[name]) and ids[-1] not in ENDS[name]


def test_published_marks_in_a_prompt_are_refused(published: tuple[str, Any]) -> None:
    """As a chat's template writes them: Llama's begins with the token that its tokenizer adds, too."""
    name, tokenizer = published
    texts = [f"What?{end}" for end in tokenizer.convert_ids_to_tokens(sorted(ENDS[name]))]
    if name == "llama-3":
        texts += ["<|begin_of_text|>" + render(CHATS[name], "What?"), "What is <|begin_of_text|>?"]
    for text in texts:
        with pytest.raises(UserError, match=r"holds <\|begin_of_text\|> twice|ends in <\|"):
            encode_prompts(name, tokenizer, ENDS[name], ["What?", text])
