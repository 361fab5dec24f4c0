"""The real vocabularies of Llama 3 and Qwen 2.5 on random bodies of both architectures.

Prompts, the stop phrase in every way that tokens can spell it, prefill, boxes and ends of a text; and trajectories that
training recomputes, the vocabulary a tile at a time.
"""

from __future__ import annotations

import dataclasses
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig

from softtok.config.settings import RuntimeSettings, TokenMode, ToySettings, TrainingSettings
from softtok.errors import UserError
from softtok.method.batches import read_problems
from softtok.method.rollout import rollout
from softtok.method.stopping import TextRules
from softtok.method.terms import Tiling
from softtok.method.trajectories import STOPS, Batch, Limits, Policy, Rollout
from softtok.models.base_model import make_model
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.models.real_tokenizers import PUBLISHED, read_ranks, real_tokenizer, vocabulary_file
from softtok.problems.boxed import last_boxed
from softtok.problems.prompt import PREFILL_AFTER_CUT, PREFILL_AFTER_STOP, PROMPT, STOP_PHRASE, decode, render
from softtok.problems.prompting import Asking
from tests.support.answers import closes
from tests.support.gradients import run_pass
from tests.support.records import fed, means
from tests.support.specs import toy_model
from tests.support.tiny_models import tiny_model, token_mode

ROWS = {"llama-3": 128_256, "qwen-2.5": 151_936}
FAMILY = {"llama-3": "llama", "qwen-2.5": "qwen2"}
BEGIN = {"llama-3": [128_000], "qwen-2.5": []}
ENDS = {"llama-3": {128_001, 128_008, 128_009}, "qwen-2.5": {151_643, 151_645}}
SPELLED = {
    "llama-3": {"<|eot_id|>": 128_009, "<|end_of_text|>": 128_001, "<|eom_id|>": 128_008, "<|python_tag|>": 128_010,
                "<|reserved_special_token_2|>": 128_005, "<|reserved_special_token_247|>": 128_255},
    "qwen-2.5": {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645, "<tool_call>": 151_657,
                 "<|file_sep|>": 151_664},
}  # fmt: skip
BETWEEN_NUMBERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
PATTERNS = {"llama-3": r"\p{N}{1,3}".join(BETWEEN_NUMBERS), "qwen-2.5": r"\p{N}".join(BETWEEN_NUMBERS)}
QUESTIONS = [
    "Janet\u2019s ducks lay 16 eggs per day. How much does she make at $2.50 an egg?",
    "Let \\[f(x) = \\left\\{\n\\begin{array}{cl} a, &\\text{ if }x>2, \\\\\nx &\\text{ else.}\n\\end{array}\\right.\\]",
    "What is 1234567 + 89?  Mind   the spaces,\t tabs\r\n\r\nand lines.\n\n",
    "I'll, you'RE, nai\u0308ve, caf\u00e9, \u4e2d\u6587, \U0001f600, \u2260, \u03c0\u00b2.",
]


@pytest.fixture(scope="module", params=PUBLISHED)
def name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def tokenizer(name: str) -> Any:
    return real_tokenizer(name, 4096)


@pytest.fixture(scope="module")
def toy(name: str, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random body made, saved and loaded as the workflow does it."""
    body = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32, "steps": 0, "threads": 1}
    settings = ToySettings.model_validate({**body, "tokenizer": name, "architecture": FAMILY[name]})
    folder = tmp_path_factory.mktemp("models") / name
    make_model(toy_model(PROMPT, **settings.model_dump()), RuntimeSettings(), folder, None)
    return load(folder, RuntimeSettings())


@pytest.fixture(scope="module")
def rules(toy: LanguageModel) -> TextRules:
    return TextRules(toy)


# The tokenizers themselves


def test_ids_are_tiktokens(name: str, tokenizer: Any) -> None:
    """The reference implementation on the same file, special tokens and real-looking text included."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = read_ranks(vocabulary_file(name))
    special = {token: len(ranks) + i for i, token in enumerate(PUBLISHED[name].special)}
    assert {token: special[token] for token in SPELLED[name]} == SPELLED[name]
    reference = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens=special)
    for text in [*QUESTIONS, render(PROMPT, QUESTIONS[0]), f"3{PREFILL_AFTER_CUT}42}}.{next(iter(SPELLED[name]))}\n"]:
        as_read = unicodedata.normalize("NFC", text) if name == "qwen-2.5" else text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(as_read, allowed_special="all")
        assert decode(tokenizer, ids) == as_read


def test_a_missing_package_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(PUBLISHED[name], package="no-such-package"))
    with pytest.raises(UserError, match=f"^tokenizer {name}: .* no-such-package, which is not installed.*$"):
        real_tokenizer(name, 4096)


def test_a_saved_body_has_the_models_rows_and_ends(name: str, toy: LanguageModel, rules: TextRules) -> None:
    assert toy.model.config.model_type == FAMILY[name]
    assert toy.embedding_VD.shape == (ROWS[name], 16)
    assert len(toy.tokenizer) <= ROWS[name]
    assert rules.eos == ENDS[name]
    assert rules.may_stop.shape == (ROWS[name],) and rules.may_stop[list(ENDS[name])].all()
    assert rules.may_stop.sum() < 30, "all other tokens need no look"


def test_prompts_begin_as_the_model_expects(name: str, toy: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "set.parquet"
    golds = [["1"]] * len(QUESTIONS)
    pd.DataFrame({"id": QUESTIONS, "question": QUESTIONS, "gold": golds}).to_parquet(file)
    for problem, question in zip(read_problems(file, toy, Asking()), QUESTIONS, strict=True):
        begin, text = problem.prompt[: len(BEGIN[name])], problem.prompt[len(BEGIN[name]) :]
        assert begin == BEGIN[name]
        assert not set(text) & (ENDS[name] | {128_000}), "one beginning, no end"
        assert unicodedata.normalize("NFC", decode(toy.tokenizer, text)) == unicodedata.normalize(
            "NFC", render(PROMPT, question)
        )


# The stop phrase, prefill and boxes


def spellings(text: str, ids_of: dict[bytes, int]) -> Iterator[list[int]]:
    """Every sequence of tokens whose text this is."""
    raw = text.encode()
    ends = [[e for e in range(s + 1, len(raw) + 1) if raw[s:e] in ids_of] for s in range(len(raw))]
    open_ends: list[tuple[int, list[int]]] = [(0, [])]
    while open_ends:
        start, ids = open_ends.pop()
        if start == len(raw):
            yield ids
            continue
        open_ends += [(end, [*ids, ids_of[raw[start:end]]]) for end in ends[start]]


def test_the_stop_phrase_is_found_however_tokens_spell_it(name: str, rules: TextRules) -> None:
    """Takes all 22,080 ways from the first letter on, and more with a space or newline before.

    The phrase is found at the last token, and at none before.
    """
    ids_of = read_ranks(vocabulary_file(name))
    ways = 0
    for lead in ("", " ", "\n"):
        before: set[tuple[int, ...]] = set()
        for ids in spellings(lead + STOP_PHRASE, ids_of):
            ways += 1
            assert rules.stop(np.array(ids)) == "phrase", ids
            before.add(tuple(ids[:-1]))
        for start in random.Random(0).sample(sorted(before), 500):
            assert not any(rules.stop(np.array(start[:end])) for end in range(1, len(start) + 1)), start
    assert ways == 22_080 + 44_160 + 22_080


def test_a_colon_may_be_glued_to_what_follows(name: str, toy: LanguageModel, rules: TextRules) -> None:
    """The vocabularies have tokens of a colon and line ends. Any other token that holds the colon says more."""
    ids_of = read_ranks(vocabulary_file(name))
    start = toy.tokenizer.encode("so 3. The final answer is", add_special_tokens=False)
    colons = {token: i for token, i in ids_of.items() if token.startswith(b":")}
    blank = {token for token in colons if token[1:].isspace()}
    assert {b":\n", b":\n\n", b":\r\n"} <= blank
    for token, i in colons.items():
        expected = "phrase" if token == b":" or token in blank else None
        assert rules.stop(np.array([*start, i])) == expected, token
    spaces = toy.tokenizer.encode(" \n \n\n", add_special_tokens=False)
    phrase = toy.tokenizer.encode(f"so 3. {STOP_PHRASE}", add_special_tokens=False)
    assert rules.stop(np.array(phrase)) == "phrase"
    assert rules.stop(np.array([*phrase[:-1], phrase[-1], *spaces])) is None or rules.may_stop[spaces[-1]]
    for end in ENDS[name]:
        assert rules.stop(np.array([*phrase[:-1], end])) == "eos"
        assert rules.stop(np.array([*phrase[:-1], end, phrase[-1]])) is None, "an end of text amid the phrase breaks it"


def test_rows_without_a_token_have_no_text(name: str, toy: LanguageModel, rules: TextRules) -> None:
    """Qwen's embedding has more rows than there are tokens. Amid the phrase, letter by letter, they change nothing."""
    beyond = range(len(toy.tokenizer), ROWS[name])
    assert len(beyond) == {"llama-3": 0, "qwen-2.5": 271}[name]
    letters = [toy.tokenizer.encode(letter, add_special_tokens=False)[0] for letter in STOP_PHRASE]
    ids = [i for letter in letters for i in [*beyond[:3], letter]]
    assert decode(toy.tokenizer, ids) == STOP_PHRASE
    assert rules.stop(np.array(ids)) == "phrase"
    assert not rules.may_stop[list(beyond)].any()


def test_prefilled_words_are_spelled_as_the_tokenizer_would(name: str, toy: LanguageModel, rules: TextRules) -> None:
    def encode(text: str) -> list[int]:
        ids: list[int] = toy.tokenizer.encode(text, add_special_tokens=False)
        return ids

    assert decode(toy.tokenizer, rules.prefill_after_phrase) == PREFILL_AFTER_STOP
    assert decode(toy.tokenizer, rules.prefill_after_cut) == PREFILL_AFTER_CUT
    assert not set(rules.prefill_after_phrase + rules.prefill_after_cut) & (ENDS[name] | set(BEGIN[name]))
    assert encode(f"so 3. {STOP_PHRASE}{PREFILL_AFTER_STOP}") == encode(f"so 3. {STOP_PHRASE}") + encode(
        PREFILL_AFTER_STOP
    )
    assert encode(f"and then{PREFILL_AFTER_CUT}") == encode("and then") + rules.prefill_after_cut


def test_a_box_closes_in_whichever_token_its_brace_is(name: str, toy: LanguageModel, rules: TextRules) -> None:
    """Takes every token with a closing brace, inside a number, a fraction and behind a backslash.

    The reward then reads the same.
    """
    texts = {i: decode(toy.tokenizer, [i]) for i in range(ROWS[name])}
    closing = {i for i, text in texts.items() if "}" in text}
    assert {"}", "}.", "}}", ")}", "}$"} <= {texts[i] for i in closing}
    assert 400 < len(closing) < 1000
    for before in ("", "42", "\\frac{1}{2", "3\\"):
        ids = toy.tokenizer.encode(before, add_special_tokens=False)
        for i in closing:
            closed = closes(decode(toy.tokenizer, [*ids, i]))
            assert rules.answer_ends([*ids, i]) == closed, (before, texts[i])
            if closed and before == "42":
                text = rules.answer_text(rules.prefill_after_phrase, [*ids, i])
                assert last_boxed(text) == before + texts[i].split("}")[0]
    for i in random.Random(0).sample(sorted(set(texts) - closing - ENDS[name]), 200):
        assert not rules.answer_ends([*ids, i])
    for end in ENDS[name]:
        assert rules.answer_ends([*ids, end])
        assert rules.answer_text(rules.prefill_after_phrase, [*ids, end]) == PREFILL_AFTER_STOP + "3\\"


# Trajectories over the whole vocabulary


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *(x.numel() for x in made if x._base is None)])
        return out


