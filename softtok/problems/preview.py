"""Shows a data set before anything is trained on it: prompts with their golds, and what the reward says of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from softtok.plugins import Reference
from softtok.problems.golds import forms
from softtok.problems.math_reward import plain_number
from softtok.problems.prepare import HeldOut, make_problems, refuse_too_few
from softtok.problems.prompt import choice_prompt, cloze_prompt
from softtok.problems.prompting import Asking, Shot, shots_of
from softtok.problems.reward import Answer, Grading, Judge
from softtok.problems.rows import Row
from softtok.problems.sources import describe
from softtok.problems.spec import DataSpec
from softtok.problems.text_rewards import is_words, letter

SHOWN = 3


Writer = Callable[[Asking, str], tuple[str, list[int]]]
"""Writes a prompt as a model's jobs do: its text and its ids."""


@dataclass(frozen=True)
class Shown:
    """What a preview shows prompts with: how they are asked, and what writes them if a tokenizer is at hand."""

    asking: Asking
    writer: Writer | None = None
    model: str | None = None  # whose tokenizer was looked for

    def note(self) -> Iterator[str]:
        """Yields a line if the ids of prompts cannot be shown, although they are wanted."""
        if self.model is not None and self.writer is None:
            lack = "prompts are the messages of a chat" if self.asking.chat else "prompts have no ids"
            yield f"the tokenizer of model {self.model} is not on this machine yet: {lack}"

    def __call__(self, question: str) -> Iterator[str]:
        """Yields the lines of a prompt: its text, and its ids if they are known."""
        if self.writer is not None:
            text, ids = self.writer(self.asking, question)
            yield from (text, f"{len(ids):,} ids: {ids}")
        elif self.asking.chat:
            yield from (f"{message['role']}: {message['content']}" for message in self.asking.messages(question))
        else:
            yield self.asking.text(question)


def examples(shots: DataSpec, data_root: Path | None) -> tuple[Shot, ...]:
    """Returns the examples that prompts take from a train set; nothing has to be prepared."""
    tested = {name: questions_of(other, data_root) for name, other in shots.exclude.items()}
    made, _ = make_problems(shots, HeldOut.of(tested), data_root)
    refuse_too_few(shots, made)
    return shots_of(made.problems)


def questions_of(spec: DataSpec, data_root: Path | None) -> list[Row]:
    """Returns the problems of a test set, for their questions: golds, which take time, are not judged."""
    return make_problems(spec.model_copy(update={"judged_by": "exact"}), HeldOut(), data_root)[0].problems


def preview(spec: DataSpec, grading: Grading | None, shown: Shown, data_root: Path | None) -> Iterator[str]:
    """Yields lines: the prompts of the first problems with their golds, and the verdicts of `variants` of the golds.

    A `choice` set has no grading. Questions of excluded test sets are not left out, as these may not be prepared yet.
    """
    made, _ = make_problems(spec.model_copy(update={"limit": SHOWN, "exclude": {}}), HeldOut(), data_root)
    yield f"{spec.kind} set from {describe(spec.source)}, {made.source_rows:,} rows"
    yield "up to the last problem below: " + made.summary().partition(", ")[2]
    if grading is None:
        for problem in made.problems:
            yield from _choice(problem)
        return
    yield f"reward: {grading.reward}"
    yield from shown.note()
    with Judge(grading=grading) as judge:
        for problem in made.problems:
            yield from _open(problem, grading, shown, judge)


def _choice(problem: Row) -> Iterator[str]:
    place, text = problem["answer"], problem["choices"][problem["answer"]]
    yield from ("", f"--- {problem['id']}", choice_prompt(problem["question"], problem["choices"]))
    yield f"right: {ascii_uppercase[place]}, {text!r} (with choice_format: cloze, after {cloze_prompt('...')!r})"


def _open(problem: Row, grading: Grading, shown: Shown, judge: Judge) -> Iterator[str]:
    lines = list(shown(problem["question"]))
    prompt = lines[0]
    yield from ("", f"--- {problem['id']}", *lines, "gold: " + ", or ".join(map(repr, problem["gold"])))
    answers = list(dict.fromkeys(variant for gold in problem["gold"] for variant in variants(gold)))
    columns = problem.get("columns", "{}")
    texts = [grading.answer_format.written(answer) for answer in answers]
    verdicts = judge.grade([Answer(text, problem["gold"], prompt, columns) for text in texts])
    for answer, verdict in zip(answers, verdicts, strict=True):
        worth = f"{verdict.reward:<6g} " if isinstance(grading.reward, Reference) else ""
        yield f"  {verdict.status:<9} {worth}{answer!r}"


def variants(gold: str) -> list[str]:
    """Returns what models write where this gold is right, the gold first, and for a number one that is wrong."""
    found = [gold, *(form.plain for form in forms(gold) if form.plain is not None)]
    bare = found[-1]
    found += [f"{bare}.", f"**{bare}**"]
    number = plain_number(bare)
    if letter(gold):
        found += [f"({gold})", f"{gold}. because", gold.lower()]
    elif is_words(gold):
        found += [gold.upper(), gold.lower(), rf"\text{{{gold}}}", gold[::-1]]
    else:
        found += [f"${bare}$", f"x = {bare}"]
    if number is not None:
        found += [f"{number:,f}", f"{bare} dollars"] + ([f"{bare}.0"] if number == number.to_integral_value() else [])
        found.append(f"{number + 1:f}")
    return list(dict.fromkeys(found))
