"""Random numbers keyed by row, purpose and step, so that a trajectory does not depend on its batch."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

DRAW_BLOCK = 32  # steps drawn at a time: one generator call per row and block instead of one per step


class Draws:
    """Random numbers keyed by (row key, purpose, block of steps), drawn on the model's device."""

    def __init__(
        self, keys: list[str], purpose: str, kind: str, width: int, device: torch.device, block: int = DRAW_BLOCK
    ):
        self.purpose = purpose
        self.seeds = [self._seed(key) for key in keys]
        self.kind, self.steps = kind, block
        self.generator = torch.Generator(device)
        self.drawn = np.full(len(keys), -1)  # the block of each row that `values` holds
        self.values = torch.empty(len(keys), block, width, device=device) if kind != "none" else torch.empty(0)

    def again(self, rows: np.ndarray, steps: np.ndarray) -> torch.Tensor:
        """Returns again what `at` drew for M pairs of row and step, shape (M, width); needs blocks of one step."""
        assert self.steps == 1, "single steps can be drawn again where they were drawn singly"
        drawn = torch.empty(len(rows), 1, self.values.shape[2], device=self.values.device)
        for place, (row, step) in enumerate(zip(rows, steps, strict=True)):
            self._draw(drawn[place], int(row), int(step))
        return drawn[:, 0]

    def restart(self, rows: np.ndarray, keys: list[str]) -> None:
        """Gives these rows other keys, whose steps begin at 0."""
        for row, key in zip(rows, keys, strict=True):
            self.seeds[row] = self._seed(key)
        self.drawn[rows] = -1

    def _seed(self, key: str) -> hashlib.blake2b:
        return hashlib.blake2b(f"{key}|{self.purpose}".encode(), digest_size=8)

    def _draw(self, values: torch.Tensor, row: int, block: int) -> None:
        seed = self.seeds[row].copy()
        seed.update(block.to_bytes(4, "little"))
        self.generator.manual_seed(int.from_bytes(seed.digest(), "little") >> 1)
        if self.kind == "normal":
            values.normal_(generator=self.generator)
        else:
            values.uniform_(generator=self.generator)

    def at(self, steps: int | np.ndarray, rows: np.ndarray) -> torch.Tensor | None:
        """Returns the draws of these rows (by number) at this step, or at one of its own for each, shape (n, width).

        They are standard normals or uniforms in [0, 1), or None for kind "none".
        """
        if self.kind == "none":
            return None
        block, offset = divmod(steps, self.steps)
        late = np.flatnonzero(self.drawn[rows] != block)
        for row, number in zip(rows[late], np.broadcast_to(block, rows.shape)[late], strict=True):
            self._draw(self.values[row], row, int(number))
        self.drawn[rows] = block
        if isinstance(offset, int) and len(rows) == len(self.seeds):
            return self.values[:, offset]
        return self.values[torch.from_numpy(rows), offset if isinstance(offset, int) else torch.from_numpy(offset)]
