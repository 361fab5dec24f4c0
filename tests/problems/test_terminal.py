"""What a terminal shows of models' texts: lines that fit, nothing that steers it, colour only where asked for."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from softtok.problems.terminal import Flow, Page, Step, percent, safe, visible

STEPS = [
    Step(" twelve", 0.01, 0.0, [" twelve"], [0.996]),
    Step("\n\n", 1.2, 0.331, ["\n\n", " a", "中文字", "x" * 40, " so"], [0.4, 0.3, 0.2, 0.05, 0.0004]),
    Step("the longest of all words", 10.25, 1.5, ["the longest of all words"] * 5, [0.2] * 5),
]


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
def test_steps_fit_into_the_terminal_and_stand_below_their_headings(columns: int) -> None:
    page = Page(columns)
    lines = [page.heading(), *(line for number, step in enumerate(STEPS) for line in page.step(number, step))]
    assert max(map(cell_len, lines)) <= max(60, columns)
    starts = [line for line in lines[1:] if line[:4].strip()]
    assert len(starts) == len(STEPS)
    at = page.heading().index("heaviest")
    for line, step in zip(starts, STEPS, strict=True):
        texts = cell_len(line[: line.index(visible(step.tokens[0])[:5], 19)])
        assert texts == at
        assert f"{step.entropy:5.2f} {step.moved:5.2f}" in line


def test_every_token_is_shown_with_its_weight() -> None:
    text = " ".join(Page(60).step(7, STEPS[1]))
    for shown in (r"\n\n 40%", "␣a 30%", "中文字 20%", "␣so <1%"):
        assert shown in text
    assert "␣twelve >99%" in Page(80).step(0, STEPS[0])[0]
    assert [percent(weight) for weight in (1.0, 0.996, 0.5, 0.004)] == ["100%", ">99%", "50%", "<1%"]


def test_nothing_of_a_model_steers_the_terminal() -> None:
    evil = "a\x1b[31mb\r\x07c\x9bd\td\u202ee"
    for text in (safe(evil), visible(evil), Flow(80).add(evil), *Page(80).text(evil)):
        assert text.isprintable()
    assert safe("two\nlines") == "two\nlines"


def test_colour_is_where_it_is_asked_for() -> None:
    plain, painted = Page(80), Page(80, colour=True)
    for number, step in enumerate(STEPS):
        assert "\x1b" not in "".join(plain.step(number, step))
        line = painted.step(number, step)[0]
        code = ("32", "33", "31")[number]
        assert f"\x1b[{code}m" in line and line.count("\x1b[0m") == 1
        assert line.replace(f"\x1b[{code}m", "").replace("\x1b[0m", "") == plain.step(number, step)[0]


def test_text_that_arrives_in_pieces_is_broken_where_it_does_not_fit() -> None:
    words = [f" word{number}" for number in range(40)]
    flow = Flow(30)
    text = "".join(flow.add(word) for word in words)
    assert max(map(len, text.split("\n"))) <= 30
    assert text.split() == "".join(words).split()
    assert flow.add("end\nnext") and flow.at == len("next")
