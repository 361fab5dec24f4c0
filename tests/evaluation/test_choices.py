"""Multiple choice: likelihoods are those of each text on its own, and the two formats choose as they say."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

from softtok.config.manifests import CheckpointManifest
from softtok.config.settings import ChoiceFormat, RuntimeSettings
from softtok.evaluation.choices import choices, log_likelihoods
from softtok.models.language_model import LanguageModel
from softtok.models.toy_model import bpe_tokenizer
from softtok.problems.prompt import choice_prompt, cloze_prompt
from softtok.storage.files import write_manifest
from softtok.storage.integrity import file_hashes, weights_sha256
from tests.support.specs import choices_spec
from tests.support.tiny_models import FAMILIES, tiny_model

RANDOM = np.random.default_rng(0)
WORDS = "red green blue pink apple pear dog cat bus ship".split()
QUESTIONS = [
    SimpleNamespace(
        id=f"q{i}",
        question=f"Which word goes with {' and '.join(RANDOM.choice(WORDS, 1 + i % 3))}?",
        choices=[" ".join(RANDOM.choice(WORDS, RANDOM.integers(1, 4))) for _ in range(2 + i % 4)],
        answer=i % 2,
    )
    for i in range(24)
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """BPE that puts a BOS in front of a prompt, as many real tokenizers do; a continuation must not get one."""
    made = bpe_tokenizer([choice_prompt(q.question, q.choices) for q in QUESTIONS], 330)
    made.add_special_tokens({"bos_token": "<bos>"})
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.bos_token_id)]
    )
    assert made("a")["input_ids"][0] == made.bos_token_id
    return made


def random_model(tokenizer: Any, family: str = "llama", spread: float = 0.3) -> LanguageModel:
    return dataclasses.replace(tiny_model(family, vocabulary=len(tokenizer), spread=spread), tokenizer=tokenizer)


def naive(lm: LanguageModel, prompt: str, rest: str) -> tuple[float, int]:
    """Log-probability and tokens of `rest` from the model's own forward over this one text.

    It is in fp64 where the vocabulary appears.
    """
    before = lm.tokenizer(prompt)["input_ids"]
    after = lm.tokenizer(rest, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        log_p = lm.model(input_ids=torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(log_p[len(before) + i - 1, token].item() for i, token in enumerate(after)), len(after)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_likelihoods_are_those_of_each_text_alone(
    family: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of prompts and continuations of many lengths, whatever the order and the room."""
    run: list[torch.Size] = []
    hidden = LanguageModel.hidden

    def noted(self: LanguageModel, embeds: torch.Tensor, *others: Any) -> torch.Tensor:
        run.append(embeds.shape[:2])
        return hidden(self, embeds, *others)

    monkeypatch.setattr(LanguageModel, "hidden", noted)
    lm = random_model(tokenizer, family)
    pairs = [(cloze_prompt(q.question), f" {choice}") for q in QUESTIONS for choice in q.choices]
    pairs += [(choice_prompt(q.question, q.choices), " B") for q in QUESTIONS]
    wanted = [naive(lm, *pair) for pair in pairs]
    assert {tokens for _, tokens in wanted} >= {1, 2, 3}
    orders = [list(range(len(pairs))), np.random.default_rng(1).permutation(len(pairs)).tolist()]
    for order, room in product(orders, (1, 200, 10**6)):
        run.clear()
        for place, (value, tokens) in zip(order, log_likelihoods(lm, [pairs[i] for i in order], room), strict=True):
            assert tokens == wanted[place][1]
            assert value == pytest.approx(wanted[place][0], abs=2e-4)
        assert all(rows == 1 or rows * length <= room for rows, length in run)
        assert len(run) == 1 if room == 10**6 else len(run) > 1


