r"""The named rules of `math-strict`: what each changes, that it says so, and that it leaves other texts alone."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softtok.problems.looks import RULES, changes, plain
from softtok.problems.numbers import read_number
from softtok.problems.reward import Grading, Judge
from softtok.problems.strict_reward import quick_strict
from tests.support.answers import box

SPELLINGS = [  # the rule that a text needs, the text, what it is after all rules
    ("markdown", "**73**", "73"),
    ("markdown", "`73`", "73"),
    ("delimiters", "$73$", "73"),
    ("delimiters", r"\(73\)", "73"),
    ("symbols", "−5", "-5"),
    ("symbols", "１５", "15"),
    ("scripts", "x²", "x^{2}"),
    ("vulgar_fractions", "½", r"\frac{1}{2}"),
    ("spacing", r"\left( 1, \dfrac{1}{2} \right)", r"( 1, \frac{1}{2} )"),
    ("styles", r"\mathrm{cm}", "cm"),
    ("styles", r"\text{13}", "13"),
    ("styles", r"\text{-}5", "-5"),
    ("full_stop", "18.", "18"),
    ("roots", "2√5", r"2\sqrt{5}"),
    ("roots", "sqrt((x+1)/2)", r"\sqrt{(x+1)/2}"),
    ("ascii_names", "pi/2", r"\pi /2"),
    ("ascii_names", "exp(16)", "e^{16}"),
    ("powers", "2^10", "2^{10}"),
    ("powers", "x^(1/2)", "x^{1/2}"),
    ("signs", "14 + -1", "14  - 1"),
    ("scientific", "6.02e23", r"6.02 \times 10^{23}"),
    ("scientific", "1E-7", r"1 \times 10^{-7}"),
    ("ordinals", "12^{th}", "12"),
    ("ordinals", r"12^{\text{th}}", "12"),
    ("ordinals", r"23^\text{rd}", "23"),
    ("ordinals", "1st", "1"),
    ("percents", "28 percent", r"28\%"),
    ("currency", r"\$18", "18"),
    ("currency", "€5", "5"),
    ("thousands", "1,234,567.89", "1234567.89"),
    ("thousands", "1{,}234", "1234"),
    ("mixed_numbers", "11 5/6", r"\frac{71}{6}"),
    ("comments", "9 (apples)", "9"),
    ("units", "18 dollars", "18"),
    ("units", r"18 \text{ miles per hour}", "18"),
    ("units", r"5\pi \text{ cm}^2", r"5\pi"),
    ("units", "90°", "90"),
    ("units", "3 million", "3000000"),
]


@pytest.mark.parametrize(("rule", "text", "wanted"), SPELLINGS)
def test_a_rule_brings_a_spelling_to_another_and_is_named(rule: str, text: str, wanted: str) -> None:
    assert plain(text) == wanted
    assert rule in changes(text)


def test_every_rule_has_a_name_of_its_own_and_an_example() -> None:
    names = [rule.__name__ for rule in RULES]
    assert len(set(names)) == len(names)
    assert set(names) == {rule for rule, _, _ in SPELLINGS}


@pytest.mark.parametrize(
    "text",
    [
        "18",
        "-0.5",
        "x",
        "2x",
        "18x",
        r"\frac{1}{2}",
        "(1, 2)",
        "1, 234",
        "(1,234)",
        r"\sqrt{2}",
        "x^{2}",
        "4 10/3",
        "18 or so",
        "6 p.m.",
        "even",
        "New York",
        r"\{1, 2\}",
        "f(x) = 0",
        "5!",
        r"x \in [0, 1]",
        "18 19",
        r"19, 46, \text{ and } 82",
    ],
)
def test_what_is_plain_stays(text: str) -> None:
    assert plain(text) == text
    assert changes(text) == []


@given(st.text(max_size=80))
def test_rules_come_to_an_end_and_have_nothing_left_to_do(text: str) -> None:
    once = plain(text)
    assert len(once) <= 20 * len(text) + 20
    for _ in range(4):
        if plain(once) == once:
            break
        once = plain(once)


integers = st.integers(-(10**40), 10**40)
decimals = st.builds(
    "{}{}.{}".format, st.sampled_from(["", "-"]), st.integers(0, 10**12), st.from_regex(r"[0-9]{1,20}", fullmatch=True)
)


def spellings(value: int) -> st.SearchStrategy[str]:
    sign, size = ("-" if value < 0 else ""), abs(value)
    return st.sampled_from(
        [
            f"{value}",
            f"{value:,}",
            f"{value:,}".replace(",", "{,}"),
            f"{value:,}".replace(",", r"\,"),
            f"{value}.0",
            f"{value}.",
            f"${value}$",
            f"{value} dollars",
            rf"{value}\text{{ cm}}",
            f"**{value}**",
            f"x = {value}",
            rf"{sign}\${size}",
            rf"\frac{{{2 * value}}}{{2}}",
            rf"{value}^\circ",
            rf"\text{{{value}}}",
            f"{value}e0",
            rf"{value} \times 10^{{0}}",
        ]
    )


@given(integers.flatmap(lambda value: st.tuples(st.just(value), spellings(value), st.integers(-3, 3))))
def test_an_integer_is_right_in_any_spelling_and_no_other_is(case: tuple[int, str, int]) -> None:
    value, written, off = case
    assert quick_strict(written, (str(value + off),)) == ("wrong" if off else "correct")


@given(decimals, decimals)
def test_decimals_are_compared_exactly(a: str, b: str) -> None:
    assert (quick_strict(a, (b,)) == "correct") == (Fraction(a) == Fraction(b))


@given(st.integers(-999, 999), st.integers(1, 999), st.integers(1, 30))
def test_a_fraction_takes_its_own_decimals_if_there_are_enough(top: int, bottom: int, places: int) -> None:
    value = Fraction(top, bottom)
    scaled = abs(value) * 10**places
    cut = scaled.numerator // scaled.denominator
    written = f"{'-' if value < 0 else ''}{cut // 10**places}.{cut % 10**places:0{places}d}"
    exact = Fraction(cut, 10**places) == abs(value)
    status = quick_strict(written, (rf"\frac{{{top}}}{{{bottom}}}",))
    if exact:
        assert status == "correct"
    elif len(str(cut)) < 10 or (10**60 % value.denominator == 0):
        assert status == "wrong", "too few digits, or a number that has an end"
    else:
        assert status == "correct"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", Fraction(1, 10)),
        ("-.5", Fraction(-1, 2)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"\frac34", Fraction(3, 4)),
        (r"6.02 \times 10^{23}", Fraction(602 * 10**21)),
        ("10^{-7}", Fraction(1, 10**7)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("1" * 5000, Fraction((10**5000 - 1) // 9)),
        (r"\frac{1}{0}", None),
        (r"2\frac{3}{2}", None),
        ("10^{99999999}", None),
        ("5x", None),
        ("", None),
        ("٥", None),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction | None) -> None:
    number = read_number(text)
    assert (number.value if number else None) == value


def test_the_toys_golds_have_the_verdicts_of_math() -> None:
    """Its data sets take `math-strict` by default; its golds and answers are small integers."""
    golds = [str(n) for n in range(0, 100, 7)]
    answers = [*map(str, range(-1, 101)), "", "7 5", "1 2 3", "+", "5 + 2", "= 7", "the"]
    items = [(box(answer), [gold]) for gold in golds for answer in answers]
    with Judge() as judge:
        other = judge.other
        assert other is not None and other.grading == Grading(reward="math-strict")
        pairs = list(zip(judge.grade(items), other.grade(items), strict=True))
    assert [(a.correct, a.reward, a.boxed) for a, _ in pairs] == [(b.correct, b.reward, b.boxed) for _, b in pairs]


@pytest.mark.parametrize(
    "piece",
    [
        "7",
        " ",
        "i ",
        "1 ",
        "(",
        "sqrt(",
        "^(",
        "{",
        "\\text{",
        "1,234",
        "½",
        "x²",
        "**",
        "$",
        ".",
        "a.",
        "- ",
        "1/",
        "th",
        "5 m",
        "| ",
        "e5",
    ],
)
def test_quick_verdicts_come_to_an_end_on_any_text(piece: str) -> None:
    """On the longest text that is graded; work that grows with the cube of the length would take minutes."""
    for length in (1_999, 9_900):
        text = piece * (length // len(piece))
        for gold in ("18", "x^2", r"\text{even}"):
            quick_strict(text, (gold,))
