r"""The built-in default task: word problems of a few arithmetic steps, a multiple-choice skill, and demonstrations.

A seeded generator draws everything from the small tables below. So no network is needed, and every word is known
beforehand (`vocabulary`). Train and test are disjoint by construction: the hash of a question's text decides its side.
`models/toy_model.py` trains the base model on `demonstrations`, which come only from the train side. They are sloppy on
purpose: some give an intermediate result, some leave the box out. So a base model that imitates them can solve
problems, but often does not, and reinforcement learning has something to improve.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from softtok.errors import UserError
from softtok.problems.prompt import BOX, PREFILL_AFTER_CUT, STOP_PHRASE, choice_prompt, cloze_prompt, render

Split = Literal["train", "test"]
TEST_SHARE = 0.2
DRY = 5_000
"""After this many draws in a row without a new question, the search ends."""
LARGEST = 20
"""All results lie in 0..LARGEST. Every number is one token, so its sums are facts to be learned one by one."""
LARGEST_START, LARGEST_ADDEND, LARGEST_FACTOR = 12, 9, 5
SHOWN_STEPS = {2: 3.0, 3: 3.0, 4: 3.0, 5: 0.5, 6: 0.5}
"""Weights of problem lengths among the demonstrations; a few are long, so that long ones are hard but not unknown."""
CHOICE_SHARE, CLOZE_SHARE = 0.2, 0.3
"""The share of the choice skill among all demonstrations, and the share of its cloze format among those."""
EARLY = 0.25
"""The share of wrong demonstrations whose work stops early."""
CHOICE_WEIGHT = 5.0
"""The weight of a choice demonstration's answer in the loss; it is one token, while a solution has twenty."""
PIECE = re.compile(r" ?\\boxed\{|\n[A-Z]\.|[ \n]?[A-Za-z]+:?| ?[0-9]+| ?[^\sA-Za-z0-9]|\s")
"""A token of the word-level tokenizer: a word with its colon, a number or a sign, each with the space before it; the
opening of a box; the letter of an option on a new line."""

TABLES: dict[str, list[str]] = {
    "name": "Ada Ben Cleo Dan Eva Finn Gus Hana Ivan Jun Kira Leo Maya Noor Omar Pia".split(),
    "friend": "Quinn Rosa Sam Tara Uma Vera Will Yara Zoe Abe Bea Carl Dora Eli Fay Gina".split(),
    "things": "apples books cards coins eggs keys lemons pens pears rings shells stamps stones tickets toys".split(),
    "box": "bags boxes packs trays".split(),
}
NUMBERS = [str(n) for n in range(LARGEST + 1)]
FIELDS = TABLES | {field: NUMBERS for field in ("a", "b")}


@dataclass(frozen=True)
class Part:
    """A sentence of a problem and its steps as (left, operator, right).

    v is the value so far, a and b are the sentence's numbers, and w is the result of the step before. The last result
    is the new value.
    """

    text: str
    steps: tuple[tuple[str, str, str], ...]


# An opening without a step starts from its number a.
OPENINGS = [
    Part("{name} has {a} {things}.", ()),
    Part("{name} finds {a} {things} in a box.", ()),
    Part("{name} has {a} {box} of {b} {things}.", (("a", "*", "b"),)),
    Part("{name} has {a} red and {b} blue {things}.", (("a", "+", "b"),)),
    Part("Of {a} {things} {name} sells {b}.", (("a", "-", "b"),)),
]
ACTIONS = [
    Part("{name} finds {b} more.", (("v", "+", "b"),)),
    Part("{friend} brings {b}.", (("v", "+", "b"),)),
    Part("{name} buys {b}.", (("v", "+", "b"),)),
    Part("{name} loses {b}.", (("v", "-", "b"),)),
    Part("{friend} takes {b}.", (("v", "-", "b"),)),
    Part("Then {b} break.", (("v", "-", "b"),)),
    Part("The number doubles.", (("v", "*", "2"),)),
    Part("{friend} takes half.", (("v", "/", "2"),)),
    Part("{name} buys {a} {box} of {b}.", (("a", "*", "b"), ("v", "+", "w"))),
    Part("{friend} has {b} more and they share.", (("v", "+", "b"), ("v", "+", "w"))),
]
ENDINGS = ["How many {things} now?", "How many {things} in the end?", "What is the number of {things}?"]


