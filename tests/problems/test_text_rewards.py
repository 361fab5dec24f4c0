"""Rewards of words and letters, and what a data set of words gets under the reward of mathematics."""

from __future__ import annotations

import pytest

from softtok.problems.reward import Grading, Judge
from softtok.problems.text_rewards import is_words, letter


def statuses(reward: str, pairs: list[tuple[str, str]]) -> list[str]:
    with Judge(grading=Grading.model_validate({"reward": reward})) as judge:
        verdicts = judge.grade([(f" \\boxed{{{answer}}}.", [gold]) for answer, gold in pairs])
        assert judge._workers.pool is None or reward == "math", "words and letters need no worker"
    for verdict in verdicts:
        assert verdict.reward == (100 if verdict.status == "correct" else 10 if verdict.boxed else 0)
        assert verdict.correct == (verdict.status == "correct")
    return [verdict.status for verdict in verdicts]


def test_words_turned_round_are_wrong_under_exact_and_right_under_math() -> None:
    pairs = [("on", "no"), ("Sirap", "Paris")]
    assert statuses("math", pairs) == ["correct", "correct"]
    assert statuses("exact", pairs) == ["wrong", "wrong"]


@pytest.mark.parametrize(
    ("answer", "gold", "status"),
    [
        ("PARIS", "Paris", "correct"),
        ("  New \n York", "New York", "correct"),
        ("NewYork", "New York", "wrong"),
        ("Paris.", "Paris", "wrong"),
        ("Cafe\u0301", "Café", "correct"),
        ("STRASSE", "Straße", "correct"),
        ("\u01f0", "J\u030c", "correct"),  # casefolding takes it apart
        ("Cafe", "Café", "wrong"),
        (r"\text{Paris}", "Paris", "correct"),
        (r"\text{Pa}ris", "Paris", "correct"),
        ("1/2", "0.5", "wrong"),
        ("", "Paris", "unboxed"),
    ],
)
def test_exact(answer: str, gold: str, status: str) -> None:
    assert statuses("exact", [(answer, gold)]) == [status]


@pytest.mark.parametrize(
    "text",
    ["B", "b", "(B)", "[B]", "B.", "B)", "B:", "B) because it is", "B. Paris", "(B) Paris", r"\text{B}", r"\text{(B)}",
     "**B**", "$B$", " B "],
)  # fmt: skip
def test_a_letter_is_found(text: str) -> None:
    assert letter(text) == "B"


@pytest.mark.parametrize(
    "text",
    ["", "A dog", "I think B", "B or C", "B, C", "BC", "B1", "B/C", "B)C", "B.5", "Paris", "5", "B then C", "()"],
)
def test_what_is_not_certainly_a_letter_is_none(text: str) -> None:
    assert letter(text) is None


def test_choice() -> None:
    pairs = [("B", "(b)"), ("C)", "B"), ("A dog", "A"), ("", "A")]
    assert statuses("choice", pairs) == ["correct", "wrong", "unparsed", "unboxed"]
    with Judge(grading=Grading(reward="choice")) as judge:
        assert judge.check_golds(["A", "(b)", "Paris"]) == ["ok", "ok", "unparsed"]


@pytest.mark.parametrize("gold", ["no", "Paris", "New York", "Jean-Luc", "don't know.", "I"])
def test_words(gold: str) -> None:
    assert is_words(gold)


@pytest.mark.parametrize("gold", ["x", "5", "2x", r"\pi", "x + y", "(1, 2)", r"\text{no}", "3 apples", "", "a+b", "A"])
def test_mathematics_is_no_words(gold: str) -> None:
    assert not is_words(gold)
