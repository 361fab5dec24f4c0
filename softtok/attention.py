"""Decoding attention in which the samples of a prompt share its keys and values.

Every prompt's keys and values exist once, and the queries of its samples meet them in one matrix product; only what a
row wrote itself is its own. Copying the prompt for every sample, as plain batched decoding does, costs G times the
memory and, on a CPU, about four times the attention time (256 rows of 32 samples, prompts of 45 to 70 tokens).
Registered with transformers' attention interface; all other attention goes through PyTorch's
scaled_dot_product_attention.

Shapes: B prompts, n active rows, S most samples of one prompt, H query heads, J key heads, R = H / J query heads per
key head, P prompt and T own positions, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "softtok_grouped"


class Groups:
    """Which prompt each active row belongs to; rows stand in the order of their prompts. Shared by all layers."""

    def __init__(self, prompt_mask_BP: torch.Tensor, samples: int):
        self.padding_B11P = ~prompt_mask_BP[:, None, None]
        self.padded = bool(self.padding_B11P.any())
        self.owner_n = torch.arange(len(prompt_mask_BP), device=prompt_mask_BP.device).repeat_interleave(samples)
        self._lay_out()

    def keep(self, rows: torch.Tensor) -> None:
        """Forgets all rows but these (their places among the active ones, ascending)."""
        self.owner_n = self.owner_n[rows]
        self._lay_out()

    def _lay_out(self) -> None:
        counts = torch.bincount(self.owner_n, minlength=len(self.padding_B11P))
        self.size = int(counts.max())
        first = counts.cumsum(0) - counts
        place = self.owner_n * self.size + torch.arange(len(self.owner_n), device=counts.device) - first[self.owner_n]
        self.place_n = None if len(place) == len(counts) * self.size else place  # None: every group is full

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(n, ...) to (B, S, ...), zeros where a prompt has fewer rows than S."""
        if self.place_n is not None:
            whole = x.new_zeros(len(self.padding_B11P) * self.size, *x.shape[1:])
            x = whole.index_copy_(0, self.place_n, x)
        return x.reshape(len(self.padding_B11P), self.size, *x.shape[1:])

    def scatter(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, ...) back to (n, ...)."""
        x = x.flatten(0, 1)
        return x if self.place_n is None else x[self.place_n]


class RowLayer(CacheLayerMixin):
    """One layer's keys and values while decoding: the prompts' as they are, the rows' own in a buffer written in
    place."""

    def __init__(self, keys_BJPK: torch.Tensor, values_BJPK: torch.Tensor, groups: Groups, length: int):
        """`length` is the most positions a row can write."""
        super().__init__()
        self.prompt_keys, self.prompt_values, self.groups = keys_BJPK.float(), values_BJPK.float(), groups
        rows, (_, heads, self.prompt_length, width) = len(groups.owner_n), keys_BJPK.shape
        self.keys = keys_BJPK.new_empty(rows, heads, length, width)
        self.values = values_BJPK.new_empty(rows, heads, length, values_BJPK.shape[-1])
        self.written = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the constructor makes the buffers."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Writes one position; the layer itself goes to `grouped_attention` in the place of keys and values."""
        assert self.keys is not None and self.values is not None
        self.keys[:, :, self.written] = key_states[:, :, 0]
        self.values[:, :, self.written] = value_states[:, :, 0]
        self.written += 1
        return self, self

    def keep(self, rows: torch.Tensor) -> None:
        """Moves these rows to the front and forgets the others; `groups` is told once, by its owner."""
        assert self.keys is not None and self.values is not None
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            buffer[: len(rows), :, : self.written] = buffer[rows, :, : self.written]
            setattr(self, name, buffer[: len(rows)])

    @property
    def seen(self) -> int:
        """How many own positions a query attends to."""
        return self.written

    @property
    def unseen(self) -> torch.Tensor | None:
        """Which of them it does not, after all, shape (seen,)."""
        return None

    def attend(self, query_nH1K: torch.Tensor, scaling: float) -> torch.Tensor:
        """Softmax attention of one query position over prompt and own positions, shape (n, 1, H, K); fp32 inside."""
        assert self.keys is not None and self.values is not None
        n, heads, _, width = query_nH1K.shape
        groups, key_heads, repeats = self.groups, self.keys.shape[1], heads // self.keys.shape[1]
        query = query_nH1K.float().reshape(n, key_heads, repeats, width) * scaling
        own_keys, own_values = self.keys[:, :, : self.seen].float(), self.values[:, :, : self.seen].float()

        def together(x_nJRx: torch.Tensor) -> torch.Tensor:
            """(n, J, R, x) to (B, J, S * R, x): all samples of a prompt side by side."""
            return groups.gather(x_nJRx).transpose(1, 2).flatten(2, 3)

        def apart(x_BJSx: torch.Tensor) -> torch.Tensor:
            return groups.scatter(x_BJSx.unflatten(2, (groups.size, repeats)).transpose(1, 2))

        shared = together(query) @ self.prompt_keys.transpose(-1, -2)
        if groups.padded:
            shared.masked_fill_(groups.padding_B11P, -torch.inf)
        own = query @ own_keys.transpose(-1, -2)
        if self.unseen is not None:
            own.masked_fill_(self.unseen, -torch.inf)
        weights = torch.softmax(torch.cat([apart(shared), own], -1), -1)
        of_prompt, of_own = weights.split([self.prompt_length, self.seen], -1)
        mixed = apart(together(of_prompt) @ self.prompt_values) + of_own @ own_values
        return mixed.to(query_nH1K.dtype).reshape(n, 1, heads, -1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.prompt_length + self.written

    def get_max_length(self) -> int:
        return self.prompt_length + (0 if self.keys is None else self.keys.shape[2])


def layer_states(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (B, H, P, K) that a prefill left in one cache layer."""
    return layer.keys, layer.values


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: grouped where `key` is a `RowLayer`, else scaled_dot_product_attention."""
    if isinstance(key, RowLayer):
        return key.attend(query, scaling if scaling is not None else query.shape[-1] ** -0.5), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
