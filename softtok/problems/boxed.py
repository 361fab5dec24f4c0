r"""Finds the answer in a text, `\boxed{...}` with balanced braces, and normalises how it is written.

Math-Verify merges neighbouring boxes into a set and finds nothing in an unclosed one. So the reward, the rule that ends
an answer and the preparation of data share the one definition here. Escaped braces (`\{`, with an odd number of
backslashes) are plain text. Published solutions write boxes in more ways (`last_box`) than an answer may.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Models often double the backslash before "boxed". The last branch consumes an escaped character.
_TOKENS = re.compile(r"(?P<box>\\\\?boxed\s*\{)|(?P<open>\{)|(?P<close>\})|\\.", re.DOTALL)


def closes_box(text: str) -> int | None:
    r"""Returns the index of the brace that closes an open `\boxed{`, or None while it is open.

    `text` starts just inside the box.
    """
    depth = 1
    for token in _TOKENS.finditer(text):
        if token.lastgroup == "close":
            depth -= 1
            if depth == 0:
                return token.start()
        elif token.lastgroup is not None:
            depth += 1
    return None


def last_boxed(text: str) -> str | None:
    r"""Returns the content of the last box that is closed, or None; takes one pass over the text.

    The last box is the one that opens last: `\boxed{\boxed{18}.` (a prefilled opening, then the model's own) gives
    `18`, and so does `\boxed{18} \boxed{19`.
    """
    starts: list[int | None] = []  # where the contents of open braces start; None for a brace without \boxed
    last, content = -1, None
    for token in _TOKENS.finditer(text):
        if token.lastgroup == "close":
            start = starts.pop() if starts else None
            if start is not None and start > last:
                last, content = start, text[start : token.start()]
        elif token.lastgroup is not None:
            starts.append(token.end() if token.lastgroup == "box" else None)
    return content


# In a solution also `\boxed 5`, `\fbox{7}` and their relatives. `\(` and `$` tell where mathematics ends.
_SOLUTION_TOKENS = re.compile(
    r"(?P<box>\\\\?(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?P<brace>\{)?)"
    r"|(?P<open>\{)|(?P<close>\})|(?P<begin>\\[(\[])|(?P<end>\\[)\]])|(?P<dollar>\$\$?)|\\.",
    re.DOTALL,
)


def last_box(solution: str) -> str | None:
    r"""Returns what a published solution boxes last, or None: like `last_boxed`, with more ways to write a box.

    `\fbox{7}` and `\framebox{7}` are boxes too. A box without braces, `\boxed 5`, holds what follows up to the end of
    its formula, or outside of one up to the next space, without a full stop or comma behind it.
    """
    starts: list[int | None] = []
    last, content, bare, formula = -1, None, (-1, False), False
    for token in _SOLUTION_TOKENS.finditer(solution):
        match token.lastgroup:
            case "brace" | "box" if token["brace"] is None:
                bare = (token.end(), formula)
            case "brace" | "box":
                starts.append(token.end())
            case "open":
                starts.append(None)
            case "close":
                start = starts.pop() if starts else None
                if start is not None and start > last:
                    last, content = start, solution[start : token.start()]
            case "begin" | "end" | "dollar":
                formula = not formula if token.lastgroup == "dollar" else token.lastgroup == "begin"
    return (_bare(solution, *bare) if bare[0] > last else None) or content


_BARE_TOKENS = re.compile(r"(?P<open>\{)|(?P<close>\})|(?P<end>\$|\\[)\]])|(?P<space>\s)|\\.", re.DOTALL)


def _bare(text: str, start: int, formula: bool) -> str | None:
    """Returns the content of a box without braces that starts here; None if its own braces do not close."""
    depth, end = 0, len(text)
    for token in _BARE_TOKENS.finditer(text, start):
        kind = token.lastgroup
        if depth == 0 and (kind in ("close", "end") or (kind == "space" and not formula)):
            end = token.start()
            break
        depth += {"open": 1, "close": -1}.get(kind or "", 0)
    return text[start:end].strip().rstrip(".,;:") if depth == 0 else None


_SPACE = re.compile(r"(?<![A-Za-z0-9,.]) | (?![A-Za-z0-9,.])")  # keeps `1, 234` from `1,234`, `\pi r` from `\pir`
_LOOKS = re.compile(r"\\(?:left|right)(?![A-Za-z])|(?<=\\)[dt](?=frac(?![A-Za-z]))")


@lru_cache(maxsize=4096)
def normalised(latex: str) -> str:
    r"""Removes what changes only the look of LaTeX.

    These are spaces beside operators and brackets, `\left` and `\right`, and the d or t of `\dfrac` and `\tfrac`.
    """
    return _SPACE.sub("", " ".join(_LOOKS.sub("", latex).split()))
