"""Checks of how questions are asked: what takes examples from a train set, and what a toy cannot read.

Every function raises UserError, one line that names the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Literal

from softtok.config.grid import worked_rule
from softtok.config.messages import at, config_error
from softtok.config.parts import Asks, ShotsOf
from softtok.config.schema import Block, Config

ASKING: tuple[Literal["models", "train_sets", "test_sets"], ...] = ("models", "train_sets", "test_sets")
"""Sections whose entries say how questions are asked."""


def taken_train_sets(config: Config) -> Iterator[tuple[str, str]]:
    """Yields each train set that another entry takes texts from, after the key that names it."""
    for name, model in config.models.items():
        if model.toy and model.toy.text is not None:
            yield at("models", name, "toy", "text"), model.toy.text
    for where, shots in shown_train_sets(config):
        yield f"{where}.train_set", shots.train_set


def shown_train_sets(config: Config) -> Iterator[tuple[str, ShotsOf]]:
    """Yields what says that examples are taken from a train set, after its key."""
    for section in ASKING:
        for name, entry in getattr(config, section).items():
            if isinstance(entry.shots, ShotsOf):
                yield at(section, name, "shots"), entry.shots


def of_blocks(config: Config, blocks: Iterable[Block]) -> set[str]:
    """Returns the train sets that examples are taken from in these blocks."""
    places = ((section, name) for block in blocks for section in ASKING for name in getattr(block, section) or [])
    asked: list[Asks] = [getattr(config, section)[name] for section, name in places]
    return {entry.shots.train_set for entry in asked if isinstance(entry.shots, ShotsOf)}


def check_prompts(config: Config) -> None:
    """Checks all entries and studies, whose names are known to exist."""
    for where, shots in shown_train_sets(config):
        _has_so_many(config, where, shots)
    for study in config.studies.values():
        for block in study.blocks():
            _read_by_toys(config, block)


def _has_so_many(config: Config, where: str, shots: ShotsOf) -> None:
    """A train set must have worked text, and as many problems as are to be shown."""
    name, entry = shots.train_set, config.train_sets[shots.train_set]
    if worked_rule(entry, entry.source(config.data_root)) is None:
        raise config_error(
            f"{where}.train_set",
            f"train set {name!r} has no worked text; name its field there: `worked: {{field: ...}}`",
        )
    if entry.limit is not None and shots.k > entry.limit:
        raise config_error(f"{where}.k", f"{shots.k} are more than the {entry.limit} problems of train set {name!r}")


def _read_by_toys(config: Config, block: Block) -> None:
    """A toy has no chat template, and one of the words of toy problems reads no other text."""
    sets = [(section, name) for section in ASKING[1:] for name in getattr(block, section) or []]
    for model, (section, name) in product(block.models or [], sets):
        toy, entry, own = config.models[model].toy, getattr(config, section)[name], config.models[model]
        if toy is None:
            continue
        if entry.chat_template:
            raise config_error(at(section, name, "chat_template"), f"model {model!r} is a toy, which has none")
        for key in ("system", "shots") if toy.tokenizer == "words" else ():
            of_set = getattr(entry, key)
            if getattr(own, key) if of_set is None else of_set:
                raise config_error(
                    at(*(("models", model) if of_set is None else (section, name)), key),
                    f"model {model!r} knows the words of toy problems only; take one with toy: {{tokenizer: bpe}}",
                )
