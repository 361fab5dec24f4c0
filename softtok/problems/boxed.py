r"""Finds the answer in a text, `\boxed{...}` with balanced braces, and normalises how it is written.

Math-Verify merges neighbouring boxes into a set and finds nothing in an unclosed one. So the reward, the rule that ends
an answer and the preparation of data share the one definition here. Escaped braces (`\{`, with an odd number of
backslashes) are plain text.
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


_SPACE = re.compile(r"(?<![A-Za-z0-9,.]) | (?![A-Za-z0-9,.])")  # keeps `1, 234` from `1,234`, `\pi r` from `\pir`
_LOOKS = re.compile(r"\\(?:left|right)(?![A-Za-z])|(?<=\\)[dt](?=frac(?![A-Za-z]))")


@lru_cache(maxsize=4096)
def normalised(latex: str) -> str:
    r"""Removes what changes only the look of LaTeX.

    These are spaces beside operators and brackets, `\left` and `\right`, and the d or t of `\dfrac` and `\tfrac`.
    """
    return _SPACE.sub("", " ".join(_LOOKS.sub("", latex).split()))
