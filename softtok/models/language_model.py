"""Language models as the method needs them: embeddings in, final hidden states and fp32 logits out.

Any Hugging Face folder loads through the Auto classes. `loading.probe` then checks on a few tokens what the method
assumes of a family, and refuses other families with one line. So no other module needs to know the architecture.

Shapes: N rows, T positions, S cached + new positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.utils import logging as hf_logging

from softtok.errors import UserError
from softtok.models import attention
from softtok.models.beginnings import FrontLayer, States, common_tokens
from softtok.models.matmul import adopt, linear

hf_logging.disable_progress_bar()


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, seen as an embedding matrix, a body and an output head."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    cuda_graphs: bool = False  # decode steps are recorded and replayed

    def __post_init__(self) -> None:
        self.model.set_attn_implementation(attention.NAME)
        adopt(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def embedding_VD(self) -> torch.Tensor:
        """E, the token embedding matrix (a parameter)."""
        return _weight(self.model.get_input_embeddings())

    @property
    def head_VD(self) -> torch.Tensor:
        """The output head (a parameter; it is E itself in models that tie the two)."""
        return _weight(self.model.get_output_embeddings())

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of E, shape ids.shape + (D,)."""
        return F.embedding(ids, self.embedding_VD)

    def hidden(
        self, embeds_NTD: torch.Tensor, mask_N1TS: torch.Tensor | None, positions_NT: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor:
        """Returns final hidden states (after the last norm), shape (N, T, D); writes keys and values to `cache`.

        The mask is boolean, over cached and new positions, and true where a query may look. None is for a cache of
        `RowLayer`s, which knows this itself. Positions are explicit, because with left padding transformers' defaults
        are wrong without any error.
        """
        output = self.model.base_model(
            inputs_embeds=embeds_NTD,
            # transformers uses a mask of four dimensions as it is; a cache of `RowLayer`s ignores it.
            attention_mask=positions_NT.new_ones(1, 1, 1, 1).bool() if mask_N1TS is None else mask_N1TS,
            position_ids=positions_NT,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        states: torch.Tensor = output.last_hidden_state
        return states


def _weight(layer: Any) -> torch.Tensor:
    """The matrix of an embedding or a head; transformers types both as any module."""
    weight: torch.Tensor = layer.weight
    return weight


def in_fp32(lm: LanguageModel, mixtures: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns head and E in fp32, without a graph; they are one matrix if the model ties them.

    They are copies if the working precision is not fp32, so make them once for many tokens. Without `mixtures`, E keeps
    its precision: then only rows of it are looked up.
    """
    head_VD, embedding_VD = lm.head_VD.detach().float(), lm.embedding_VD.detach()
    if mixtures:
        embedding_VD = head_VD if lm.embedding_VD is lm.head_VD else embedding_VD.float()
    return head_VD, embedding_VD


def refuse_longer(lm: LanguageModel, positions: int, what: str) -> None:
    """Raises UserError if `what` needs more positions than the model was made for.

    Learned positions end there, so that a job would fail half-way. Rotary positions beyond were never trained.
    """
    room = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and positions > room:
        raise UserError(
            f"model {lm.name}: holds {room} positions, and the longest text of {what} needs {positions};"
            " lower max_cot_tokens or leave out what is long"
        )


def logits_fp32(hidden: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """Returns next-token logits in fp32, whatever the working precision.

    bf16 logits tie exactly in 3-5 % of steps (random Llamas of width 128 and 512).
    """
    return linear(hidden.float(), head_VD.float())


def left_pad(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pads prompts on the left; returns ids, a boolean mask and positions, each of shape (B, P).

    The padding is id 0; any id would do, because it is masked.
    """
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def causal_mask(mask_BP: torch.Tensor) -> torch.Tensor:
    """Returns the attention mask (B, 1, P, P) of left-padded prompts.

    A padded query looks at itself, because a softmax over nothing is NaN.
    """
    width = mask_BP.shape[1]
    lower = torch.ones(width, width, dtype=torch.bool, device=mask_BP.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=mask_BP.device)
    return ((lower & mask_BP[:, None, :]) | itself)[:, None]


class Beginning(NamedTuple):
    """The tokens that some prompts begin with, and what a pass over them made."""

    ids: list[int]  # none if sharing does not pay
    layers: list[States]


NO_BEGINNING = Beginning([], [])


def begin(lm: LanguageModel, prompts: list[list[int]]) -> Beginning:
    """Runs what all these prompts begin with, once, if that pays; keeps the graph if gradients are on."""
    ids = prompts[0][: common_tokens(prompts)]
    if not ids:
        return NO_BEGINNING
    return Beginning(ids, [attention.layer_states(layer) for layer in prefill(lm, [ids], NO_BEGINNING).cache.layers])


class Prefilled(NamedTuple):
    """B prompts that were run: what completions go on from."""

    last_BD: torch.Tensor  # final hidden states
    cache: Cache  # of `FrontLayer`s: the beginning is in front, and the rests are left-padded
    mask_BP: torch.Tensor  # of the rests
    lengths_B: torch.Tensor  # of the whole prompts


def prefill(lm: LanguageModel, prompts: list[list[int]], beginning: Beginning | None = None) -> Prefilled:
    """Runs B prompts once, and what they all begin with as a single row.

    `beginning` is one that was run before, with more prompts. Keeps the graph if gradients are on.
    """
    if beginning is None:
        beginning = begin(lm, prompts)
    start = len(beginning.ids)
    assert all(prompt[:start] == beginning.ids and len(prompt) > start for prompt in prompts)
    ids, mask, positions = left_pad([prompt[start:] for prompt in prompts], lm.device)
    look = F.pad(causal_mask(mask), (start, 0), value=True)
    layers = [FrontLayer(states) for states in beginning.layers]
    cache = Cache(layers=list(layers)) if layers else Cache(layer_class_to_replicate=FrontLayer)
    hidden = lm.hidden(lm.embed(ids), look, start + positions, cache)
    return Prefilled(hidden[:, -1], cache, mask, start + mask.sum(1))
