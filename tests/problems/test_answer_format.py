"""Answer formats: which part of a text is the answer, and that it ends as soon as it is complete."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from softtok.problems.answer_format import AnswerFormat, Extract
from softtok.problems.prompt import PREFILL_AFTER_CUT, PREFILL_AFTER_STOP, STOP_PHRASE, AnswerRule, StopRule


def test_the_default_is_the_papers() -> None:
    paper = AnswerFormat()
    assert paper.stop_phrase == STOP_PHRASE == "The final answer is:"
    assert paper.prefill_after_stop == PREFILL_AFTER_STOP == " \\boxed{"
    assert paper.prefill_after_cut == PREFILL_AFTER_CUT == " The final answer is: \\boxed{"
    assert paper == AnswerFormat(extract="boxed")


@pytest.mark.parametrize(
    ("extract", "text", "answer"),
    [
        ("boxed", " \\boxed{\\boxed{18}.", "18"),
        ("boxed", " \\boxed{18", ""),
        ("first_line", "\nParis\nis it.", "Paris"),
        ("first_line", "\n\n  Paris \nis it.", "Paris"),
        ("first_line", " The final answer is:\nParis", "Paris"),
        ("first_line", "The final answer is:\nParis", "Paris"),
        ("last_line", "\nWell.\n Paris\n\n", "Paris"),
        ("all", "\nWell.\n Paris\n", "Well.\n Paris"),
        ("all", "\n \n", ""),
        ("first_line", "\n", ""),
        ("last_line", " The final answer is:\n", ""),
    ],
)
def test_what_is_the_answer(extract: Extract, text: str, answer: str) -> None:
    assert AnswerFormat(extract=extract).answer(text) == answer


@pytest.mark.parametrize("extract", ["boxed", "first_line", "last_line", "all"])
def test_an_answer_that_is_written_is_found(extract: Extract) -> None:
    found = AnswerFormat(extract=extract, stop_phrase="So:")
    assert found.answer(found.written("Paris")) == found.answer(f" So:{found.written('Paris')}") == "Paris"
    custom = AnswerFormat(extract=extract, prefill="\nAnswer: \\boxed{" if extract == "boxed" else "\nAnswer:")
    assert custom.answer(custom.written("Paris")) == custom.answer(custom.stop_phrase + custom.written("Paris"))
    assert custom.answer(custom.written("Paris")) == "Paris"


@pytest.mark.parametrize("extract", ["boxed", "first_line", "last_line", "all"])
def test_it_ends_when_more_text_cannot_change_it(extract: Extract) -> None:
    """At the first end, and only there, the answer is what it will be whatever comes; each end is at a candidate."""
    found = AnswerFormat(extract=extract)
    written = "\n {Pa}ris}\nis\nit}"
    ends = [end for end in range(len(written) + 1) if found.ends(written[:end])]
    assert bool(ends) == (extract in ("boxed", "first_line"))
    if ends:
        assert ends == list(range(ends[0], len(written) + 1))
        assert found.ends_with(written[ends[0] - 1])
        first = found.answer(found.prefill + written[: ends[0]])
        assert first == {"boxed": "{Pa}ris", "first_line": "{Pa}ris}"}[extract]
    assert not any(found.ends_with(c) for c in written if c not in "}\n")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"stop_phrase": ""}, "stop_phrase"),
        ({"stop_phrase": "So: "}, "white space"),
        ({"prefill": " answer: "}, "needs a prefill that ends with"),
        ({"prefill": ""}, "prefill"),
        ({"extract": "all", "prefill": ""}, "prefill"),
        ({"extract": "all", "prefill": " \\boxed{"}, "does not read the prefilled"),
        ({"extract": "box"}, "extract"),
        ({"stop": "So:"}, "stop"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AnswerFormat.model_validate(given)


class Letters:
    """A tokenizer of single characters."""

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}

    def batch_decode(self, rows: list[list[int]], **_: object) -> list[str]:
        return [self.decode(row) for row in rows]

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(map(chr, ids))


def test_rules_follow_the_format() -> None:
    found = AnswerFormat(extract="first_line", stop_phrase="So:")
    rule, stop = AnswerRule(Letters(), None, found), StopRule(Letters(), None, found.stop_phrase)
    assert rule.candidates.nonzero()[0].tolist() == [ord("\n")]
    assert [rule.complete(list(map(ord, text))) for text in ("\nPa", "Pa}", "Pa\n")] == [False, False, True]
    assert stop.matches(list(map(ord, "I see. So:"))) and not stop.matches(list(map(ord, STOP_PHRASE)))
