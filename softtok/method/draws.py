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
        self.seeds = [hashlib.blake2b(f"{key}|{purpose}".encode(), digest_size=8) for key in keys]
        self.kind, self.steps = kind, block
        self.generator = torch.Generator(device)
        self.drawn = -1  # the block that `values` holds
        self.values = torch.empty(len(keys), block, width, device=device) if kind != "none" else torch.empty(0)

    def again(self, rows: np.ndarray, steps: np.ndarray) -> torch.Tensor:
        """Returns again what `at` drew for M pairs of row and step, shape (M, width); needs blocks of one step."""
        assert self.steps == 1, "single steps can be drawn again where they were drawn singly"
        drawn = torch.empty(len(rows), 1, self.values.shape[2], device=self.values.device)
        for place, (row, step) in enumerate(zip(rows, steps, strict=True)):
            self._draw(drawn[place], int(row), int(step))
        return drawn[:, 0]

    def _draw(self, values: torch.Tensor, row: int, block: int) -> None:
        seed = self.seeds[row].copy()
        seed.update(block.to_bytes(4, "little"))
        self.generator.manual_seed(int.from_bytes(seed.digest(), "little") >> 1)
        if self.kind == "normal":
            values.normal_(generator=self.generator)
        else:
            values.uniform_(generator=self.generator)

    def at(self, step: int, rows: np.ndarray) -> torch.Tensor | None:
        """Returns the draws of these rows (by original number) at this step, shape (n, width).

        They are standard normals or uniforms in [0, 1), or None for kind "none". From call to call, `step` may only
        grow and `rows` only shrink.
        """
        if self.kind == "none":
            return None
        block, offset = divmod(step, self.steps)
        if block != self.drawn:
            self.drawn = block
            for row in rows:
                self._draw(self.values[row], row, block)
        return self.values[:, offset] if len(rows) == len(self.seeds) else self.values[torch.from_numpy(rows), offset]