@dataclass(frozen=True)
class Problem:
    """A word problem with its worked solution."""

    question: str
    steps: tuple[str, ...]  # worked, such as "3 + 4 = 7."
    results: tuple[int, ...]  # of each step; the last is the answer

    @property
    def gold(self) -> str:
        """The right answer."""
        return str(self.results[-1])


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question; `answer` is the index of the right choice."""

    question: str
    choices: tuple[str, ...]
    answer: int


LETTERS = "ABC"
OPTIONS = len(LETTERS)
CHOICE_QUESTION = "Which is the largest of {}, {} and {}?"


def side(text: str) -> Split:
    """Returns the split of a question, whichever generator draws it: a fixed TEST_SHARE of all texts is test."""
    return "test" if int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) < TEST_SHARE * 2**32 else "train"


def _numbers(rng: random.Random, part: Part, value: int) -> dict[str, int]:
    """Draws the numbers a and b of a sentence; it takes away less than there is, if there is more than one."""
    operators = {operator for _, operator, _ in part.steps}
    if "*" in operators:
        return {"a": rng.randint(2, LARGEST_FACTOR), "b": rng.randint(2, LARGEST_FACTOR)}
    start = rng.randint(2, LARGEST_START)
    there = start if part in OPENINGS else value
    most = max(1, min(LARGEST_ADDEND, there - 1)) if "-" in operators else LARGEST_ADDEND
    return {"a": start, "b": rng.randint(min(2, most), most)}


def _work(part: Part, numbers: dict[str, int], value: int) -> list[tuple[str, int]] | None:
    """Returns the sentence's steps as (text, result), or None if a result is not a whole number in 0..LARGEST."""
    known = numbers | {"v": value}
    worked = []
    for left, operator, right in part.steps:
        x, y = (known[term] if term in known else int(term) for term in (left, right))
        if operator == "/" and x % y:
            return None
        known["w"] = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[operator]
        if not 0 <= known["w"] <= LARGEST:
            return None
        worked.append((f"{x} {operator} {y} = {known['w']}.", known["w"]))
    return worked


def draw_problem(rng: random.Random, steps: int) -> Problem:
    """Draws a problem of exactly `steps` steps."""
    words = {field: rng.choice(values) for field, values in TABLES.items()}
    sentences: list[str] = []
    worked: list[tuple[str, int]] = []
    value = 0
    while not sentences or len(worked) < steps:
        part = rng.choice(ACTIONS if sentences else OPENINGS)
        numbers = _numbers(rng, part, value)
        more = _work(part, numbers, value)
        if more is None or len(worked) + len(more) > steps:
            continue
        worked += more
        value = more[-1][1] if more else numbers["a"]
        words |= {field: rng.choice(TABLES[field]) for field in ("friend", "box")}
        sentences.append(part.text.format(**words, **numbers))
    sentences.append(rng.choice(ENDINGS).format(**words))
    return Problem(" ".join(sentences), tuple(text for text, _ in worked), tuple(result for _, result in worked))


def draw_choice(rng: random.Random) -> Choice:
    """Draws a question that asks for the largest of some numbers.

    The question names them, so it can be asked without options.
    """
    numbers = rng.sample(range(LARGEST + 1), OPTIONS)
    answer = numbers.index(max(numbers))
    return Choice(CHOICE_QUESTION.format(*numbers), tuple(map(str, numbers)), answer)


def _generator(*key: Any) -> random.Random:
    return random.Random("softtok toy " + " ".join(map(str, key)))


Q = TypeVar("Q", Problem, Choice)


def _different(draw: Callable[[], Q], split: Split, count: int) -> list[Q]:
    """Returns the first `count` different questions of `split` that `draw` gives.

    Raises UserError if there are fewer.
    """
    found: dict[str, Q] = {}
    fruitless = 0
    while len(found) < count:
        drawn, before = draw(), len(found)
        if side(drawn.question) == split:
            found.setdefault(drawn.question, drawn)
        fruitless = fruitless + 1 if len(found) == before else 0
        if fruitless == DRY:
            raise UserError(f"toy data set: {count} {split} problems are asked for, and there are about {before}")
    return list(found.values())


