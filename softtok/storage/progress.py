"""Shows the progress of a job: a bar on a terminal, a plain line every 15 seconds in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

LINE_EVERY_S = 15.0


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yields `advance(count, **facts)`; facts are numbers or words to show beside the bar or on the log line."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, completed=done, facts="")
            yield lambda count, **facts: bar.update(task, advance=count, facts=_text(facts))
        return
    start = last = time.monotonic()

    def advance(count: int, **facts: object) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= LINE_EVERY_S or done >= total:
            last = now
            print(f"{what}: {done}/{total}, {now - start:.0f} s {_text(facts)}".rstrip(), file=sys.stderr, flush=True)

    yield advance


def _text(facts: dict[str, object]) -> str:
    return " ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )
