"""The numbers of `softtok estimators` as tables for a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from softtok.errors import UserError
from softtok.report.terminal import COLUMNS
from softtok.storage.files import read_json

NEVER = "never"
HEADINGS = {
    "norm": "mean\nnorm",
    "bias": "bias\n/ |r|",
    "variance": "variance\n/ |r|²",
    "cosine": "cosine\nof one",
    "rollouts": "rollouts for\ncosine 0.5",
}
TAILS = {"norm": "|g| by rollout", "growth": "|λ| / |g| by row", "residual": "residual of λ by row"}


def read_numbers(path: Path) -> dict[str, Any]:
    """Returns what `softtok estimators --out` wrote. Raises UserError for any other file."""
    try:
        told: dict[str, Any] = read_json(path)
        table(told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what `softtok estimators --out` writes; name that or a run's folder") from error
    return told


def table(told: Mapping[str, Any]) -> str:
    """Returns what was measured as text: estimators with intervals, then the tails."""
    from rich.console import Console

    console = Console(width=COLUMNS, record=True, file=io.StringIO())
    for block in (heading(told), _estimators(told), *notes(told), _tails(told)):
        console.print(block, highlight=False, markup=False)
    return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())


def heading(told: Mapping[str, Any]) -> str:
    """Returns what was measured, in words."""
    reward = "none" if told["reward"] is None else f"{told['reward']:.1f}"
    return (
        f"{told['run']}, {told['policy']}: {told['rollouts']} rollouts of {len(told['prompts'])} prompts x"
        f" {told['samples_per_prompt']} samples, {told['cot_tokens']} CoT tokens each; mean reward {reward}.\n"
        "r: the mean of exact pathwise gradients over the first half; the others are of the second half.\n"
        "Below each number: its 95 % interval."
    )


def notes(told: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a reader has to know of these numbers in particular."""
    if told["reference"]["norm"] is None or any(made["bias"] is None for made in told["estimators"]):
        yield "The reference does not stand out of its noise: nothing can be compared with it. Take more --rollouts."
    if told["top_k"] is not None:
        yield f"top_k: {told['top_k']} is a jump that pathwise gradients miss: the reference has a bias itself."


def number(value: float) -> str:
    """Returns a number with two significant digits, or three if it is large."""
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def count(value: float | None) -> str:
    """Returns a number of rollouts, at least one; None is never."""
    return NEVER if value is None else number(max(1, round(value)))


def _cell(name: str, told: Any) -> str:
    """Returns a number above its interval, or the number alone if it has none."""
    if told is None or isinstance(told, float):
        return "?" if told is None else number(told)
    middle, low, high = map(count if name == "rollouts" else number, told)
    return middle if low == high == NEVER else f"{middle}\n{low} to {high}"


def _estimators(told: Mapping[str, Any]) -> object:
    from rich import box
    from rich.table import Table

    block = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    block.add_column("estimator", no_wrap=True)
    for text in HEADINGS.values():
        block.add_column(text, justify="right", no_wrap=True)
    for made in told["estimators"]:
        block.add_row(made["name"], *(_cell(key, made[key]) for key in HEADINGS))
    return block


def _tails(told: Mapping[str, Any]) -> object:
    from rich import box
    from rich.table import Table

    block = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    block.add_column("tails", no_wrap=True)
    block.add_column("of", no_wrap=True)
    for text in ("50 %", "90 %", "99 %", "largest"):
        block.add_column(text, justify="right")
    exact = f"pathwise K={told['cot_tokens'] - 1}"
    tails = {made["name"]: made["tails"] for made in told["estimators"]} | {exact: told["reference"]["tails"]}
    for key, text in TAILS.items():
        for name, made in tails.items():
            if made.get(key) is not None:
                block.add_row(text, name, *map(number, made[key]))
    return block
