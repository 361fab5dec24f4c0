r"""`boxed.py`: balanced braces, escapes, which box is the last, and time linear in the text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softtok.problems.boxed import closes_box, last_box, last_boxed

PIECES = [r"\boxed{", r"\boxed {", r"\\boxed{", "{", "}", r"\{", r"\}", r"\\", "\\", "boxed{", "7", " ", "\n", "\x00"]
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def closes_box_by_counting(text: str) -> int | None:
    """The definition, character by character."""
    depth = 1
    for index, character in enumerate(text):
        backslashes = len(text[:index]) - len(text[:index].rstrip("\\"))
        if backslashes % 2 == 0 and character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return index
    return None


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{18}", "18"),
        (r"The final answer is: \boxed{18}.", "18"),
        (r"\boxed{\frac{1}{2}} and more", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\boxed{18}.", "18"),
        (r"\boxed{\boxed{18}}", "18"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{a\\}", r"a\\"),
        (r"\boxed{a\}", None),
        (r"\boxed {5}", "5"),
        (r"\\boxed{5}", "5"),
        (r"} } \boxed{5}", "5"),
        (r"{ { \boxed{5}", "5"),
        (r"\boxed{}", ""),
        ("\\boxed{1\x002}", "1\x002"),
        ("\\boxed{1\n2}", "1\n2"),
        (r"\boxed{18", None),
        (r"boxed{18}", None),
        (r"\boxed 18", None),
        (r"\fbox{18}", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("18}.", 2),
        ("}", 0),
        (r"\frac{1}{2}} {", 11),
        (r"\}18}", 4),
        (r"\\}", 2),
        ("18", None),
        (r"18\}", None),
        ("", None),
    ],
)
def test_closes_box(text: str, index: int | None) -> None:
    assert closes_box(text) == index


@given(texts)
def test_closes_box_is_what_counting_finds(text: str) -> None:
    # Text inside a box does not start in the middle of an escape, nor with the rest of a `\boxed`.
    assert closes_box("7" + text) == closes_box_by_counting("7" + text)


@given(texts)
def test_last_boxed_is_the_last_opening_that_closes(text: str) -> None:
    starts = [i + len(mark) for mark in (r"\boxed{", r"\boxed {") for i in range(len(text)) if text.startswith(mark, i)]
    closed = [(start, closes_box(text[start:])) for start in sorted(starts)]
    expected = [text[start : start + length] for start, length in closed if length is not None]
    assert last_boxed(text) == (expected[-1] if expected else None)


@given(st.text(max_size=20), texts)
def test_a_balanced_answer_is_found_behind_anything(answer: str, before: str) -> None:
    answer = answer.translate(str.maketrans("", "", "\\{}"))
    assert last_boxed(f"{before} \\boxed{{{answer}}} done") == answer


@pytest.mark.timeout(120, method="signal")
@pytest.mark.parametrize("piece", ["\\", "{", "}", r"\boxed{", r"\boxed ", "7", r"\{"])
def test_a_million_characters_come_to_an_end(piece: str) -> None:
    """They take about a second; work that grows with the square of the length would take hours."""
    text = piece * (1_000_000 // len(piece))
    assert last_boxed(text) is None
    assert closes_box(text) == (0 if piece == "}" else None)


@pytest.mark.parametrize(
    ("solution", "content"),
    [
        (r"so $\boxed{\text{A}}$ or \fbox{7}", "7"),
        (r"\fbox{7}, no: \boxed{8}", "8"),
        (r"\framebox{7}", "7"),
        (r"\boxed 5", "5"),
        (r"\boxed 5.", "5"),
        (r"It is $\boxed 12$.", "12"),
        (r"$$\boxed 3x + 2$$ at last", "3x + 2"),
        (r"\(\boxed 7\) so", "7"),
        (r"\[\boxed \frac12 \]", r"\frac12"),
        (r"\boxed 9 apples", "9"),
        (r"\boxed\frac{1}{2}.", r"\frac{1}{2}"),
        (r"{\boxed 5}", "5"),
        (r"{\text{so \boxed{5}}", "5"),
        (r"\underline{\boxed{4}}", "4"),
        (r"\{\boxed{4}\}", "4"),
        (r"costs \$3: \boxed 4 \$", "4"),
        (r"\boxed{\fbox{7}}", "7"),
        (r"\boxed{3} then \boxed{4", "3"),
        (r"\boxed{3} then $\boxed 4$", "4"),
        (r"\boxed 3 then $\boxed{4}$", "4"),
        (r"\boxed{3} then \boxed", "3"),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed \frac{1}{2", None),
        (r"\boxedx{3}", None),
        (r"\boxed{}", ""),
        ("", None),
    ],
)
def test_last_box_of_a_published_solution(solution: str, content: str | None) -> None:
    assert last_box(solution) == content


@given(texts)
def test_last_box_is_last_boxed_where_all_boxes_have_braces(text: str) -> None:
    if not re.search(r"\\boxed(?!\s*\{)(?![A-Za-z])", text):
        assert last_box(text) == last_boxed(text)


@pytest.mark.timeout(120, method="signal")
@pytest.mark.parametrize("piece", ["\\", "{", "}", r"\boxed{", r"\boxed ", "$", r"$\boxed ", r"\fbox{", r"\(", "7"])
def test_a_solution_of_a_million_characters_comes_to_an_end(piece: str) -> None:
    last_box(piece * (1_000_000 // len(piece)))
