"""The toy: right problems, disjoint splits, demonstrations as sloppy as asked, exact tokenizers, a body that learns."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softtok.config.settings import ToySettings
from softtok.errors import UserError
from softtok.models.toy_model import batches, bpe_tokenizer, make, word_tokenizer
from softtok.problems import toy
from softtok.problems.prompt import PREFILL_AFTER_CUT, PROMPT, STOP_PHRASE, choice_prompt, cloze_prompt, decode, render
from tests.support.specs import TEMPLATE

STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)\.")
WORKED = re.compile(r"((?: \d+ [-+*/] \d+ = \d+\.)+) (?:The final answer is: \\boxed\{(\d+)\}|The answer is (\d+)\.)")


@pytest.fixture(scope="module")
def words() -> Any:
    return word_tokenizer(toy.vocabulary(TEMPLATE))


def demonstrations(count: int) -> list[toy.Demonstration]:
    return list(islice(toy.demonstrations(TEMPLATE, wrong=0.35, unboxed=0.2, seed=0), count))


def parts(pattern: re.Pattern[str], text: str) -> tuple[str | Any, ...]:
    found = pattern.fullmatch(text)
    assert found is not None, text
    return found.groups()


class TestProblems:
    @pytest.mark.parametrize("steps", [(2, 4), (5, 6), (1, 1)])
    def test_solutions_are_right_and_of_the_length_asked_for(self, steps: tuple[int, int]) -> None:
        problems = toy.problems(steps, "train", 500)
        assert {len(problem.steps) for problem in problems} == set(range(steps[0], steps[1] + 1))
        for problem in problems:
            for text, result in zip(problem.steps, problem.results, strict=True):
                left, operator, right, shown = parts(STEP, text)
                exact = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__truediv__}[operator](
                    int(left), int(right)
                )
                assert exact == int(shown) == result
                assert 0 <= result <= toy.LARGEST

    def test_steps_use_the_numbers_of_the_question_or_of_earlier_steps(self) -> None:
        for problem in toy.problems((2, 6), "train", 500):
            known = {int(number) for number in re.findall(r"\d+", problem.question)} | {2}  # 2: doubles, half
            for text, result in zip(problem.steps, problem.results, strict=True):
                left, _, right, _ = parts(STEP, text)
                assert {int(left), int(right)} <= known, problem
                known.add(result)

    def test_golds_vary(self) -> None:
        counts = Counter(problem.gold for problem in toy.problems((2, 4), "test", 1000))
        assert len(counts) == toy.LARGEST + 1
        assert counts.most_common(1)[0][1] < 80, "guessing one number solves too much"

    def test_the_same_again_and_a_longer_list_begins_the_same(self) -> None:
        assert toy.problems((2, 4), "test", 50) == toy.problems((2, 4), "test", 80)[:50]
        assert toy.problems((2, 4), "test", 50) != toy.problems((2, 4), "test", 50, seed=1)
        assert toy.choices("test", 50) == toy.choices("test", 80)[:50]

    def test_the_generator_is_pinned(self) -> None:
        """Changing it changes every toy result: raise DATA_VERSION and MODEL_VERSION with it."""
        question = "Ben has 4 boxes of 5 pears. Ben loses 2. Ben loses 7. How many pears in the end?"
        assert toy.problems((2, 4), "test", 1)[0].question == question

    def test_asking_for_more_than_there_are_is_told(self) -> None:
        with pytest.raises(UserError, match=r"3000 test problems are asked for, and there are about 1[56]"):
            toy.choices("test", 3000)

    def test_train_and_test_share_nothing_whatever_the_seed(self) -> None:
        sides = [
            {p.question for seed in range(3) for p in toy.problems((1, 2), split, 700, seed)}
            for split in ("train", "test")
        ]
        assert not sides[0] & sides[1]
        keys = [{choice_prompt(c.question, c.choices) for c in toy.choices(split, 1000)} for split in ("train", "test")]
        assert not keys[0] & keys[1]


class TestChoices:
    def test_the_answer_is_the_largest_and_the_question_names_all(self) -> None:
        for choice in toy.choices("test", 500):
            numbers = [int(option) for option in choice.choices]
            assert numbers[choice.answer] == max(numbers)
            assert len(set(numbers)) == len(numbers) == toy.OPTIONS
            assert re.findall(r"\d+", choice.question) == list(choice.choices)

    def test_no_letter_is_favoured(self) -> None:
        counts = Counter(choice.answer for choice in toy.choices("test", 1500))
        assert all(abs(counts[answer] / 1500 - 1 / toy.OPTIONS) < 0.04 for answer in range(toy.OPTIONS))


class TestDemonstrations:
    def test_all_are_of_the_train_side(self) -> None:
        for shown in demonstrations(3000):
            question = re.fullmatch(
                r"(?:User|Question): (.*?)(?:\nA\..*)?\s(?:Assistant|Answer):", shown.prompt, re.DOTALL
            )
            assert question
            assert toy.side(question[1]) == "train"

    def test_they_are_as_sloppy_as_asked(self) -> None:
        counts: Counter[str] = Counter()
        rng = random.Random(0)
        for problem in toy.problems((2, 4), "train", 4000):
            shown, boxed, plain = parts(WORKED, toy.solution(rng, problem, 0.35, 0.2))
            results = [int(step[3]) for step in STEP.findall(shown)]
            assert results == list(problem.results[: len(results)])
            early = len(results) < len(problem.results)
            given = int(boxed or plain)
            assert given in ([results[-1]] if early else problem.results[-2:])
            counts["early"] += early
            # An intermediate result may equal the last one: then the draw cannot be told from its outcome.
            telling = len(set(problem.results[-2:])) == 2
            counts["late"] += telling and not early and given != problem.results[-1]
            counts["telling"] += telling
            counts["unboxed"] += boxed is None
        # 4000 draws: three standard errors are 0.014, 0.021 and 0.019.
        assert abs(counts["early"] / 4000 - 0.35 * toy.EARLY) < 0.014
        assert abs(counts["late"] / counts["telling"] - 0.35 * (1 - toy.EARLY)) < 0.023
        assert abs(counts["unboxed"] / 4000 - 0.2) < 0.019

    def test_without_sloppiness_they_are_right(self) -> None:
        rng = random.Random(0)
        for problem in toy.problems((2, 4), "train", 100):
            assert (
                toy.solution(rng, problem, 0, 0)
                == f" {' '.join(problem.steps)} {STOP_PHRASE} \\boxed{{{problem.gold}}}"
            )

    def test_both_formats_of_the_choice_skill_are_shown(self) -> None:
        kinds = Counter(
            "sum" if shown.prompt.startswith("User:") else "letters" if shown.answer[1:] in toy.LETTERS else "cloze"
            for shown in demonstrations(4000)
        )
        assert abs(kinds["sum"] / 4000 - (1 - toy.CHOICE_SHARE)) < 0.02
        assert min(kinds["letters"], kinds["cloze"]) > 100


class TestWordTokenizer:
    def test_every_toy_text_is_known_and_comes_back(self, words: Any) -> None:
        """Also with shapes that a demonstration never has: long problems, any number behind any sign."""
        texts = [text for shown in demonstrations(3000) for text in (shown.prompt, shown.answer)]
        texts += [
            render(TEMPLATE, problem.question)
            for steps in ((2, 4), (5, 6))
            for problem in toy.problems(steps, "test", 1000)
        ]
        for choice in toy.choices("test", 1000):
            texts += [
                choice_prompt(choice.question, choice.choices),
                cloze_prompt(choice.question),
                f" {choice.choices[choice.answer]}",
            ]
        texts += [f"{PREFILL_AFTER_CUT}{number}}}" for number in toy.NUMBERS] + [f" {letter}" for letter in toy.LETTERS]
        for text, ids in zip(texts, words(texts)["input_ids"], strict=True):
            assert words.unk_token_id not in ids, text
            assert decode(words, ids) == text

    def test_no_token_is_idle(self, words: Any) -> None:
        used = {piece for shown in demonstrations(20000) for piece in toy.pieces(shown.prompt + shown.answer)}
        assert set(toy.vocabulary(TEMPLATE)) - used == set()

    @pytest.mark.parametrize("template", [PROMPT, "{question}", "Q:{question}\nA:"])
    def test_other_prompts_are_known_too(self, template: str) -> None:
        tokenizer = word_tokenizer(toy.vocabulary(template))
        for problem in toy.problems((2, 4), "test", 300):
            text = render(template, problem.question)
            assert decode(tokenizer, tokenizer(text)["input_ids"]) == text

    def test_worked_solutions_are_short(self, words: Any) -> None:
        rng = random.Random(0)
        lengths = [
            len(words(toy.solution(rng, problem, 0, 0).split(" \\boxed")[0])["input_ids"])
            for problem in toy.problems((2, 4), "train", 300)
        ]
        assert max(lengths) < 40

    @settings(deadline=None)
    @given(text=st.text(alphabet="ab 3{}\\+=.\n"))
    def test_pieces_lose_nothing(self, text: str) -> None:
        assert "".join(toy.pieces(text)) == text


@pytest.fixture(scope="module")
def bpe() -> Any:
    return bpe_tokenizer([shown.prompt + shown.answer for shown in demonstrations(500)], 400)


class TestBpeTokenizer:
    @settings(deadline=None)
    @given(text=st.text())
    def test_any_text_comes_back(self, bpe: Any, text: str) -> None:
        if not any(token in text for token in bpe.all_special_tokens):
            assert decode(bpe, bpe(text)["input_ids"]) == text

    def test_it_has_the_size_asked_for_and_shortens_its_text(self, bpe: Any) -> None:
        assert len(bpe) == 400
        text = toy.problems((2, 4), "train", 1)[0].question
        assert len(bpe(text)["input_ids"]) < len(text) / 2


SMALL = ToySettings(width=32, layers=2, heads=2, mlp_width=64, steps=60, batch=8, learning_rate=1e-2)


def test_batches_weigh_the_answer_and_its_end_and_nothing_behind(words: Any) -> None:
    shown = [toy.Demonstration("Question:", " 3 + 4 = 7.", 5.0), toy.Demonstration("Question: Which is", " 12")]
    ids, prompt, answer = next(batches(words, cycle(shown), 2))
    for row, in_prompt, weights in zip(ids, prompt.bool(), answer, strict=True):
        one = shown[0] if 5.0 in weights else shown[1]
        assert decode(words, row[in_prompt].tolist()) == one.prompt
        assert decode(words, row[weights > 0].tolist()) == one.answer + words.eos_token
        assert set(weights.tolist()) <= {0.0, one.weight}
        assert (row[~in_prompt & (weights == 0)] == words.pad_token_id).all()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("toy")
    before = torch.get_num_threads()
    facts = make(SMALL.model_copy(update={"threads": before + 1}), out, None, TEMPLATE)
    assert torch.get_num_threads() == before, "its threads are its own"
    return out, facts


class TestMake:
    def test_the_folder_loads_like_any_other(self, made: tuple[Path, dict[str, Any]], words: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

        out, facts = made
        model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
        assert isinstance(model, LlamaForCausalLM)
        assert model.num_parameters() == facts["parameters"]
        assert model.get_input_embeddings().weight is model.lm_head.weight
        assert len(tokenizer) == facts["vocabulary"] == len(words) == model.config.vocab_size
        assert (tokenizer.bos_token_id, tokenizer.unk_token) == (None, words.unk_token)
        assert tokenizer.eos_token_id == model.generation_config.eos_token_id == model.config.eos_token_id
        assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
        for shown in demonstrations(50):
            ids = tokenizer(shown.prompt + shown.answer)["input_ids"]
            assert ids == words(shown.prompt)["input_ids"] + words(shown.answer)["input_ids"]
            assert decode(tokenizer, ids) == shown.prompt + shown.answer

    def test_it_learns(self, made: tuple[Path, dict[str, Any]]) -> None:
        """60 small steps find the shape of a solution: far below the 5.3 nats of a uniform guess."""
        assert made[1]["final_loss"] < 3.5

    def test_the_same_settings_give_the_same_weights_and_touch_no_global_state(
        self, made: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        torch.manual_seed(123)
        before = torch.get_rng_state()
        make(SMALL.model_copy(update={"threads": torch.get_num_threads() + 1}), tmp_path / "again", None, TEMPLATE)
        make(SMALL.model_copy(update={"seed": 1}), tmp_path / "other", None, TEMPLATE)
        assert torch.equal(torch.get_rng_state(), before)
        weights = [
            (folder / "model.safetensors").read_bytes() for folder in (made[0], tmp_path / "again", tmp_path / "other")
        ]
        assert weights[0] == weights[1] != weights[2]

    def test_untied(self, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        make(SMALL.model_copy(update={"tied": False, "steps": 2}), tmp_path, None, TEMPLATE)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert not torch.equal(model.model.embed_tokens.weight, model.lm_head.weight)

    def test_real_text_with_a_bpe_tokenizer(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        text = [
            ("Weng earns $12 an hour – “how much” in 50 minutes?", "10"),
            ("What is \\frac{1}{2} + 中?", "\\frac{3}{2}"),
        ]
        facts = make(
            SMALL.model_copy(update={"tokenizer": "bpe", "vocabulary": 300, "steps": 5}), tmp_path, text, PROMPT
        )
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert len(tokenizer) == facts["vocabulary"] == 300
        for question, _ in text:
            prompt = render(PROMPT, question)
            assert decode(tokenizer, tokenizer(prompt)["input_ids"]) == prompt
