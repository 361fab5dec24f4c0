"""Decode steps: all active rows advance by one position.

`Decoder` calls the model at every step. On a GPU this leaves the device idle: a step of a model of 3B parameters is
over a thousand kernels, and most of them take less time than their launch from Python. `GraphDecoder`
(`runtime.cuda_graphs`) records a step as a CUDA graph and then replays it. A replay must read from tensors what changes
from step to step: where a row writes, and which of its own positions it may look at. It always attends to a whole
window of positions, and masks those that are not written yet. A graph is valid for one number of rows and one window
size; when either changes, the step is recorded again.

Shapes: B prompts, n active rows, L positions that a row can write, W of them in the window, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

from softtok.errors import UserError
from softtok.models.attention import Groups, RowLayer
from softtok.models.beginnings import blocks
from softtok.storage.breaks import may_end_here

if TYPE_CHECKING:
    from softtok.models.language_model import LanguageModel, Prefilled

WINDOW = 128
"""The attention window grows in steps of 128: re-recording costs one step, unused positions slow every step."""


class Decoder:
    """Feeds all active rows through the model, one position per step."""

    drop_share = 1 / 8  # once this share of the active rows has finished, dropping them is worth the copies
    replaces = True  # other rows may begin in the places of finished ones

    def __init__(
        self,
        lm: LanguageModel,
        prompt_cache: Cache,
        prompt_mask_BP: torch.Tensor,
        samples: int | torch.Tensor,
        length: int,
    ):
        """`samples` as in `Groups`; `length` is the largest number of positions that a row writes.

        The prompts' cache is emptied layer by layer, so that at most one layer is held twice.
        """
        self.lm, self.groups, self.length = lm, Groups(prompt_mask_BP, samples), length
        self.layers: list[RowLayer] = []
        while prompt_cache.layers:
            self.layers.append(self._layer(prompt_cache.layers.pop(0)))
        self.cache = Cache(layers=list(self.layers))

    def _layer(self, prompts: Any) -> RowLayer:
        *common, own = blocks(prompts)
        return RowLayer(*own, self.groups, self.length, *common)

    def step(self, x_nD: torch.Tensor, positions_n: torch.Tensor) -> torch.Tensor:
        """Feeds every row one position; returns final hidden states (n, D), which the next step may overwrite."""
        return self.lm.hidden(x_nD[:, None], None, positions_n[:, None], self.cache)[:, 0]

    def keep(self, rows: torch.Tensor) -> None:
        """Drops all rows but these (ascending places among the active rows)."""
        self.groups.keep(rows)
        for layer in self.layers:
            layer.keep(rows)

    def replace(self, rows: torch.Tensor, owners: torch.Tensor, further: Prefilled | None) -> None:
        """Begins other rows in these places: of the newest prompt (owner 0), and of further ones, which follow it.

        The further prompts' cache is emptied.
        """
        mask_BP = self.groups.padding_BP[:0] if further is None else further.mask_BP
        self.groups.replace(rows, owners, mask_BP, self.layers[0].written)
        for layer in self.layers:
            layer.replace(None if further is None else blocks(further.cache.layers.pop(0))[-1])


class GraphDecoder(Decoder):
    """A decoder that records a step as a CUDA graph and replays it.

    Rows have one age, since all write at the same place.
    """

    replaces = False
    drop_share = 1 / 2  # a step takes about as long as reading the weights, and dropping rows costs a recording
    steps = 0
    inputs: tuple[torch.Tensor, ...] = ()
    replay: Callable[[], torch.Tensor] | None = None

    @cached_property
    def window(self) -> Window:
        """Which positions the recorded step sees; all layers share one object."""
        return Window(self.length, self.lm.device)

    def _layer(self, prompts: Any) -> RowLayer:
        *common, own = blocks(prompts)
        return WindowLayer(self.window, *own, self.groups, self.length, *common)

    def step(self, x_nD: torch.Tensor, positions_n: torch.Tensor) -> torch.Tensor:
        may_end_here()  # a replay calls no layer
        if self.window.move_to(self.steps):
            self.replay = None
        if self.replay is None:
            self.inputs = (x_nD.clone(), positions_n.clone())
            try:
                self.replay = record(partial(super().step, *self.inputs), self.lm.device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                why = " ".join(str(error).split())[:200]
                raise UserError(
                    f"model {self.lm.name}: its decode step cannot be recorded as a CUDA graph ({why});"
                    " set runtime.cuda_graphs to false"
                ) from error
        for static, given in zip(self.inputs, (x_nD, positions_n), strict=True):
            static.copy_(given)
        hidden_nD = self.replay()
        self.steps += 1
        for layer in self.layers:
            layer.written = self.steps
        return hidden_nD

    def keep(self, rows: torch.Tensor) -> None:
        self.replay = None
        super().keep(rows)


class Window:
    """Where all rows write in this step and what they may look at, as tensors that recorded steps read."""

    def __init__(self, length: int, device: torch.device):
        self.length, self.size = length, 0
        self.place_1 = torch.zeros(1, dtype=torch.long, device=device)
        self.unwritten_L = torch.ones(length, dtype=torch.bool, device=device)

    def move_to(self, step: int) -> bool:
        """Moves the place that is written to this step; returns whether the window had to grow."""
        self.place_1.fill_(step)
        self.unwritten_L[step] = False
        grows = step == self.size
        if grows:
            self.size = min(self.size + WINDOW, self.length)
        return grows


class WindowLayer(RowLayer):
    """One layer's keys and values, which are written and read as the window says."""

    def __init__(self, window: Window, *prompts: Any):
        super().__init__(*prompts)
        self.window = window
        assert self.values is not None
        self.values.zero_()  # an unwritten value has weight 0, but 0 times uninitialised memory may be NaN

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Writes one position; see `RowLayer`."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.window.place_1, key_states.transpose(0, 1))
        self.values.index_copy_(2, self.window.place_1, value_states.transpose(0, 1))
        return self, self

    @property
    def seen(self) -> int:
        return self.window.size

    @property
    def unseen(self) -> torch.Tensor | None:
        return self.window.unwritten_L[: self.window.size]


def record(once: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor]:
    """Records `once` as a CUDA graph; returns a function that replays it and returns the same tensor each time.

    Raises RuntimeError if `once` does something that cannot be recorded, such as waiting for the device.
    """
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            once()  # libraries initialise themselves at the first call, which cannot be recorded
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = once()

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay
