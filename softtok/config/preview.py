"""Finds a data set of config.yaml by its name for `softtok preview`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from softtok.config.checks import refer
from softtok.config.grid import Grid
from softtok.config.jobs import Model
from softtok.config.load import read
from softtok.config.messages import nearest
from softtok.config.schema import DATA_SECTIONS, Config
from softtok.errors import UserError
from softtok.problems.answer_format import PAPER_FORMAT
from softtok.problems.preview import Shown, Writer, examples, preview
from softtok.problems.prompting import Asking, Prompting, asking
from softtok.problems.reward import Grading
from softtok.problems.spec import DataSpec


def preview_lines(
    files: Sequence[Path],
    name: str,
    model: str | None,
    data_root: str | None,
    writer_of: Callable[[Model], Writer | None] = lambda _: None,
) -> Iterator[str]:
    """Yields the preview of the data sets of this name, in the prompts of a model. Raises UserError.

    `writer_of` finds a model's tokenizer, which takes a while. It is asked if the model is named, or has a chat
    template.
    """
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
        used = grid.model(user) if user else None
        of_model = used.spec.asks if used else Prompting()
        shown = Shown(asking_of(grid.prompting(data), of_model, grading, root))
        if used and grading is not None and (model is not None or shown.asking.chat):
            shown = Shown(shown.asking, writer_of(used), user)
        yield from preview(data.spec, grading, shown, root)


def asking_of(of_set: Prompting | None, of_model: Prompting, grading: Grading | None, root: Path | None) -> Asking:
    """Returns how the questions of a data set are asked, with examples that nothing has prepared yet."""
    resolved = (of_set or Prompting()).over(of_model)
    if isinstance(resolved.shots, DataSpec):
        resolved = resolved.model_copy(update={"shots": list(examples(resolved.shots, root))})
    return asking(resolved, of_model, grading.answer_format if grading else PAPER_FORMAT)


def first_user(config: Config, section: str, name: str) -> str | None:
    """Returns the first model that a study uses with this data set, or None."""
    for study in config.studies.values():
        for block in study.blocks():
            if name in (getattr(block, section) or []) and block.models:
                return block.models[0]
    return None
