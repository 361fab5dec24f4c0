"""A small configuration that is right, edits of it, and the grid that follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from softtok.config.grid import Grid
from softtok.config.load import load

Edit = Callable[[dict[str, Any]], Any]
BASIC = """
run: [first]
models:
  toy: {toy: {tokenizer: bpe}, prompt: "Q: {question} A:", training: {steps: 20, validation_problems: 8}}
train_sets:
  sums: {toy: {task: sums, problems: 60}, exclude: [sums], training: {max_cot_tokens: 16}}
test_sets:
  sums: {toy: {task: sums, problems: 5}, evaluation: {max_cot_tokens: 20}}
  local: {hub: {path: org/set, split: test}, file: {path: local.jsonl}, question: q, gold: {field: a}}
choice_sets:
  words: {toy: {task: choice, problems: 5}}
training_modes:
  hard: {tokens: hard}
  soft: {tokens: soft, temperature: 0.5, noise_scale: 0.33}
inference_modes:
  hard-greedy: {tokens: hard, temperature: 0.0}
  soft-sample: {tokens: soft, temperature: 0.5, noise_scale: 0.33, samples: 4}
inference_sets:
  two: [hard-greedy, soft-sample]
studies:
  first:
    grid: [{models: [toy], train_sets: [sums]}]
    training_modes: [hard, soft]
    seeds: [0]
    test_sets: [sums]
    choice_sets: [words]
    inference_sets: [two]
"""


def basic() -> dict[str, Any]:
    """Returns a fresh copy of the small configuration."""
    config: dict[str, Any] = yaml.safe_load(BASIC)
    return config


def put(path: str, value: Any) -> Edit:
    """Returns an edit that sets `a/b/0/c`; places in lists are numbers."""

    def edit(config: dict[str, Any]) -> None:
        *way, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
        place: Any = config
        for key in way:
            place = place[key]
        place[last] = value

    return edit


def drop(path: str) -> Edit:
    """Returns an edit that removes `a/b/c`."""

    def edit(config: dict[str, Any]) -> None:
        *way, last = path.split("/")
        place: Any = config
        for key in way:
            place = place[key]
        del place[last]

    return edit


def both(*edits: Edit) -> Edit:
    """Returns an edit that makes several, in order."""
    return lambda config: [edit(config) for edit in edits]


def grid_of(*edits: Edit) -> Grid:
    """Returns the grid of the small configuration after some edits."""
    config = basic()
    for edit in edits:
        edit(config)
    return Grid(load(config))


def hashes(grid: Grid) -> dict[str, set[str]]:
    """Returns the hashes of everything in a grid, by kind."""
    return {
        "data": {data.hash for data in grid.data.values()},
        "models": {model.hash for model in grid.models.values()},
        "runs": {run.hash for run in grid.runs.values()},
        "evaluations": {item.hash for item in grid.evaluations.values()},
        "choices": {item.hash for item in grid.choices.values()},
    }
