"""Finds a data set of config.yaml by its name for `softtok preview`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from softtok.config.checks import refer
from softtok.config.grid import Grid
from softtok.config.load import read
from softtok.config.messages import nearest
from softtok.config.schema import DATA_SECTIONS, Config
from softtok.errors import UserError
from softtok.problems.preview import preview
from softtok.problems.prompt import PROMPT


def preview_lines(files: Sequence[Path], name: str, model: str | None, data_root: str | None) -> Iterator[str]:
    """Yields the preview of the data sets of this name, in the prompt of a model. Raises UserError."""
    grid = Grid(read(list(files), (), data_root))
    config = grid.config
    if model is not None:
        refer(config, "models", [model], "--prompt-of")
    found = grid.sets(name)
    if not found:
        known = [known for section in DATA_SECTIONS.values() for known in getattr(config, section)]
        raise UserError(f"there is no data set {name!r}{nearest(name, dict.fromkeys(known))}")
    root = Path(config.data_root) if config.data_root is not None else None
    for place, (data, grading) in enumerate(found):
        yield from [""] * (place > 0)
        user = model or first_user(config, DATA_SECTIONS[data.kind], name)
        template = (config.models[user].prompt if user else None) or PROMPT
        yield from preview(data.spec, grading, template, root)


def first_user(config: Config, section: str, name: str) -> str | None:
    """Returns the first model that a study uses with this data set, or None."""
    for study in config.studies.values():
        for block in study.blocks():
            if name in (getattr(block, section) or []) and block.models:
                return block.models[0]
    return None
