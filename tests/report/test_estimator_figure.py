"""The numbers of `softtok estimators` fit a terminal, and the figure draws them where they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softtok.errors import UserError
from softtok.report.estimator_figure import draw, save
from softtok.report.estimator_table import read_numbers, table
from softtok.report.terminal import COLUMNS
from softtok.storage.files import write_json
from tests.support.figures import points_of, visible_texts

NAMES = ("score", "pathwise K=0", "pathwise K=1", "pathwise K=2", "answer only")
ROLLOUTS = np.geomspace(1, 10_000, 41).tolist()


def made(name: str, level: float, rollouts: list[float | None]) -> dict[str, Any]:
    """Returns numbers of one estimator; `level` tells it from the others."""
    curve = [[level * (1 - 1 / (1 + n)) for n in ROLLOUTS] for _ in range(3)]
    tails = {"norm": [13_300.0, 17_000.0, 18_800.0, 190_000.0]}
    if "K=" in name:
        tails |= {"growth": [1.0, 2.6, 60.0, 15_600.0], "residual": [0.0002, 0.023, 0.76, 2.0]}
    return {
        "name": name, "norm": 13_700.0 * level, "bias": [level, 0.0, 12.345], "bias_square": [level**2, -1.0, 152.0],
        "variance": [937.0 * level, 278.4, 31_500.0], "cosine": [0.025, -0.0614, 0.11], "rollouts": rollouts,
        "curve": curve, "tails": tails,
    }  # fmt: skip


def numbers(**parts: Any) -> dict[str, Any]:
    """Returns what a measurement tells; parts by name change it."""
    needed: list[list[float | None]] = [
        [1234.4, 240.2, None],
        [0.2, 0.1, 3.0],
        [None, 5.0, None],
        [None] * 3,
        [7.0] * 3,
    ]
    estimators = [made(name, 0.9 - 0.1 * i, needed[i]) for i, name in enumerate(NAMES)]
    told = {
        "run": "results/runs/toy/sums/soft/seed0-ba159260", "policy": "checkpoint", "prompts": ["a", "b"],
        "samples_per_prompt": 32, "rollouts": 64, "cot_tokens": 24, "seed": 0, "top_k": None, "reward": 32.2,
        "made_on": "cpu", "reference": {"norm": 400.0, "tails": estimators[1]["tails"]}, "estimators": estimators,
        "curve_rollouts": ROLLOUTS,
    }  # fmt: skip
    return told | parts


def unresolved() -> dict[str, Any]:
    """Returns what is told where the reference is lost in its noise."""
    empty = dict.fromkeys(("bias", "bias_square", "variance", "cosine", "rollouts", "curve"))
    estimators = [of | empty for of in numbers()["estimators"]]
    return numbers(estimators=estimators, reference={"norm": None, "tails": estimators[1]["tails"]}, reward=None)


def row(text: str, name: str) -> list[str]:
    """Returns the words of an estimator's line and of the line below it."""
    lines = text.splitlines()
    place = next(i for i, line in enumerate(lines) if line.strip().startswith(f"{name} "))
    return [*lines[place].strip().removeprefix(name).split(), "|", *lines[place + 1].split()]


def test_the_table_says_every_number_within_a_terminal() -> None:
    text = table(numbers())
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert "…" not in text
    assert row(text, "score")[:5] == ["12,300", "0.9", "843", "0.025", "1,230"]
    assert row(text, "score")[6:] == "0 to 12 278 to 31,500 -0.061 to 0.11 240 to never".split()
    assert row(text, "pathwise K=0")[4] == "1", "a part of a rollout cannot be taken"
    assert row(text, "pathwise K=1")[4] == "never"
    assert row(text, "pathwise K=1")[-3:] == ["5", "to", "never"]
    assert row(text, "pathwise K=2")[-1] == "0.11", "where no end of the interval is a number, there is none"
    assert "pathwise K=23" in text, "the reference has tails too"
    assert "noise" not in text


def test_the_table_says_what_it_cannot_say() -> None:
    text = table(unresolved())
    assert "does not stand out of its noise" in text
    assert row(text, "score")[:5] == ["12,300", "?", "?", "?", "?"]
    assert "mean reward none" in text
    assert "top_k: 5 is a jump" in " ".join(table(numbers(top_k=5)).split())


def test_the_figure_draws_the_numbers(tmp_path: Path) -> None:
    told = numbers()
    figure = draw(told)
    left, right = figure.axes
    curves = {str(line.get_label()): points_of(line) for line in left.lines if str(line.get_label()) in NAMES}
    assert list(curves) == list(NAMES)
    for of in told["estimators"]:
        assert np.allclose(curves[of["name"]], np.transpose([ROLLOUTS, of["curve"][0]]))
    assert any(np.allclose(points_of(line)[:, 1], 0.5) for line in left.lines), "the cosine to reach is marked"
    marks = [points_of(line)[0] for line in right.lines if line.get_marker() in ("o", "D")]
    wanted = [value for of in told["estimators"] for value in (of["bias"][0], math.sqrt(of["variance"][0]))]
    assert np.allclose([x for x, _ in marks], wanted)
    assert np.allclose(np.round([y for _, y in marks]), np.repeat(range(5), 2))
    assert {text.get_text() for text in visible_texts(figure)} >= {*NAMES, "bias / |r|", "95 % interval"}
    for ending in ("png", "svg"):
        save(figure, tmp_path / f"one.{ending}")
        save(draw(told), tmp_path / f"two.{ending}")
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_a_figure_of_nothing_is_drawn_too(tmp_path: Path) -> None:
    save(draw(unresolved()), tmp_path / "figure.png")


def test_numbers_are_read_again_as_they_were_written(tmp_path: Path) -> None:
    write_json(tmp_path / "told.json", numbers())
    assert table(read_numbers(tmp_path / "told.json")) == table(numbers())
    for text in ("", "[]", "{}", '{"run": 1}', "\0"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(UserError, match="is not what"):
            read_numbers(tmp_path / "other.json")
