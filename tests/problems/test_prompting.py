"""How questions are asked: whose key counts, what a prompt reads, and examples that show what the reward reads."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from softtok.errors import UserError
from softtok.problems.answer_format import PAPER_FORMAT, AnswerFormat
from softtok.problems.prompt import PROMPT, TURN
from softtok.problems.prompting import (
    Asking,
    Prompting,
    Shot,
    asking,
    of_model,
    read_shots,
    refuse_tested,
    without_shots,
)
from tests.support.data_files import prepared, write
from tests.support.specs import data_spec

TWO = Shot(question="What is 1 + 1?", worked="1 + 1 = 2.", answer="2")
SIX = Shot(question="What is 2 * 3?", answer="6")
KEYS: dict[str, tuple[Any, Any]] = {
    "prompt": ("Q: {question}", "Problem: {question}"),
    "shots": ([TWO], [SIX]),
    "system": ("Be brief.", "Be exact."),
    "chat_template": (True, False),
}


# Who wins


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_the_data_sets_else_the_models(key: str) -> None:
    of_set, of_other = KEYS[key]
    for mine, theirs in itertools.product((of_set, None), (of_other, None)):
        found = Prompting(**{key: mine}).over(Prompting(**{key: theirs}))
        assert getattr(found, key) == (theirs if mine is None else mine)
        assert all(getattr(found, other) is None for other in KEYS if other != key)


def test_one_key_of_a_data_set_leaves_the_models_others() -> None:
    model = Prompting(**{key: theirs for key, (_, theirs) in KEYS.items()})
    found = Prompting(system="Be brief.").over(model)
    assert found == model.model_copy(update={"system": "Be brief."})


def test_no_examples_is_a_choice_too() -> None:
    assert Prompting(shots=[]).over(Prompting(shots=[TWO])).shots == []


def test_a_false_chat_template_goes_before_the_models() -> None:
    assert not asking(Prompting(chat_template=False), Prompting(chat_template=True), PAPER_FORMAT).chat


@pytest.mark.parametrize(
    ("given", "template"),
    [
        (Prompting(), PROMPT),
        (Prompting(shots=[TWO]), TURN),
        (Prompting(system="Be brief."), TURN),
        (Prompting(chat_template=True), "{question}"),
        (Prompting(chat_template=True, shots=[TWO], system="Be brief."), "{question}"),
        (Prompting(chat_template=False, shots=[]), PROMPT),
    ],
)
def test_the_default_template_has_no_second_instruction(given: Prompting, template: str) -> None:
    assert asking(given, Prompting(), PAPER_FORMAT).template == template
    assert asking(None, given, PAPER_FORMAT).template == template
    assert asking(given.model_copy(update={"prompt": "Q: {question}"}), Prompting(), PAPER_FORMAT).template == (
        "Q: {question}"
    )


def test_the_papers_prompt_ends_with_its_turn_and_is_a_models_default() -> None:
    assert PROMPT.endswith(f"' {TURN}")
    assert of_model(PROMPT, None) == Prompting()
    assert of_model("Q: {question}", Prompting(system="x")) == Prompting(prompt="Q: {question}", system="x")


# What a prompt reads


def test_nothing_new_gives_the_template_alone() -> None:
    asked = asking(None, of_model("Q: {question}\n", None), PAPER_FORMAT)
    assert asked.text("Why?") == "Q: Why?\n"
    assert asked.mark("Q: {question}\n") == {}


def test_a_prompt_without_chat_reads_instruction_examples_question() -> None:
    asked = Asking("Q: {question}\nA:", "Think.", (TWO, SIX))
    assert asked.text("Why?") == (
        "Think.\n\n"
        "Q: What is 1 + 1?\nA: 1 + 1 = 2. The final answer is: \\boxed{2}.\n\n"
        "Q: What is 2 * 3?\nA: The final answer is: \\boxed{6}.\n\n"
        "Q: Why?\nA:"
    )


def test_no_second_space_behind_a_template_that_ends_in_white_space() -> None:
    assert "\nA:\n1 + 1 = 2. The" in Asking("Q: {question}\nA:\n", shots=(TWO,)).text("Why?")


def test_examples_of_a_chat_are_turns() -> None:
    asked = Asking("Q: {question}", "Think.", (TWO,), chat=True)
    assert asked.messages("Why?") == [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "Q: What is 1 + 1?"},
        {"role": "assistant", "content": "1 + 1 = 2. The final answer is: \\boxed{2}."},
        {"role": "user", "content": "Q: Why?"},
    ]
    assert [message["role"] for message in Asking(chat=True).messages("Why?")] == ["user"]


FORMATS = [
    PAPER_FORMAT,
    AnswerFormat(stop_phrase="So:", extract="first_line"),
    AnswerFormat(extract="last_line", prefill=" -> "),
    AnswerFormat(extract="all"),
]


@pytest.mark.parametrize("answers", FORMATS, ids=lambda answers: answers.extract)
def test_the_reward_reads_an_example_as_it_reads_a_model(answers: AnswerFormat) -> None:
    """What stands behind the phrase is what a model writes after the prefill, and its answer is the example's."""
    asked = asking(Prompting(shots=[TWO]), Prompting(), answers)
    solution = asked.solution(TWO)
    worked, phrase, rest = solution.partition(answers.stop_phrase)
    assert worked == "1 + 1 = 2. " and phrase
    assert rest.startswith(answers.prefill) and answers.answer(rest) == "2"
    assert solution in asked.text("Why?") and solution == asked.messages("Why?")[1]["content"]


