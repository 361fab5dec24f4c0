"""Writes a training's saves in a thread, from a copy of its state, so that training goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from softtok.models.devices import say
from softtok.storage.machine import room_bytes

MOST_OF_ROOM = 0.8  # of the memory that is left, that a copy may take


def copy_if_it_fits(state: dict[str, Any]) -> dict[str, Any] | None:
    """Returns a copy of an optimizer's state in the host's memory; None if there is no room for one.

    It takes 12 bytes a parameter, until it is written: fp32 weights and two moments.
    """
    needed = sum(tensor.nbytes for tensor in _tensors(state))
    size = f"a copy of weights and moments of {needed / 1e6:,.0f} MB"
    if needed <= MOST_OF_ROOM * room_bytes():
        try:
            copy: dict[str, Any] = _copied(state)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):
                raise
        else:
            say(f"training goes on while it is saved, from {size} in the host's memory")
            return copy
    say(f"training waits while it is saved: {size} does not fit into the host's memory")
    return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


class Writing:
    """One save at a time, which a thread writes; `best` is the folder of weights that it names, until it is settled.

    Only the training itself deletes files, and only after it has seen that a save is written.
    """

    def __init__(self) -> None:
        self.best: Path | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], None], best: Path) -> None:
        """Lets a thread write; the save before must be settled."""
        assert self._thread is None, "`settled` comes first"

        def run() -> None:
            try:
                write()
            except BaseException as error:  # it belongs to the training, which raises it
                self._error = error

        self.best = best
        self._thread = threading.Thread(target=run, name="save")
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a save has begun that is not settled."""
        return self._thread is not None

    def join(self) -> None:
        """Waits until nothing is being written."""
        if self._thread is not None:
            self._thread.join()

    def settled(self, wait: bool) -> Path | None:
        """Returns the best weights that a save names which has now been written; None if there is no such save.

        Raises what writing it raised. If it is still being written, waits for it or returns None.
        """
        if self._thread is None or (not wait and self._thread.is_alive()):
            return None
        self._thread.join()
        error, best = self._error, self.best
        self._thread, self._error, self.best = None, None, None
        if error is not None:
            raise error
        return best
