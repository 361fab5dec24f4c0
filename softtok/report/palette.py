"""Colours of training modes, the same in every figure and table of a study, and the dark theme of figures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, cycle
from typing import Any

INK, MUTED, GRID, PAPER, BASE = "#1b1f24", "#5b6470", "#e3e6ea", "#fefefe", "#40454d"
# Chosen to stay apart under simulated deuteranopia, protanopia and tritanopia, and dark enough for text on white.
SERIES = ("#1d4ed8", "#c2410c", "#0b8457", "#b8418f", "#5b3a00", "#0e7490")
DARK_SERIES = ("#6290ff", "#f97838", "#2fcf92", "#d68ac0", "#dcc02a", "#4fb6d6")
DARK = {INK: "#e6e8eb", MUTED: "#9aa4b0", GRID: "#2d343c", PAPER: "#15181c", BASE: "#d3d7dc"}
DARK |= dict(zip(SERIES, DARK_SERIES, strict=True))
"""The colour on a dark page for each colour on a light page."""
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper", BASE: "--base"}
VARIABLES |= {colour: f"--series-{place}" for place, colour in enumerate(SERIES)}
"""The CSS variable for each colour."""
DIVERGED_MARK = "†"  # beside a row whose seeds include a diverged run
MOST_LINES = len(SERIES)  # training modes that one panel shows as lines; with more, colours would repeat
PAPER_MODES = ("hard", "soft", "fuzzy")  # keep their looks in every study; in grey, their colours are alike
PAPER_DASHES: tuple[Any, ...] = ("-", (0, (6, 1.5)), (0, (6, 1.4, 1.2, 1.4)))
PAPER_MARKS, MARKS = ("o", "s", "^"), ("v", "P", "X", "<", ">", "p")  # of sampled modes; greedy ones are diamonds
BASE_DASHES = (0, (1.2, 1.4))
FILLS = ("full", "none", "bottom", "left", "top", "right")  # of marks, as matplotlib's `fillstyle`
DASHES: tuple[Any, ...] = ((0, (7, 1.2)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))


@dataclass(frozen=True)
class Look:
    colour: str
    dashes: Any  # as matplotlib's `linestyle`
    fill: str = FILLS[0]  # of marks; distinguishes modes of one colour
    marker: str = "o"

    def mark(self, shape: str, size: float, halo: bool = False) -> dict[str, Any]:
        """Returns matplotlib's settings for marks of that shape; with `halo`, full marks have a light edge."""
        full = self.fill == FILLS[0]
        if not full:  # the edge has the mark's colour; small marks need room inside it
            size += -0.7 if halo else 0.9
        return {
            "color": self.colour,
            "marker": shape,
            "markersize": size,
            "fillstyle": "full" if self.fill == "none" else self.fill,
            "markerfacecolor": PAPER if self.fill == "none" else self.colour,
            "markerfacecoloralt": PAPER,
            "markeredgecolor": PAPER if full and halo else self.colour,
            "markeredgewidth": 1.1 if halo else 1.0,
        }

    @property
    def dot(self) -> str:
        """The mark beside a name in a table, as CSS."""
        colour = f"var({VARIABLES[self.colour]})"
        if self.fill == FILLS[0]:
            return f"background: {colour}"
        sides = {"bottom": "top", "left": "right", "top": "bottom", "right": "left"}  # a gradient names its end
        side = sides.get(self.fill)
        half = f"background: linear-gradient(to {side}, {colour} 50%, transparent 50%); " if side else ""
        return f"{half}box-shadow: inset 0 0 0 .12em {colour}"


def looks(training_modes: Iterable[str]) -> dict[str, Look]:
    """Returns colour, dashes, marks and their fill per training mode.

    Modes that are not the paper's take the colours that those leave, then all colours again with other dashes and
    another fill, and so on.
    """
    names = dict.fromkeys(training_modes)
    found = {"base": Look(BASE, BASE_DASHES)}
    of_paper = zip(PAPER_MODES, SERIES, PAPER_DASHES, PAPER_MARKS, strict=False)
    found |= {mode: Look(colour, dashes, marker=marker) for mode, colour, dashes, marker in of_paper}
    left = [*SERIES[len(PAPER_MODES) :], *(found[mode].colour for mode in PAPER_MODES if mode not in names)]
    others = [mode for mode in names if mode not in found]
    for place, (mode, colour) in enumerate(zip(others, chain(left, cycle(SERIES)), strict=False)):
        turn = (place - len(left)) // len(SERIES) + 1
        found[mode] = Look(colour, DASHES[turn % len(DASHES)], FILLS[turn % len(FILLS)], MARKS[place % len(MARKS)])
    return found


def shared_colours(training_modes: Iterable[str]) -> bool:
    """Whether two of these modes have one colour, which a page then has to say."""
    names = set(training_modes)
    colours = [look.colour for mode, look in looks(names).items() if mode in names]
    return len(set(colours)) < len(colours)


def themes() -> dict[str, dict[str, str]]:
    """Returns the CSS variables of the page and its figures: theme ("light", "dark") -> variable -> colour."""
    return {
        "light": {variable: colour for colour, variable in VARIABLES.items()},
        "dark": {variable: DARK[colour] for colour, variable in VARIABLES.items()},
    }


def inline_svg(text: str, name: str) -> str:
    """Returns the svg element alone, for a page that shows many.

    Its ids get the prefix `name`, and its colours become the page's CSS variables.
    """
    svg = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="|url\(#|href="#', lambda match: f"{match[0]}{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