def problems(steps: Sequence[int], split: Split, count: int, seed: int = 0) -> list[Problem]:
    """Returns `count` different problems of `split` with steps[0] to steps[1] steps.

    A larger count begins with the same problems. Raises UserError if there are fewer.
    """
    fewest, most = steps
    rng = _generator("problems", fewest, most, split, seed)
    return _different(lambda: draw_problem(rng, rng.randint(fewest, most)), split, count)


def choices(split: Split, count: int, seed: int = 0) -> list[Choice]:
    """Returns `count` different multiple-choice questions of `split`.

    A larger count begins with the same questions. Raises UserError if there are fewer.
    """
    rng = _generator("choices", split, seed)
    return _different(lambda: draw_choice(rng), split, count)


def solution(rng: random.Random, problem: Problem, wrong: float, unboxed: float) -> str:
    """Writes a worked solution; with the given probabilities it is wrong, and leaves out the box.

    A wrong solution stops its work early with probability `EARLY`. Otherwise it works everything out and then gives the
    result before the last one. So there is something to learn in the chain of thought, and something in the answer.
    """
    shown = len(problem.steps)
    answer = problem.results[-1]
    if rng.random() < wrong:
        early = rng.random() < EARLY
        shown = rng.randint(1, max(1, shown - 1)) if early else shown
        answer = problem.results[shown - 1] if early else problem.results[max(0, shown - 2)]
    last = f"The answer is {answer}." if rng.random() < unboxed else f"{STOP_PHRASE}{BOX}{answer}}}"
    return " " + " ".join([*problem.steps[:shown], last])


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the answer to imitate."""

    prompt: str
    answer: str
    weight: float = 1.0  # of an answer token in the loss


def demonstrations(template: str, wrong: float, unboxed: float, seed: int) -> Iterator[Demonstration]:
    """Yields demonstrations of the train side without end: solved problems, and the choice skill in both formats."""
    rng = _generator("demonstrations", seed)
    lengths, weights = list(SHOWN_STEPS), list(SHOWN_STEPS.values())
    while True:
        length = rng.choices(lengths, weights)[0]
        drawn: Problem | Choice = draw_choice(rng) if rng.random() < CHOICE_SHARE else draw_problem(rng, length)
        if side(drawn.question) == "test":
            continue
        if isinstance(drawn, Problem):
            yield Demonstration(render(template, drawn.question), solution(rng, drawn, wrong, unboxed))
        elif rng.random() < CLOZE_SHARE:
            yield Demonstration(cloze_prompt(drawn.question), f" {drawn.choices[drawn.answer]}", CHOICE_WEIGHT)
        else:
            yield Demonstration(
                choice_prompt(drawn.question, drawn.choices), f" {LETTERS[drawn.answer]}", CHOICE_WEIGHT
            )


def pieces(text: str) -> list[str]:
    """Splits text into word-level tokens."""
    return PIECE.findall(text)


def vocabulary(template: str) -> list[str]:
    """Returns all pieces that toy texts are made of, sorted.

    They are found by filling every sentence with every value of each of its fields.
    """
    found: set[str] = set()
    defaults = {field: values[0] for field, values in FIELDS.items()}
    for sentence in [part.text for part in OPENINGS + ACTIONS] + ENDINGS:
        for field, values in FIELDS.items():
            for value in values if f"{{{field}}}" in sentence else values[:1]:
                filled = sentence.format(**(defaults | {field: value}))
                found.update(pieces(render(template, filled)))
                found.update(pieces(f". {filled}"))
    for n in NUMBERS:
        found.update(pieces(f" {n} + {n} - {n} * {n} / {n} = {n}. The answer is {n}.{PREFILL_AFTER_CUT}{n}}}"))
        question = CHOICE_QUESTION.format(*[n] * OPTIONS)
        found.update(pieces(cloze_prompt(question)) + pieces(choice_prompt(question, [n] * OPTIONS)))
    found.update(" " + letter for letter in LETTERS)
    return sorted(found)
