"""Decoding attention in which the samples of a prompt share its keys and values, and all prompts their beginning's.

Every prompt's keys and values exist once, and the queries of all its samples are multiplied by them in one matrix
product. Those of what all prompts begin with (`beginnings.py`) exist once, for one product with the queries of all
rows. Each row has only its own positions to itself. Plain batched decoding copies the prompt for every sample, which
costs G times the memory and, on a CPU, about four times the attention time (256 rows of 32 samples, prompts of 45 to 70
tokens). This attention is registered with transformers; all other attention goes through PyTorch's
scaled_dot_product_attention.

Shapes: B prompts that have active rows, n active rows, S the largest number of active rows of one prompt, M = B * S
places for rows (some stay empty if a prompt has fewer), H query heads, J key heads, R = H / J query heads per key head,
C positions that all prompts begin with, P prompt positions behind them, L own positions that a row can write, T own
positions written so far, K head width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from softtok.models.beginnings import States
from softtok.storage.breaks import may_end_here

NAME = "softtok_grouped"


class Groups:
    """Which prompt each active row belongs to, and its place among that prompt's rows. All layers share one object."""

    def __init__(self, prompt_mask_BP: torch.Tensor, samples: int | torch.Tensor):
        """`samples` is how many rows each prompt has, (B,) if they differ; rows are in the order of their prompts."""
        self.padding_BP = ~prompt_mask_BP
        self.owner_n = torch.arange(len(prompt_mask_BP), device=prompt_mask_BP.device).repeat_interleave(samples)
        # How many positions fewer each row has written than the oldest; None if all have written as many.
        self.lag_n: torch.Tensor | None = None
        self._lay_out()

    def keep(self, rows: torch.Tensor) -> None:
        """Drops all rows but these (ascending places among the active rows), and prompts without any row left."""
        self.owner_n = self.owner_n[rows]
        self.lag_n = None if self.lag_n is None else self.lag_n[rows]
        self._lay_out()

    def replace(self, rows: torch.Tensor, owners: torch.Tensor, mask_BP: torch.Tensor, written: int) -> None:
        """Gives rows to the newest prompt (owner 0) and to further ones; the oldest row has written so many positions.

        `mask_BP` is of the further prompts. Prompts without any row left are dropped.
        """
        width, lag_n = max(self.padding_BP.shape[1], mask_BP.shape[1]), self.lag_n
        self.padding_BP = torch.cat([widened(x, width, value=True) for x in (self.padding_BP, ~mask_BP)])
        self.owner_n = self.owner_n.index_copy(0, rows, self.prompts - 1 + owners)
        lag_n = torch.zeros_like(self.owner_n) if lag_n is None else lag_n
        self.lag_n = lag_n.index_fill(0, rows, written)
        self._lay_out()

    def _lay_out(self) -> None:
        self.kept_B, self.owner_n = self.owner_n.unique(return_inverse=True)  # places before this call
        self.padding_BP = self.padding_BP[self.kept_B]
        padding_B1P = self.padding_BP[:, None]
        self.bias_B1P = torch.zeros_like(padding_B1P, dtype=torch.float32).masked_fill_(padding_B1P, -torch.inf)
        counts_B = torch.bincount(self.owner_n)
        self.prompts, self.samples = len(counts_B), int(counts_B.max())
        self.row_n = torch.arange(len(self.owner_n), device=counts_B.device)
        order_n = self.owner_n.argsort(stable=True)
        rank_n = self.row_n - (counts_B.cumsum(0) - counts_B)[self.owner_n[order_n]]
        self.place_n = (self.owner_n * self.samples).index_add(0, order_n, rank_n)
        self.full = torch.equal(self.place_n, self.row_n) and len(self.row_n) == self.prompts * self.samples
        self.shift = 0 if self.lag_n is None else int(self.lag_n.min())  # by which the oldest row is younger now
        if self.lag_n is not None:
            self.lag_n = self.lag_n - self.shift if self.lag_n.max() > self.shift else None

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Turns (J, n, ...) into (J, M, ...), with zeros at empty places."""
        if self.full:
            return x
        places = x.new_zeros(len(x), self.prompts * self.samples, *x.shape[2:])
        return places.index_copy_(1, self.place_n, x)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Turns (J, M, ...) back into (J, n, ...)."""
        return x if self.full else x[:, self.place_n]