def test_texts_that_differ_in_their_last_token_are_run_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The letters of a question above all: its options are in the prompt, which is long."""
    run: list[int] = []
    hidden = LanguageModel.hidden

    def noted(self: LanguageModel, embeds: torch.Tensor, *others: Any) -> torch.Tensor:
        run.extend(embeds.shape[:1])
        return hidden(self, embeds, *others)

    lm = random_model(tokenizer)
    pairs = [(choice_prompt(q.question, q.choices), f" {letter}") for q in QUESTIONS for letter in "ABC"]
    pairs += [("one", " two red"), ("one two", " red"), ("one two", " blue")]
    wanted = [naive(lm, *pair) for pair in pairs]
    distinct = {tuple(lm.tokenizer(a)["input_ids"] + lm.tokenizer(b, add_special_tokens=False)["input_ids"][:-1])
                for a, b in pairs}  # fmt: skip
    monkeypatch.setattr(LanguageModel, "hidden", noted)
    for (value, tokens), (exact, count) in zip(log_likelihoods(lm, pairs, 500), wanted, strict=True):
        assert tokens == count
        assert value == pytest.approx(exact, abs=2e-4)
    assert sum(run) == len(distinct) < len(pairs) / 2


# The job


def mark(run: Path, sha256: str) -> None:
    """Writes the checkpoint.json that makes a folder with these weights a checkpoint."""
    made = CheckpointManifest(sha256=sha256, embedding_rms=None, state_rms={}, prompt="", seed=0)
    write_manifest(run / "checkpoint" / "checkpoint.json", made.model_dump())


def run(
    folder: Path, lm: LanguageModel, choice_format: ChoiceFormat, questions: list[Any] = QUESTIONS, rows: int = 256
) -> pd.DataFrame:
    """`choices` on a saved checkpoint and a prepared data set; its table by id."""
    if not (folder / "checkpoint").exists():
        lm.model.save_pretrained(folder / "checkpoint")
        lm.tokenizer.save_pretrained(folder / "checkpoint")
        mark(folder, weights_sha256(file_hashes(folder / "checkpoint")))
    shutil.rmtree(folder / ".state", ignore_errors=True)  # what was scored before
    pd.DataFrame([vars(q) for q in questions]).to_parquet(folder / "data.parquet")
    runtime = RuntimeSettings(device="cpu", rollout_rows=rows)
    out = folder / f"{choice_format}-{rows}.parquet"
    choices(choices_spec(choice_format), runtime, folder, folder / "data.parquet", out)
    table = pd.read_parquet(out)
    assert table.columns.tolist() == ["id", "correct", "predicted", "nll", "tokens", "made_on"]
    assert table["id"].tolist() == [q.id for q in questions]
    return table


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    return tmp_path_factory.mktemp("choices"), random_model(tokenizer)


def predicted_letter(lm: LanguageModel, q: Any) -> list[float]:
    return [naive(lm, choice_prompt(q.question, q.choices), f" {letter}")[0] for letter in "ABCDE"[: len(q.choices)]]


def predicted_text(lm: LanguageModel, q: Any) -> list[float]:
    scores = [naive(lm, cloze_prompt(q.question), f" {choice}") for choice in q.choices]
    return [value / tokens for value, tokens in scores]


@pytest.mark.parametrize(("choice_format", "scores"), [("letters", predicted_letter), ("cloze", predicted_text)])
def test_a_format_chooses_by_its_own_scores(
    choice_format: ChoiceFormat,
    scores: Callable[[LanguageModel, Any], list[float]],
    checkpoint: tuple[Path, LanguageModel],
) -> None:
    """The most likely letter after the options, or the most likely text per token after the bare question.

    In both, the NLL is that of the right text after the bare question. Batches of one question, of a few and of all
    give the same.
    """
    folder, lm = checkpoint
    table = run(folder, lm, choice_format)
    for q, row in zip(QUESTIONS, table.itertuples(), strict=True):
        wanted = scores(lm, q)
        lead = np.diff(sorted(wanted)[-2:])[0]
        assert row.predicted == int(np.argmax(wanted)) or lead < 1e-4
        assert row.correct == (row.predicted == q.answer)
        value, tokens = naive(lm, cloze_prompt(q.question), f" {q.choices[q.answer]}")
        assert row.nll == pytest.approx(-value, abs=2e-4) and row.tokens == tokens
    assert table["predicted"].nunique() > 1 and table["correct"].nunique() == 2, "the case tells right from wrong"
    for rows in (1, 5 * 4):
        again = run(folder, lm, choice_format, rows=rows)
        assert again["predicted"].tolist() == table["predicted"].tolist()
        np.testing.assert_allclose(again["nll"], table["nll"], rtol=0, atol=2e-4)


# Constructed models


class Bigrams:
    """A `LanguageModel` in which the last token alone decides on the next, by a table of probabilities."""

    def __init__(self, table: dict[str, dict[str, float]]):
        words = sorted(set(table) | {word for row in table.values() for word in row})
        core = Tokenizer(WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
        core.pre_tokenizer = Split(Regex(r" ?[A-Za-z]+|[^A-Za-z]"), behavior="isolated")
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
        size, ids = len(self.tokenizer), self.tokenizer.get_vocab()
        self.head_VD = torch.full((size, size), -30.0)  # one column per last token: logits are head @ (one hot)
        for last, row in table.items():
            for word, probability in row.items():
                self.head_VD[ids[word], ids[last]] = math.log(probability)
            self.head_VD[self.tokenizer.unk_token_id, ids[last]] = math.log(1 - sum(row.values()))
        self.embedding_VD, self.device, self.dtype = torch.eye(size), torch.device("cpu"), torch.float32
        self.name, self.model = "bigrams", SimpleNamespace(config=LlamaConfig(), generation_config=None)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.embedding_VD)

    def hidden(self, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        return embeds


def test_letters_and_texts_are_chosen_as_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the colon, C is the likeliest letter and E, likelier still, is not an option.

    `green blue` is the likeliest text per token, though not in sum; `red` is the right one.
    """
    lm = Bigrams({
        ":": {" A": 0.05, " B": 0.02, " C": 0.1, " E": 0.2, " red": 0.2, " green": 0.25, " pink": 0.01},
        " green": {" blue": 0.3},
        " pink": {" blue": 0.9},
    })  # fmt: skip
    monkeypatch.setattr("softtok.evaluation.choices.load", lambda folder, runtime: lm)
    (tmp_path / "checkpoint").mkdir()
    mark(tmp_path, "of no weights")
    red = SimpleNamespace(id="red", question="Which?", choices=["red", "green blue", "pink"], answer=0)
    green = SimpleNamespace(id="green", question="Which?", choices=["red", "green blue", "pink"], answer=1)
    two = SimpleNamespace(id="two", question="Which?", choices=["pink", "red"], answer=1)
    expected: dict[ChoiceFormat, list[int]] = {"letters": [2, 2, 0], "cloze": [1, 1, 1]}
    for choice_format, predicted in expected.items():
        table = run(tmp_path, lm, choice_format, [red, green, two])  # type: ignore[arg-type]
        assert table["predicted"].tolist() == predicted
        assert table["correct"].tolist() == [p == q.answer for p, q in zip(predicted, (red, green, two), strict=True)]
        np.testing.assert_allclose(table["nll"], [-math.log(0.2), -math.log(0.25 * 0.3), -math.log(0.2)], atol=1e-4)
        assert table["tokens"].tolist() == [1, 2, 1]
    assert 0.2 > 0.25 * 0.3 and math.sqrt(0.25 * 0.3) > 0.2, "the sum and the mean disagree on the best text"
