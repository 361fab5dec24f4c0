r"""How an answer is written, as against what it says: named rules that bring many spellings to one.

`math-strict` reads golds and answers through these rules, and the preparation of data can flag golds by their names.
Each rule is a function from text to text that keeps the meaning: `½`, `\dfrac{1}{2}` and `\frac12` become
`\frac{1}{2}`, `18 dollars` becomes `18`. A rule that has nothing to do returns its text, so `changes` names those that
a text needs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from softtok.problems.numbers import DECIMAL, NUMBER, read_number
from softtok.problems.units import plain_unit, scaled, split_scale

Rule = Callable[[str], str]

MAX_CHARS = 2_000  # longer texts are no answers, and are left alone: some rules take time with the square of the length

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SYMBOLS = {
    "−": "-",
    "–": "-",
    "‐": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∞": r"\infty ",
    "±": r"\pm ",
    "°": r"^\circ ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∅": r"\emptyset ",
    "∈": r"\in ",
    "∀": r"\forall ",
    "∃": r"\exists ",
    "≈": r"\approx ",
    "…": r"\ldots ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "′": "'",
    "’": "'",
    "‘": "'",
    "“": '"',
    "”": '"',
}
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau upsilon"
    " phi chi psi omega"
).split()
_SYMBOLS |= {chr(0x3B1 + place): rf"\{name} " for place, name in enumerate(_GREEK) if name != "omicron"}
_CAPITALS = "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split()
_SYMBOLS |= {letter: rf"\{name} " for letter, name in zip("ΓΔΘΛΞΠΣΦΨΩ", _CAPITALS, strict=True)}
_OTHER_SIGNS = str.maketrans(_SYMBOLS)


# ---- rules of the surface: they apply to words as well ----


def markdown(text: str) -> str:
    """`**73**`, `` `73` `` and `"73"` are 73."""
    for mark in ("**", "__", "`", '"', "*"):
        inner = text.strip()
        if len(inner) > 2 * len(mark) and inner.startswith(mark) and inner.endswith(mark):
            inner = inner[len(mark) : -len(mark)]
            text = text if mark in inner else inner
    return text


def delimiters(text: str) -> str:
    r"""`$73$`, `\(73\)`, `\[73\]` and `= 73` are 73."""
    inner = text.strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if len(inner) > len(opening + closing) and inner.startswith(opening) and inner.endswith(closing):
            middle = inner[len(opening) : -len(closing)]
            if closing not in middle and not middle.endswith("\\"):
                return middle.strip()
    return inner.removeprefix("=").lstrip() if inner.startswith("= ") else text


def symbols(text: str) -> str:
    r"""`−`, `π`, `≤`, `°` and the like are written in LaTeX, fullwidth digits are ASCII."""
    text = text.translate(_OTHER_SIGNS) if not text.isascii() else text
    if text.isascii():
        return text
    kept = "".join(_SUPERSCRIPTS) + "".join(_SUBSCRIPTS)
    compatible = (
        sign
        if sign in kept or unicodedata.decomposition(sign).startswith("<fraction>")
        else unicodedata.normalize("NFKC", sign)
        for sign in text
    )
    return "".join(compatible)


def scripts(text: str) -> str:
    """`x²` is `x^{2}`, `x₁` is `x_{1}`."""
    if text.isascii():
        return text
    for table, sign in ((_SUPERSCRIPTS, "^"), (_SUBSCRIPTS, "_")):
        found = re.compile(f"[{''.join(table)}]+")
        text = found.sub(lambda run: sign + "{" + "".join(table[letter] for letter in run[0]) + "}", text)  # noqa: B023
    return text


def vulgar_fractions(text: str) -> str:
    r"""`½` is `\frac{1}{2}`."""
    if text.isascii():
        return text
    parts = []
    for sign in text:
        made_of = unicodedata.decomposition(sign)
        if made_of.startswith("<fraction>"):
            top, _, bottom = "".join(chr(int(code, 16)) for code in made_of.split()[1:]).partition("⁄")
            sign = rf"\frac{{{top or 1}}}{{{bottom}}}" if bottom else sign
        parts.append(sign)
    return "".join(parts)


_BLANKS = re.compile(r"\\[,;:> ]|\\!|\\q?quad(?![A-Za-z])|~|\\n(?![A-Za-z])|\\displaystyle(?![A-Za-z])|\s+")
_SIZES = re.compile(
    r"\\(?:left|right|big|Big|bigg|Bigg)[lr]?(?![A-Za-z])\s*\.?(?=[^.])|(?<=\\)[dtc](?=frac(?![A-Za-z]))"
)


def spacing(text: str) -> str:
    r"""`\,`, `\quad`, `\left(` and the size of fractions do not matter."""
    text = _BLANKS.sub(lambda blank: "" if blank[0] == r"\!" else " ", text)
    return " ".join(_SIZES.sub("", text).split())


_STYLE = re.compile(
    r"\\(?:math(?:rm|bf|it|sf|tt|normal|up)|text(?:rm|bf|it|sf|tt|normal|up|sc)|mbox|hbox|emph)(?=\s*\{)"
)
_OLD_STYLE = re.compile(r"\{\s*\\(?:rm|bf|it|cal)(?![A-Za-z])\s*([^{}]*)\}")
_CONSTANT = re.compile(r"\\(?:math(?:rm|bf|it|sf|normal|up)|bm|boldsymbol|text(?:rm|it)?)\s*\{\s*([eid])\s*\}")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def styles(text: str) -> str:
    r"""`\mathrm{cm}` is `\text{cm}`, `\mathrm{e}` is e, `\text{13}` is 13, and `\text{Paris}` alone is Paris."""
    text = _OLD_STYLE.sub(r"\\text{\1}", _STYLE.sub(r"\\text", _CONSTANT.sub(r"{\1}", text))).strip()
    if whole := _TEXT.fullmatch(text):
        return whole[1].strip()
    return _TEXT.sub(lambda found: found[0] if re.search("[A-Za-z]", found[1]) else found[1], text)


_STOP = re.compile(r"(?<![.\\])[.,;:]$")
_ABBREVIATED = re.compile(r"[A-Za-z]\.\s?[A-Za-z]\.$")


def full_stop(text: str) -> str:
    """`18.` is 18."""
    stripped = text.strip()
    return text if _ABBREVIATED.search(stripped) or not _STOP.search(stripped) else stripped[:-1].rstrip()


# ---- rules of mathematics ----

_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg max min gcd lcm".split()
_NAMED = re.compile(rf"(?<![\\A-Za-z])({'|'.join(_NAMES)})(?=\s*[(\\0-9^_{{]|\s+[A-Za-z0-9](?![A-Za-z]))")
_LETTERS = re.compile(r"(?<![\\A-Za-z{])(pi|alpha|beta|gamma|theta|lambda|omega|sigma|phi)(?![A-Za-z])")
_ASCII = {
    "**": "^",
    "<=": r"\le ",
    ">=": r"\ge ",
    "!=": r"\ne ",
    "=<": r"\le ",
    "+-": r"\pm ",
    "+/-": r"\pm ",
    "*": r"\cdot ",
}
_ASCII_SIGNS = re.compile(r"\+/-|\*\*|<=|>=|!=|\*")
_ROOT = re.compile(r"([√∛∜])\s*(\{[^{}]*\}|\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z])")
_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}


def _braced(text: str, opening: re.Pattern[str], before: Callable[[re.Match[str]], str]) -> str:
    """Puts braces in the place of the round brackets that a pattern ends with; `before` writes what precedes them."""
    while found := opening.search(text):
        depth, end = 1, found.end()
        while end < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            return text
        text = f"{text[: found.start()]}{before(found)}{{{text[found.end() : end - 1]}}}{text[end:]}"
    return text


def roots(text: str) -> str:
    r"""`√5`, `sqrt(5)` and `\sqrt(5)` are `\sqrt{5}`."""
    text = _braced(text, re.compile(r"([√∛∜])\s*\("), lambda sign: rf"\sqrt{_DEGREES[sign[1]]}")
    text = _ROOT.sub(
        lambda root: rf"\sqrt{_DEGREES[root[1]]}" + (root[2] if root[2][0] == "{" else f"{{{root[2]}}}"), text
    )
    text = _braced(text, re.compile(r"(?<![A-Za-z\\])sqrt\s*\(|\\sqrt\s*\("), lambda _: r"\sqrt")
    return re.sub(r"(?<![A-Za-z\\])sqrt\s*(\d+)", r"\\sqrt{\1}", text)


def ascii_names(text: str) -> str:
    r"""`pi/2` is `\pi /2`, `2*x` is `2\cdot x`, `exp(16)` is `e^{16}`, `x<=3` is `x\le 3`."""
    text = _braced(text, re.compile(r"(?<![A-Za-z])\\?exp\s*\("), lambda _: "e^")
    text = _NAMED.sub(r"\\\1", _LETTERS.sub(r"\\\1 ", text))
    text = re.sub(r"(?<![\\A-Za-z])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty ", text)
    return _ASCII_SIGNS.sub(lambda sign: _ASCII[sign[0]], text)


def powers(text: str) -> str:
    """`2^10` is `2^{10}` and `x^(1/2)` is `x^{1/2}`."""
    text = _braced(text, re.compile(r"\^\s*\("), lambda _: "^")
    text = re.sub(r"\\(p?mod|bmod)\s*(\d+)", r"\\\1{\2}", text)
    return re.sub(r"\^\s*(-?\d+)", r"^{\1}", text)


def signs(text: str) -> str:
    """`14 + -1` is 14 - 1."""
    return re.sub(r"([+-])\s*\+?(-)(?=\s*[\d\\A-Za-z(.])", lambda s: " - " if s[1] == "+" else " + ", text)


def scientific(text: str) -> str:
    r"""`6.02e23` is `6.02 \times 10^{23}`."""
    return re.sub(
        rf"(?<![A-Za-z0-9.\\])({DECIMAL})\s?[eE]\s?([+-]?)(\d+)(?![A-Za-z0-9.])",
        lambda found: rf"{found[1]} \times 10^{{{found[2].strip('+')}{found[3]}}}",
        text,
    )


_GROUPED = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:,\d{3})+|(?: \d{3})+)(?![\d,])(\.\d+)?")


def thousands(text: str) -> str:
    r"""`1,234`, `1{,}234` and `1\,234` are 1234; a list or a point of several numbers is left alone."""
    text = re.sub(r"(?<=\d)\s?\{,\}\s?(?=\d)", "", text)
    found = _GROUPED.search(text)
    if found is None or re.search(r"[\d,;()[\]|]|\\[{}]", text[: found.start()] + text[found.end() :]):
        return text
    return text[: found.start()] + found[1] + re.sub("[, ]", "", found[2]) + (found[3] or "") + text[found.end() :]


_ORDINAL = re.compile(
    r"(\d)\s*(?:\^\s*(?:\{\s*)?)?(?:\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th))(?![A-Za-z])\s*(\}?)"
)


def ordinals(text: str) -> str:
    """`12^{th}` and `12th` are 12."""

    def plain(found: re.Match[str]) -> str:
        opened = found[0].count("{") - found[0].count("\\text")
        return found[1] + (found[2] if opened < found[2].count("}") else "")

    return _ORDINAL.sub(plain, text)


_MIXED = re.compile(
    r"(?<![\w.}^_/{\\])(\d+)(?:\s+(\d+)\s*/\s*(\d+)|\s*\\frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)(\d)))(?![\w.]|\s*[/^])"
)


def mixed_numbers(text: str) -> str:
    r"""`11 5/6` is `\frac{71}{6}`; `4 10/3` is no mixed number."""

    def single(found: re.Match[str]) -> str:
        top, bottom = (int(next(part for part in found.groups()[place::2] if part)) for place in (1, 2))
        whole = int(found[1])
        return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}" if 0 < top < bottom else found[0]

    return _MIXED.sub(single, text)


def percents(text: str) -> str:
    r"""`28 percent` is `28\%`."""
    text = re.sub(r"\s*(?:\\text\s*\{\s*)(?:percent|percentage|pct)\s*\}", r"\\%", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=[\d}])\s*(?:percent|pct)(?![A-Za-z])", r"\\%", text, flags=re.IGNORECASE)
    return re.sub(r"\s*\\text\s*\{\s*\\?%\s*\}", r"\\%", text)


_CURRENCY = re.compile(
    r"^(-?)\s*(?:\\text\s*\{\s*)?(?:\\?\$|€|£|¥|₹|(?:USD|EUR|GBP|Rs\.?)(?![A-Za-z]))(?:\s*\})?\s*(?=[-\d.\\])"
)


def currency(text: str) -> str:
    r"""`\$18`, `$18` and `€18` are 18."""
    return _CURRENCY.sub(r"\1", text)


_COMMENT = re.compile(r"^(.*[\d}%])\s*(?:\\text\s*\{)?\s*\(\s*(?:\\text\s*\{)?\s*[A-Za-z][A-Za-z ,.'-]*\}?\s*\)\s*\}?$")


def comments(text: str) -> str:
    """`9 (apples)` is 9."""
    found = _COMMENT.match(text)
    return found[1] if found and read_number(found[1]) is not None else text


def units(text: str) -> str:
    r"""`18 dollars`, `45^\circ` and `5\pi \text{ cm}^2` lose their unit; `3 million` is 3000000."""
    return split_unit(text)[0]


def split_unit(text: str) -> tuple[str, str | None]:
    """Returns a text without its unit, and the unit."""
    stripped = text.strip()
    if (found := NUMBER.match(stripped)) and (number := read_number(found[0])):
        factor, rest = split_scale(stripped[found.end() :])
        head = found[0] if factor == 1 else scaled(number.value, factor)
        if not rest.strip():
            return (text if factor == 1 else head), None
        if (unit := plain_unit(rest)) is not None:
            return head, unit
    tail = _UNIT_TAIL.search(stripped)
    if tail is None or not re.search(r"\d|\\pi", stripped[: tail.start()]) or _TEXT.search(stripped[: tail.start()]):
        return text, None
    unit = plain_unit(tail[0])
    return (text, None) if unit is None else (stripped[: tail.start()].strip(), unit)


_UNIT_TAIL = re.compile(
    r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\text\s*\{[^{}]*\}(?:\s*\^\s*\{?\s*\d\s*\}?)?)$"
    r"|(?<=[\d}i])\s+[A-Za-z][A-Za-z ./]+(?:\^\s*\{?\s*\d\s*\}?)?$"
)


def decimals(text: str) -> str:
    r"""`4.5` is `\frac{45}{10}` inside of an expression, so that it is exact; a number alone stays as it is."""
    return _DECIMAL.sub(_exactly, text)


_DECIMAL = re.compile(r"(?<![\w.])(\d*)\.(\d+)(?![\w.]*\.)")


def _exactly(found: re.Match[str]) -> str:
    whole, places = found[1], found[2].rstrip("0")
    if not places:
        return f"{whole or 0} "
    return rf"\frac{{{int(whole + places)}}}{{{10 ** len(places)}}} " if len(whole + places) < 1000 else found[0]


SURFACE: tuple[Rule, ...] = (markdown, delimiters, symbols, scripts, vulgar_fractions, spacing, styles, full_stop)
MATHEMATICS: tuple[Rule, ...] = (
    roots,
    ascii_names,
    powers,
    signs,
    scientific,
    ordinals,
    percents,
    currency,
    thousands,
    mixed_numbers,
    comments,
    units,
)
RULES = SURFACE + MATHEMATICS


@lru_cache(maxsize=4096)
def surface(text: str) -> str:
    """Returns a text with the rules of the surface applied."""
    for rule in SURFACE if len(text) <= MAX_CHARS else ():
        text = rule(text)
    return text.strip()


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """Returns a text with all rules applied."""
    text = surface(text)
    for rule in MATHEMATICS if len(text) <= MAX_CHARS else ():
        text = rule(text)
    return text.strip()


def changes(text: str) -> list[str]:
    """Returns the names of the rules that a text needs, in their order."""
    names = []
    for rule in RULES:
        after = rule(text)
        if after.strip() != text.strip():
            names.append(rule.__name__)
        text = after
    return names