class RowLayer(CacheLayerMixin):
    """One layer's keys and values while decoding: those of the prompts, and each row's own in buffers (J, n, L, K).

    What all prompts begin with is held apart. Rows write their buffers in place. Heads come first, so that no product
    needs a copy of keys, values or weights.
    """

    def __init__(
        self,
        keys_BJPK: torch.Tensor,
        values_BJPK: torch.Tensor,
        groups: Groups,
        length: int,
        common: States | None = None,
    ):
        """`length` is the largest number of positions that a row can write.

        `common` are the keys and values (1, J, C, K) that stand in front of all prompts, if there are any.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.groups = groups
        self.prompt_keys, self.prompt_values = (x.transpose(0, 1).contiguous() for x in (keys_BJPK, values_BJPK))
        self.common = None if common is None else (common[0][0].contiguous(), common[1][0].contiguous())
        self.common_length = 0 if common is None else common[0].shape[2]
        rows, (_, heads, self.prompt_length, width) = len(groups.owner_n), keys_BJPK.shape
        self.keys = keys_BJPK.new_empty(heads, rows, length, width)
        self.values = values_BJPK.new_empty(heads, rows, length, values_BJPK.shape[-1])
        self.written = 0  # by the oldest row
        self.clean = False
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Does nothing, because the constructor makes the buffers."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Writes one position of keys and values, (n, J, 1, K) each.

        Returns the layer itself twice; `grouped_attention` gets it in the place of keys and values.
        """
        assert self.keys is not None and self.values is not None
        lag_n = self.groups.lag_n
        at: Any = self.written if lag_n is None else self.written - lag_n
        rows = slice(None) if lag_n is None else self.groups.row_n
        self.keys[:, rows, at] = key_states[:, :, 0].transpose(0, 1)
        self.values[:, rows, at] = value_states[:, :, 0].transpose(0, 1)
        self.written += 1
        return self, self

    def replace(self, further: States | None) -> None:
        """Takes further prompts in, if any; call `groups.replace` first, which says whose rows begin again."""
        kept_B, before = self.groups.kept_B, self.prompt_keys.shape[1]
        self.prompt_length = self.groups.padding_BP.shape[1]
        for i, name in enumerate(("prompt_keys", "prompt_values")):
            parts = [getattr(self, name)[:, kept_B[kept_B < before]]]
            parts += [] if further is None else [further[i].transpose(0, 1)]
            setattr(self, name, torch.cat([widened(x, self.prompt_length, dim=2) for x in parts], 1))
        if not self.clean:
            assert self.values is not None
            # Weights of unwritten positions are 0, but 0 times uninitialised memory may be NaN.
            self.values[:, :, self.written :] = 0
            self.clean = True
        self.written -= self.groups.shift

    def keep(self, rows: torch.Tensor) -> None:
        """Drops all rows but these, in place; call `groups.keep` first."""
        if len(self.groups.kept_B) < self.prompt_keys.shape[1]:
            self.prompt_keys = self.prompt_keys[:, self.groups.kept_B]
            self.prompt_values = self.prompt_values[:, self.groups.kept_B]
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            kept = buffer[:, rows, : self.written]
            shape = (len(buffer), len(rows), *buffer.shape[2:])
            buffer = buffer.flatten()[: math.prod(shape)].view(shape)
            buffer[:, :, : self.written] = kept
            setattr(self, name, buffer)
        self.written -= self.groups.shift

    @property
    def seen(self) -> int:
        """The number of own positions that a query attends to."""
        return self.written

    @property
    def unseen(self) -> torch.Tensor | None:
        """Which of these positions are masked, shape (seen,) or (n, 1, seen), or None if none is."""
        lag_n = self.groups.lag_n
        if lag_n is None:
            return None
        return (torch.arange(self.seen, device=lag_n.device) >= self.seen - lag_n[:, None])[:, None]

    def attend(self, query_nH1K: torch.Tensor, scaling: float) -> torch.Tensor:
        """Returns softmax attention of one query position over common, prompt and own positions, (n, 1, H, K).

        Computes in fp32.
        """
        assert self.keys is not None and self.values is not None
        groups, key_heads, (n, heads, _, width) = self.groups, len(self.keys), query_nH1K.shape
        repeats, by_prompt = heads // key_heads, key_heads * groups.prompts
        prompt_keys, prompt_values = (x.flatten(0, 1).float() for x in (self.prompt_keys, self.prompt_values))
        own_keys, own_values = (x[:, :, : self.seen].flatten(0, 1).float() for x in (self.keys, self.values))

        def by_row(x: torch.Tensor) -> torch.Tensor:
            """Turns (J, B, S * R, x) into (J * n, R, x)."""
            return groups.gather(x.view(key_heads, -1, repeats, x.shape[-1])).flatten(0, 1)

        query = (query_nH1K.float() * scaling).view(n, key_heads, repeats, width).transpose(0, 1).contiguous()
        asked = groups.spread(query).view(by_prompt, -1, width)
        # As a part of the product the mask takes no time; `masked_fill_` takes half that of the product. What is added
        # hides finite scores only, and the keys of padding are finite.
        bias = groups.bias_B1P.repeat(key_heads, 1, 1)
        of_prompt = by_row(torch.baddbmm(bias, asked, prompt_keys.transpose(-1, -2)))
        of_own = torch.bmm(query.flatten(0, 1), own_keys.transpose(-1, -2))
        if (unseen := self.unseen) is not None:  # not added: keys that are not written yet may be NaN
            of_own.view(key_heads, n, repeats, -1).masked_fill_(unseen, -torch.inf)
        parts = [of_prompt, of_own]
        if self.common is not None:
            of_common = torch.bmm(query.flatten(1, 2), self.common[0].float().transpose(-1, -2))
            parts = [of_common.view(-1, repeats, self.common_length), *parts]
        weights = torch.softmax(torch.cat(parts, -1), -1).view(key_heads, n, repeats, -1)
        common, prompt, own = weights.split([self.common_length, self.prompt_length, self.seen], -1)
        mixed = by_row(torch.bmm(groups.spread(prompt).view(by_prompt, -1, self.prompt_length), prompt_values))
        mixed = torch.baddbmm(mixed, own.flatten(0, 1), own_values).view(key_heads, n * repeats, -1)
        if self.common is not None:
            mixed = torch.baddbmm(mixed, common.flatten(1, 2), self.common[1].float())
        return mixed.view(key_heads, n, -1).transpose(0, 1).to(query_nH1K.dtype).reshape(n, 1, heads, -1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.common_length + self.prompt_length + self.written

    def get_max_length(self) -> int:
        return self.common_length + self.prompt_length + (0 if self.keys is None else self.keys.shape[2])


def widened(x: torch.Tensor, width: int, dim: int = 1, value: Any = 0) -> torch.Tensor:
    """Returns x with padding in front along a dimension, as left-padded prompts have it."""
    missing = list(x.shape)
    missing[dim] = width - x.shape[dim]
    return torch.cat([x.new_full(missing, value), x], dim) if missing[dim] else x


def layer_states(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the keys and values (B, J, P, K) that a prefill wrote to one cache layer."""
    return layer.keys, layer.values


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attends as transformers asks: grouped if `key` is a `RowLayer`, else by scaled_dot_product_attention.

    A job may end here, on the way back as well: this is the only function of ours that every layer of any model calls.
    """
    may_end_here()
    if query.requires_grad:
        query.register_hook(lambda _: may_end_here())
    if isinstance(key, RowLayer):
        return key.attend(query, scaling if scaling is not None else query.shape[-1] ** -0.5), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
