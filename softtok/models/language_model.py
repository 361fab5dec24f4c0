"""Language models as the method needs them: embeddings in, final hidden states and fp32 logits out.

Any Hugging Face folder loads through the Auto classes; `probe` then checks on a few tokens what the method assumes of a
family and refuses the others with one line, so that nothing below needs to know one architecture from another.

Shapes: N rows, T positions, S cached + new positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache
from transformers.utils import logging as hf_logging

from softtok.errors import UserError
from softtok.models import attention
from softtok.models.matmul import adopt, linear

hf_logging.disable_progress_bar()


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model seen as embedding matrix, body and output head."""

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
        return self.model.get_input_embeddings().weight  # type: ignore[return-value]

    @property
    def head_VD(self) -> torch.Tensor:
        """The output head (a parameter; E itself where a model ties the two)."""
        return self.model.get_output_embeddings().weight  # type: ignore[union-attr]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of E, shape ids.shape + (D,)."""
        return F.embedding(ids, self.embedding_VD)

    def hidden(
        self, embeds_NTD: torch.Tensor, mask_N1TS: torch.Tensor | None, positions_NT: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor:
        """Final hidden states (after the last norm) of shape (N, T, D); keys and values go to `cache`.

        The mask is boolean, true where a query may look, over cached and new positions (None: a cache of `RowLayer`s
        knows); positions are explicit, because the defaults are silently wrong with left padding.
        """
        output = self.model.base_model(
            inputs_embeds=embeds_NTD,
            # A mask of four dimensions is taken as it is; any will do where the cache knows what a row may look at.
            attention_mask=positions_NT.new_ones(1, 1, 1, 1).bool() if mask_N1TS is None else mask_N1TS,
            position_ids=positions_NT,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state


def in_fp32(lm: LanguageModel, mixtures: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Head and E in fp32, without a graph; one matrix where the model ties them. Copies, where the working precision is
    another: to be made once for many tokens. Without `mixtures` E, of which rows are looked up then, stays as it is."""
    head_VD, embedding_VD = lm.head_VD.detach().float(), lm.embedding_VD.detach()
    if mixtures:
        embedding_VD = head_VD if lm.embedding_VD is lm.head_VD else embedding_VD.float()
    return head_VD, embedding_VD


def refuse_longer(lm: LanguageModel, positions: int, what: str) -> None:
    """Raises UserError where `what` needs more positions than the model was made for: learned ones end there, in the
    middle of a job, and rotary ones have never been trained."""
    room = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and positions > room:
        raise UserError(
            f"model {lm.name}: holds {room} positions, and the longest text of {what} needs {positions};"
            " lower max_cot_tokens or leave out what is long"
        )


def logits_fp32(hidden: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """Next-token logits in fp32 whatever the working precision: bf16 logits tie exactly in 3-5 % of steps
    (random Llamas of width 128 and 512)."""
    return linear(hidden.float(), head_VD.float())


def left_pad(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids (B, P), boolean mask (B, P) and positions (B, P) of prompts padded on the left with id 0 (masked, so any id
    will do)."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts], device=device)
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def causal_mask(mask_BP: torch.Tensor) -> torch.Tensor:
    """(B, 1, P, P) mask of a left-padded prompt. A padded query looks at itself, lest its softmax be over nothing
    (NaN)."""
    width = mask_BP.shape[1]
    lower = torch.ones(width, width, dtype=torch.bool, device=mask_BP.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=mask_BP.device)
    return ((lower & mask_BP[:, None, :]) | itself)[:, None]


def prefill(
    lm: LanguageModel, prompts: list[list[int]]
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor, torch.Tensor]:
    """Runs B prompts once: last hidden state (B, D), their keys and values, mask (B, P), lengths (B,). Keeps the graph
    if grad is on."""
    ids, mask, positions = left_pad(prompts, lm.device)
    cache = DynamicCache()
    hidden = lm.hidden(lm.embed(ids), causal_mask(mask), positions, cache)
    return hidden[:, -1], cache, mask, mask.sum(1)
