"""Places in long work at which a job may end early.

The work only says where that is possible: in each layer of the model, and while it waits for the reward. What asks for
it (`locks.Interruption`) is not known there. The request belongs to the context of a thread and not to arguments, for
these places lie in four rooms, below functions that have nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_end_if_asked: ContextVar[Callable[[], None] | None] = ContextVar("end_if_asked", default=None)


def may_end_here() -> None:
    """Ends the job by an exception if that was asked for; else it takes a tenth of a microsecond."""
    if (end_if_asked := _end_if_asked.get()) is not None:
        end_if_asked()


@contextmanager
def ended_by(end_if_asked: Callable[[], None] | None) -> Iterator[None]:
    """Lets work in the block end where `end_if_asked` raises; with None it comes to its end."""
    before = _end_if_asked.set(end_if_asked)
    try:
        yield
    finally:
        _end_if_asked.reset(before)
