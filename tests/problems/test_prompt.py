"""Prompts, the stop phrase and the closing of a box, decided on ids exactly as on the whole decoded text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softtok.errors import UserError
from softtok.models.toy_model import bpe_tokenizer, word_tokenizer
from softtok.problems.prompt import (
    PREFILL_AFTER_CUT,
    PREFILL_AFTER_STOP,
    PROMPT,
    STOP_PHRASE,
    AnswerRule,
    StopRule,
    choice_prompt,
    cloze_prompt,
    decode,
    eos_ids,
    render,
    token_texts,
)
from softtok.problems.toy import vocabulary
from tests.support.answers import closes

# Text that the merges are learned from: the phrase in several surroundings, so that tokens cross its ends.
TRAINING_TEXT = [
    f"so x = 3. {STOP_PHRASE} \\boxed{{3}}",
    f"hence\n{STOP_PHRASE}\n\n\\boxed{{12}}.\n",
    "for y and z the final thing is:\nthis:\nor his:\n",
    f"The final answer is 7 {STOP_PHRASE}{STOP_PHRASE} final: is: r is: }} }}}} {{}} ü – 中文",
] * 50


@pytest.fixture(scope="module", params=["bytes", "bpe", "unsplit"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """`unsplit` merges across words, signs and line ends, as real tokenizers do with ":" and the newline behind it."""
    if request.param == "unsplit":
        return unsplit_bpe(TRAINING_TEXT, 600)
    return bpe_tokenizer(TRAINING_TEXT, 258 if request.param == "bytes" else 600)


def unsplit_bpe(texts: list[str], size: int) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def stop(tokenizer: Any) -> StopRule:
    return StopRule(tokenizer)


# Pieces whose joins make, break and repeat the phrase; white space and multi-byte characters around it.
texts = st.lists(
    st.one_of(
        st.sampled_from(
            [
                STOP_PHRASE,
                " ",
                "\n",
                "\t ",
                ":",
                "The final ",
                "answer is",
                " is:",
                "ü",
                "中",
                "3.",
                STOP_PHRASE[:-1],
                " " * 40,
            ]
        ),
        st.text(max_size=4),
    ),
    max_size=8,
).map("".join)


class TestStopRule:
    @settings(deadline=None)
    @given(text=texts, data=st.data())
    @example(text=STOP_PHRASE, data=None)
    @example(text=f"{STOP_PHRASE} \n", data=None)
    @example(text=f"x{STOP_PHRASE}" + " " * 300, data=None)
    def test_matches_what_the_whole_text_says_at_every_token(
        self, stop: StopRule, tokenizer: Any, text: str, data: Any
    ) -> None:
        ids = random_segmentation(tokenizer, text, data) if data else tokenizer(text)["input_ids"]
        was = False
        for end in range(1, len(ids) + 1):
            now = decode(tokenizer, ids[:end]).rstrip().endswith(STOP_PHRASE)
            assert stop.matches(ids[:end]) == now
            assert stop.candidates[ids[end - 1]] or was or not now, (
                "the phrase ended anew behind an id that is no candidate"
            )
            was = now

    def test_at_step_0_a_whole_phrase_in_one_token(self) -> None:
        tokenizer = bpe_tokenizer([STOP_PHRASE], 300)
        whole = tokenizer(STOP_PHRASE)["input_ids"]
        rule = StopRule(tokenizer)
        assert rule.matches(whole)
        assert rule.candidates[whole[-1]]
        assert not rule.matches([])

    def test_some_tokens_hold_the_colon_and_a_newline(self) -> None:
        assert any(text.endswith(":\n") for text in token_texts(unsplit_bpe(TRAINING_TEXT, 600)))

    def test_few_ids_are_candidates(self, stop: StopRule) -> None:
        assert 1 <= stop.candidates.sum() <= 0.05 * len(stop.candidates)

    def test_a_special_token_breaks_the_phrase(self, stop: StopRule, tokenizer: Any) -> None:
        ids = tokenizer(STOP_PHRASE)["input_ids"]
        broken = [*ids[:1], tokenizer.pad_token_id, *ids[1:]]
        assert len(ids) > 1
        assert stop.matches(ids)
        assert not stop.matches(broken)

    def test_rows_of_the_embedding_beyond_the_vocabulary_are_no_candidates(self, tokenizer: Any) -> None:
        rule = StopRule(tokenizer, token_texts(tokenizer, size=len(tokenizer) + 7))
        assert len(rule.candidates) == len(tokenizer) + 7
        assert not rule.candidates[len(tokenizer) :].any()

    def test_the_toy_tokenizer_too(self) -> None:
        tokenizer = word_tokenizer(vocabulary("User: {question} Assistant:"))
        rule = StopRule(tokenizer)
        ids = tokenizer(f" 3 + 4 = 7. {STOP_PHRASE}")["input_ids"]
        assert [end for end in range(1, len(ids) + 1) if rule.matches(ids[:end])] == [len(ids)]
        assert rule.candidates[ids[-1]]


def random_segmentation(tokenizer: Any, text: str, data: Any) -> list[int]:
    """Ids of `text` cut at random places: a model may write a text in tokens that the tokenizer would not choose."""
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1)), max_size=6)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [i for part in parts for i in tokenizer(part)["input_ids"]]


class TestAnswerRule:
    @settings(deadline=None)
    @given(
        answer=st.lists(
            st.sampled_from(["3", "\\frac{1}{2}", "{", "}", "\\}", "\\{", "\\\\", " ", "x"]), max_size=8
        ).map("".join),
        data=st.data(),
    )
    def test_closes_where_the_braces_balance_and_only_behind_a_candidate(
        self, tokenizer: Any, answer: str, data: Any
    ) -> None:
        rule = AnswerRule(tokenizer)
        ids = random_segmentation(tokenizer, answer, data)
        was = False
        for end in range(1, len(ids) + 1):
            now = rule.complete(ids[:end])
            assert now == closes(decode(tokenizer, ids[:end]))
            assert rule.candidates[ids[end - 1]] or now == was
            was = now


class TestPrompts:
    def test_the_template_is_the_papers(self) -> None:
        text = render(PROMPT, "What is 1 + 1?")
        assert text.startswith(
            "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        )
        assert (
            r"the final answer in \boxed{}. The assistant must always follow the format: 'User: [question] Assistant: "
            in text
        )
        assert text.endswith(
            r"[detailed reasoning] The final answer is: \boxed{[answer]}.' User: What is 1 + 1? Assistant:"
        )

    @given(question=st.text())
    @example(question="{question} {0} {} %s \\boxed{")
    def test_render_puts_the_question_in_and_changes_nothing_else(self, question: str) -> None:
        assert render("{x} {{question}} }{", question) == "{x} {" + question + "} }{"

    @pytest.mark.parametrize("template", ["", "{Question}", "{question} {question}"])
    def test_a_template_without_exactly_one_place_is_refused(self, template: str) -> None:
        with pytest.raises(UserError, match="exactly once"):
            render(template, "x")

    def test_prefills_continue_the_text(self) -> None:
        assert f"so 3. {STOP_PHRASE}{PREFILL_AFTER_STOP}" == "so 3. The final answer is: \\boxed{"
        assert f"and then{PREFILL_AFTER_CUT}" == "and then The final answer is: \\boxed{"

    def test_choice_formats(self) -> None:
        assert choice_prompt("Which?", ["red", "blue"]) == "Question: Which?\nA. red\nB. blue\nAnswer:"
        assert cloze_prompt("Which?") == "Question: Which?\nAnswer:"
        with pytest.raises(UserError, match="27 options"):
            choice_prompt("Which?", ["x"] * 27)


class TestIds:
    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            (None, {1}),
            (SimpleNamespace(eos_token_id=None), {1}),
            (SimpleNamespace(eos_token_id=0), {0, 1}),
            (SimpleNamespace(eos_token_id=[5, 6]), {1, 5, 6}),
        ],
    )
    def test_eos_ids_are_the_models_and_the_tokenizers(self, config: Any, expected: set[int]) -> None:
        assert eos_ids(config, SimpleNamespace(eos_token_id=1)) == expected

    def test_no_eos_at_all(self) -> None:
        assert eos_ids(None, SimpleNamespace(eos_token_id=None)) == set()

    def test_token_texts_put_together_are_the_text(self, tokenizer: Any) -> None:
        texts = token_texts(tokenizer, size=len(tokenizer) + 2)
        text = "so x = 3. is:\n"
        assert "".join(texts[i] for i in tokenizer(text)["input_ids"]) == text
        assert texts[-2:] == ["", ""]
