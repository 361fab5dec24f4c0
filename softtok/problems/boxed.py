r"""Finds the answer in a text, `\boxed{...}` with balanced braces, and drops what changes only its look.

Math-Verify merges neighbouring boxes into a set and finds nothing in an unclosed one, so the reward, the rule that ends
an answer and data preparation share the one definition here. Escaped braces (`\{`: an odd number of backslashes) are
text.
"""

from __future__ import annotations

import re
from functools import lru_cache

# A doubled backslash before "boxed" is a common slip of models. The last branch eats an escaped character.
_TOKENS = re.compile(r"(?P<box>\\\\?boxed\s*\{)|(?P<open>\{)|(?P<close>\})|\\.", re.DOTALL)


def closes_box(text: str) -> int | None:
    r"""`text` starts just inside an open `\boxed{`: the index of the brace that closes it, or None while it is open."""
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
    r"""Content of the last box that closes, None if there is none. One pass, linear in the length of the text.

    Last means opened last: `\boxed{\boxed{18}.` (a prefilled opening, then the model's own) gives `18`, and so does
    `\boxed{18} \boxed{19`.
    """
    starts: list[int | None] = []  # of the open braces' contents; None for a brace that is not a box's
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
    r"""The text without what changes only its look: spaces beside operators and brackets, `\left`, `\right`, the d of
    `\dfrac`."""
    return _SPACE.sub("", " ".join(_LOOKS.sub("", latex).split()))
