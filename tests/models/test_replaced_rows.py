"""Attention of rows that begin in the places of others: each sees its own prompt and what it wrote itself."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from softtok.models.attention import Groups, RowLayer, grouped_attention
from tests.support.damage import times

HEADS, WIDTH, LENGTH = 4, 8, 9


@dataclass
class Row:
    """What one row should see: keys and values of its prompt, and of itself."""

    prompt: int
    keys: list[torch.Tensor] = field(default_factory=list)  # (J, positions, K) each
    values: list[torch.Tensor] = field(default_factory=list)
    age: int = 0

    def see(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys.append(keys)
        self.values.append(values)

    def attend(self, query_H1K: torch.Tensor) -> torch.Tensor:
        keys, values = torch.cat(self.keys, 1), torch.cat(self.values, 1)
        return scaled_dot_product_attention(query_H1K[None], keys[None], values[None], enable_gqa=True)[0]


class Both:
    """The layer in question beside rows that know themselves what they should see."""

    def __init__(self, key_heads: int, seed: int):
        self.key_heads, self.chance = key_heads, random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.prompts: list[tuple[torch.Tensor, torch.Tensor]] = []  # without padding
        keys, values, mask = self.more_prompts(3)
        counts = [self.chance.randint(1, 3) for _ in range(3)]
        self.groups = Groups(mask, torch.tensor(counts))
        self.layer = RowLayer(keys, values, self.groups, LENGTH)
        self.rows = [self.begin(b) for b, count in enumerate(counts) for _ in range(count)]

    def states(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, WIDTH, generator=self.generator)

    def more_prompts(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        lengths = [self.chance.randint(1, 6) for _ in range(count)]
        shape = count, self.key_heads, max(lengths)
        keys, values, mask = self.states(*shape), self.states(*shape), torch.zeros(count, max(lengths)).bool()
        for b, length in enumerate(lengths):
            mask[b, shape[2] - length :] = True
            self.prompts.append((keys[b, :, shape[2] - length :], values[b, :, shape[2] - length :]))
        return keys, values, mask

    def begin(self, prompt: int) -> Row:
        row = Row(prompt)
        row.see(*self.prompts[prompt])
        return row

    def step(self) -> None:
        n = len(self.rows)
        keys, values, query = self.states(n, self.key_heads, 1), self.states(n, self.key_heads, 1), self.states(n, 4, 1)
        module: Any = torch.nn.Module()
        got, _ = grouped_attention(module, query, *self.layer.update(keys, values), None, WIDTH**-0.5)
        for row, own_keys, own_values, asked, found in zip(self.rows, keys, values, query, got, strict=True):
            row.see(own_keys, own_values)
            row.age += 1
            torch.testing.assert_close(found, row.attend(asked).transpose(0, 1), rtol=1e-5, atol=1e-6)

    def replace(self) -> None:
        """Gives the places of all rows without room, and of some others, to rows of the newest and of new prompts."""
        some = [i for i, row in enumerate(self.rows) if row.age == LENGTH or self.chance.random() < 0.3]
        if not some:
            return
        newest = len(self.prompts) - 1
        owners = sorted(self.chance.randint(0, 2) for _ in some)
        owners = [sorted(set(owners) | {0}).index(owner) for owner in owners]
        new = max(owners)
        *further, mask = self.more_prompts(new) if new else (torch.zeros(0, 0).bool(),)
        self.groups.replace(torch.tensor(some), torch.tensor(owners), mask, self.layer.written)
        self.layer.replace((further[0], further[1]) if new else None)
        for i, owner in zip(some, owners, strict=True):
            self.rows[i] = self.begin(newest + owner)

    def drop(self) -> None:
        kept = sorted(self.chance.sample(range(len(self.rows)), self.chance.randint(1, len(self.rows))))
        self.rows = [self.rows[i] for i in kept]
        self.groups.keep(torch.tensor(kept))
        self.layer.keep(torch.tensor(kept))


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_rows_see_what_is_theirs(key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of any ages, in places of longer and shorter ones, whose memory is NaN before it is written."""
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(torch.nan))
    replaced = 0
    for seed in range(times(20)):
        both = Both(key_heads, seed)
        for _ in range(40):
            both.replace()
            replaced += both.groups.lag_n is not None
            both.step()
            both.step() if max(row.age for row in both.rows) < LENGTH else None
        both.drop()
        while max(row.age for row in both.rows) < LENGTH:
            both.step()
    assert replaced > 100


def test_rows_of_one_age_are_written_side_by_side() -> None:
    """As in training: without a mask, and without an index for each row."""
    both = Both(2, 0)
    both.step()
    assert both.groups.lag_n is None and both.layer.unseen is None
    everyone = torch.arange(len(both.rows))
    both.groups.replace(everyone, torch.zeros_like(everyone), torch.zeros(0, 0).bool(), both.layer.written)
    both.layer.replace(None)
    assert both.groups.lag_n is None and both.layer.written == 0 and both.groups.prompts == 1
