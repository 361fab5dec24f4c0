"""Trajectories of any number of prompts, as evaluation and validation need them: finished rows make room for others.

The rows wait in one queue, those of short prompts first. As many as there is room for are begun; when enough of them
are finished, the next ones begin in their places. So the rows side by side differ in age, and no batch waits for its
last row. What a row becomes depends on none of this (`rollout.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from softtok.config.settings import SizeSettings
from softtok.method.rollout import ActiveRows
from softtok.method.trajectories import Batch, Policy, Rollout, Rows
from softtok.models.beginnings import common_tokens
from softtok.models.language_model import begin

Finished = list[tuple[int, Rollout]]
"""Prompts whose samples are all finished: their numbers, and a rollout of each."""


class Room(NamedTuple):
    """How much is held at one time."""

    rows: int
    positions: int  # of prompts and rows

    @classmethod
    def of(cls, sizes: SizeSettings) -> Room:
        """Returns the room that the settings give."""
        return cls(sizes.rollout_rows, sizes.rollout_tokens)


@torch.inference_mode()
def stream(policy: Policy, batch: Batch, room: Room) -> Iterator[Finished]:
    """Generates the trajectories of a batch of any size; yields its prompts as they are finished."""
    waiting = Queue(policy, batch, room)
    beginning = begin(policy.lm, batch.prompts) if batch.prompts else None
    while waiting.rows:
        active = ActiveRows(policy, waiting.begin(waiting.places), beginning=beginning)
        refills = active.decoder.replaces
        while True:
            if refills and waiting.rows and active.due:
                places = np.flatnonzero(active.finished)[: len(waiting.rows)]
                active.replace(waiting.begin(len(places), active.rows[places]), places)
            all_finished = active.advance()
            if finished := waiting.finish(active):
                yield finished
            if all_finished and not (refills and waiting.rows):
                break
            if active.due and not (refills and waiting.rows):
                active.drop()
            if not all_finished:
                active.decode()


class Queue:
    """The rows of a batch that have not begun, and the unfinished prompts of those that have."""

    def __init__(self, policy: Policy, batch: Batch, room: Room):
        self.policy, self.batch = policy, batch
        order = sorted(range(len(batch.prompts)), key=lambda b: len(batch.prompts[b]))
        self.rows = [(b, g) for b in order for g in range(batch.samples)]  # prompt and sample
        common = common_tokens(batch.prompts)
        most = max(map(len, batch.prompts), default=0) - common + policy.most_steps
        # Each row may be the last one of its prompt. What all prompts begin with counts once.
        self.places = min(max(1, min(room.rows, (room.positions - common) // most)), batch.rows)
        self.newest = -1  # the prompt that began last
        self.held: list[tuple[int, int]] = []  # by place
        self.made: dict[int, Rollout] = {}
        self.missing: dict[int, int] = {}  # samples of these prompts that are not finished

    def begin(self, count: int, places: np.ndarray | None = None) -> Rows:
        """Takes the next rows from the queue, in these places of a rollout; None: in its first ones.

        Owners count from the prompt that began last, if there are places of a rollout, for more of its rows may follow.
        """
        next_rows, self.rows = self.rows[:count], self.rows[count:]
        prompts = list(dict.fromkeys(b for b, _ in next_rows))
        if places is None:
            self.held, known = next_rows, prompts
        else:
            for place, row in zip(places, next_rows, strict=True):
                self.held[place] = row
            known = [self.newest, *(b for b in prompts if b != self.newest)]
            prompts = known[1:]
        self.newest = known[-1]
        for b in prompts:
            if b not in self.made:
                self.made[b] = Rollout.empty(self.policy, [self.batch.prompts[b]], self.batch.samples)
                self.missing[b] = self.batch.samples
        number = {b: i for i, b in enumerate(known)}
        keys = [self.batch.keys[b * self.batch.samples + g] for b, g in next_rows]
        owners = np.array([number[b] for b, _ in next_rows])
        return Rows([self.batch.prompts[b] for b in prompts], owners, keys, self.batch.watch)

    def finish(self, active: ActiveRows) -> Finished:
        """Takes over the rows that have just ended; returns the prompts that are finished by that."""
        finished: Finished = []
        for place in active.rows[active.ended]:
            b, g = self.held[place]
            self.made[b].take(g, active.out, place)
            self.missing[b] -= 1
            if not self.missing[b]:
                del self.missing[b]
                finished.append((b, self.made.pop(b)))
        return finished