MODES = {
    "hard": TokenMode(tokens="hard"),
    "soft": TokenMode(tokens="soft", temperature=0.5, noise_scale=0.33),
    "fuzzy": TokenMode(tokens="soft", temperature=1e-4, noise_scale=0.33),
}
SAMPLES, TILE, WIDTH = 6, 16, 16


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_training_recomputes_the_rollout_at_full_vocabulary(name: str, tokenizer: Any, rules: Any, tied: bool) -> None:
    """Hard, soft and fuzzy.

    The states of a plain forward pass over what was fed give the recorded h, and so does the
    objective's own pass (its gap), which never holds more of the vocabulary than a tile of tokens.
    """
    lm = tiny_model(FAMILY[name], vocabulary=ROWS[name], width=WIDTH, tied=tied)
    lm.model.generation_config = GenerationConfig(eos_token_id=sorted(ENDS[name]))
    lm = dataclasses.replace(lm, tokenizer=tokenizer)
    prompts = [tokenizer(question)["input_ids"] for question in QUESTIONS[:2]]
    keys = [str(row) for row in range(len(prompts) * SAMPLES)]
    batch, limits, tiling = Batch(prompts, SAMPLES, keys), Limits(10, 6, 1.0, "shadow"), Tiling(400, TILE)
    for label, mode in MODES.items():
        tokens, soft = token_mode(lm, mode), mode.tokens == "soft"
        with Largest() as in_rollout:
            out = rollout(Policy(lm, rules, tokens, limits), batch, record=True)
        assert in_rollout.elements <= max(len(keys), WIDTH) * ROWS[name]
        assert set(out.stops) == {STOPS.index("cap")}, "random tokens do not stop by themselves"
        assert (out.cot_ids >= 0).all() and (out.cot_ids < ROWS[name]).all()
        assert len({tuple(row) for row in out.cot_ids.tolist()}) > len(keys) // 2, "a body that listens to its input"
        clear = clear_rows(lm, out, mode, tokens.noise_std) if soft else np.ones(len(keys), bool)
        assert clear.mean() > 0.3
        advantages = np.random.default_rng(0).normal(size=len(keys)).astype(np.float32)
        lm.model.zero_grad()
        with Largest() as in_training:
            seen = run_pass((lm, tokens, out, advantages * clear), TrainingSettings(), tiling=tiling)
        assert in_training.elements <= TILE * ROWS[name], "no more than a tile of the vocabulary at a time"
        gradients = [parameter.grad for parameter in lm.model.parameters()]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients), label
        if soft:
            assert seen.tokens == 10 * clear.sum()
            assert seen.gap < 1e-3, f"{label}: the recomputed h is {seen.gap:.1e} sigma from the rollout's"
            assert seen.flips == 0
            assert seen.noise / seen.tokens == pytest.approx(1, abs=6 * (2 / (seen.tokens * WIDTH)) ** 0.5)
        if not clear.all():
            seen = run_pass((lm, tokens, out, advantages * ~clear), TrainingSettings(), tiling=tiling)
            assert seen.gap < 0.2, "rounding of 1e-6 of a logit, over a temperature of 1e-4"


@torch.no_grad()
def clear_rows(lm: LanguageModel, out: Rollout, mode: TokenMode, sigma: float) -> np.ndarray:
    """Returns which rows have no step at which rounding of logits, over the temperature, shifts the mixture (N,).

    All rows' recorded mixtures are checked against transformers' own forward: no cache, no padding, nothing shared.
    """
    clear = []
    for row in range(len(out.answers)):
        prompt = out.prompts[row // SAMPLES]
        inputs = torch.cat([lm.embed(torch.tensor(prompt)), fed(out)[row]])
        logits = lm.model(inputs_embeds=inputs[None]).logits[0, len(prompt) - 1 : -1].double()
        h_TD = torch.softmax(logits / mode.temperature, -1) @ lm.embedding_VD.double()
        top = logits.topk(2).values
        clear_T = (top[:, 0] - top[:, 1] > 15 * mode.temperature) | (mode.temperature > 0.1)
        gap_T = (h_TD - means(out)[row]).abs().amax(-1) / sigma
        assert (gap_T[clear_T] < 1e-3).all() and (gap_T < 0.2).all()
        clear.append(bool(clear_T.all()))
    return np.array(clear)