@pytest.mark.parametrize("answer", ["3}", "}{", "\\frac{1}{2", "3\n4"])
def test_an_example_whose_answer_cannot_be_read_is_refused(answer: str) -> None:
    shot = TWO.model_copy(update={"answer": answer})
    answers = AnswerFormat(extract="first_line") if "\n" in answer else PAPER_FORMAT
    with pytest.raises(
        UserError, match=r"^shots: the example 'What is 1 \+ 1\?': the answer .* could not be read back"
    ):
        asking(Prompting(shots=[shot]), Prompting(), answers)


def test_worked_text_with_the_stop_phrase_is_refused() -> None:
    shot = TWO.model_copy(update={"worked": r"1 + 1. The final answer is: \boxed{2}."})
    with pytest.raises(UserError, match=r"holds the stop phrase 'The final answer is:', .*take it out"):
        asking(Prompting(shots=[shot]), Prompting(), PAPER_FORMAT)
    asking(Prompting(shots=[shot]), Prompting(), AnswerFormat(stop_phrase="So:"))


def test_results_with_other_prompts_have_another_mark() -> None:
    given = [
        Asking("Q: {question}"),
        Asking(shots=(TWO,)),
        Asking(shots=(SIX,)),
        Asking(shots=(TWO, SIX)),
        Asking(shots=(SIX, TWO)),
        Asking(system="Think."),
        Asking(chat=True),
        Asking(shots=(TWO,), chat=True),
    ]
    marks = [asked.mark(PROMPT)["asked"] for asked in given]
    assert len(set(marks)) == len(given)
    assert given[0].mark("Q: {question}") == {}


# Examples and problems apart


def test_an_example_that_is_tested_is_refused_however_it_is_written() -> None:
    refuse_tested([TWO], ["What is 1 + 2?"], "test set x")
    with pytest.raises(UserError, match=r"'What is 1 \+ 1\?' is a question of test set x; .*exclude"):
        refuse_tested([SIX, TWO], ["Why?", "what  is 1+1?"], "test set x")


def test_problems_that_are_examples_are_left_out() -> None:
    assert without_shots([TWO], ["Why?", "What is 1+1?", "What is 1 + 1?", "Who?"]) == [0, 3]
    assert without_shots([], ["Why?"]) == [0]


# From a train set


def test_the_first_problems_with_worked_text_are_the_examples(tmp_path: Path) -> None:
    rows = [
        {"q": "How many eggs?", "a": "2 + 2 = <<2+2=4>>4 eggs.\nThat is #### no end.\n#### 4"},
        {"q": "How many hens?", "a": "#### 5"},
        {"q": "How many cows?", "a": "3 - 2 = <<3-2=1>>1.\n#### 1"},
        {"q": "How many cats?", "a": "7 cats.\n#### 7"},
    ]
    path = write(tmp_path / "x.jsonl", rows)
    gold = {"field": "a", "after": "####"}
    worked = {"field": "a", "before": "####", "remove": "<<[^<>]*>>"}
    found, manifest = prepared(
        "train",
        {"file": {"path": str(path)}},
        tmp_path / "out.parquet",
        limit=2,
        question="q",
        gold=gold,
        worked=worked,
    )
    assert [row["worked"] for row in found] == ["2 + 2 = 4 eggs.\nThat is #### no end.", "3 - 2 = 1."]
    assert [line["reason"] for line in manifest["dropped"]] == ["no worked text"]
    assert read_shots(tmp_path / "out.parquet") == (
        Shot(question="How many eggs?", worked="2 + 2 = 4 eggs.\nThat is #### no end.", answer="4"),
        Shot(question="How many cows?", worked="3 - 2 = 1.", answer="1"),
    )
    with pytest.raises(UserError, match="shots: k: 9: only 3 problems have worked text"):
        prepared(
            "train",
            {"file": {"path": str(path)}},
            tmp_path / "more.parquet",
            limit=9,
            question="q",
            gold=gold,
            worked=worked,
        )


def test_a_set_of_examples_needs_its_file() -> None:
    shots = data_spec("train", {"toy": {"task": "sums", "problems": 3}})
    with pytest.raises(UserError, match="--shots: "):
        asking(Prompting(shots=shots), Prompting(), PAPER_FORMAT)
