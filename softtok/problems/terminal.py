"""Models' texts on a terminal: soft steps as a table, CoTs and answers, in colour where that is asked for."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

LEAST_COLUMNS, MOST_COLUMNS = 60, 100
SURE, UNSURE = 0.5, 1.5  # nats of entropy: below the first a step is green, above the second red
STEP, TOKEN, NUMBER = 4, 14, 5  # columns of a step's table
LEFT = STEP + TOKEN + 2 * NUMBER + 5


class Step(NamedTuple):
    """A soft step: its text, entropy in nats, how far noise moved it, and the heaviest tokens of its mixture."""

    token: str
    entropy: float
    moved: float
    tokens: Sequence[str]
    weights: Sequence[float]


def safe(text: str) -> str:
    """Returns a model's text without what would steer a terminal; line breaks stay."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def visible(token: str) -> str:
    """Returns a token's text on one line, its spaces visible."""
    return safe(token).replace("\n", "\\n").replace(" ", "␣")


def percent(weight: float) -> str:
    """Returns a weight in whole percent; what is not quite none or all is said so."""
    whole = f"{100 * weight:.0f}%"
    return {"0%": "<1%", "100%": "100%" if weight >= 0.9995 else ">99%"}.get(whole, whole)


class Page:
    """Lays out texts for a terminal of so many columns."""

    def __init__(self, columns: int = 80, colour: bool = False) -> None:
        self.columns, self.colour = min(max(columns, LEAST_COLUMNS), MOST_COLUMNS), colour

    def heading(self) -> str:
        """Returns the line above soft steps."""
        return self._row("step", "token", " nats", "moved", "heaviest in the mixture")

    def step(self, number: int, step: Step) -> list[str]:
        """Returns the lines of a soft step."""
        pairs = [f"{visible(text)} {percent(weight)}" for text, weight in zip(step.tokens, step.weights, strict=True)]
        lines = self._filled(pairs)
        token = set_cell_size(visible(step.token), TOKEN)
        if cell_len(visible(step.token)) > TOKEN:
            token = f"{set_cell_size(visible(step.token), TOKEN - 1)}…"
        first = self._row(
            str(number), self.painted(token, step.entropy), _number(step.entropy), _number(step.moved), ""
        )
        return [f"{first}{lines[0]}", *(" " * LEFT + line for line in lines[1:])]

    def _row(self, step: str, token: str, entropy: str, moved: str, rest: str) -> str:
        padded = token + " " * max(0, TOKEN - cell_len(token)) if "\x1b" not in token else token
        return f"{step:>{STEP}} {padded} {entropy:>{NUMBER}} {moved:>{NUMBER}}  {rest}"

    def _filled(self, pairs: Sequence[str]) -> list[str]:
        """Returns pairs of token and weight in lines that fit behind the other columns."""
        room, lines = self.columns - LEFT, [""]
        for pair in pairs:
            pair = pair if cell_len(pair) <= room else f"{set_cell_size(pair, room - 1)}…"
            longer = f"{lines[-1]}  {pair}" if lines[-1] else pair
            if cell_len(longer) <= room:
                lines[-1] = longer
            else:
                lines.append(pair)
        return lines

    def painted(self, text: str, entropy: float) -> str:
        """Returns a text in the colour of its entropy: green where the model is sure, red where it is not."""
        return self._coloured(text, 32 if entropy < SURE else 33 if entropy < UNSURE else 31)

    def verdict(self, text: str, correct: bool) -> str:
        """Returns a verdict in its colour."""
        return self._coloured(text, 32 if correct else 31)

    def strong(self, text: str) -> str:
        """Returns a text that is set off from others."""
        return self._coloured(text, 1)

    def _coloured(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def text(self, text: str, indent: str = "") -> list[str]:
        """Returns a text in lines that fit, with its own line breaks."""
        lines = [
            textwrap.wrap(line, self.columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
            for line in safe(text).split("\n")
        ]
        return [line for wrapped in lines for line in wrapped or [""]]


class Flow:
    """Text that arrives piece by piece, in lines that fit."""

    def __init__(self, columns: int) -> None:
        self.columns, self.at = columns, 0

    def add(self, piece: str) -> str:
        """Returns a piece as it is to be written, behind a line break if it does not fit on the line."""
        shown = ""
        for part in safe(piece).splitlines(keepends=True):
            width = cell_len(part.rstrip("\n"))
            if self.at and self.at + width > self.columns:
                shown, part, self.at = f"{shown}\n", part.lstrip(" "), 0
            self.at = 0 if part.endswith("\n") else self.at + cell_len(part)
            shown += part
        return shown


def _number(value: float) -> str:
    return f"{value:{NUMBER}.2f}"
