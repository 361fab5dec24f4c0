"""Tiny random language models, and plain rules in the place of text, for tests that need no tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from softtok.config.settings import TokenMode
from softtok.method.noise_units import embedding_rms
from softtok.method.stopping import TextRules
from softtok.method.token_modes import MODES, CotTokens
from softtok.models.language_model import LanguageModel

FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def tiny_model(
    family: str = "llama",
    *,
    vocabulary: int = 64,
    width: int = 32,
    layers: int = 2,
    tied: bool = True,
    spread: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> LanguageModel:
    """Returns a random model with two key and value heads of two query heads each.

    `spread`, the standard deviation of its weights, is large, so that its states really depend on what it is fed.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            FAMILIES[family](
                vocab_size=vocabulary,
                hidden_size=width,
                head_dim=width // 4,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=tied,
                initializer_range=spread,
            ),
            attn_implementation="sdpa",
        )
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:  # initialised to ones and zeros, which hide mistakes
                parameter.data += 0.3 * torch.randn_like(parameter)
    return LanguageModel(model.eval().to(dtype), None, f"tiny {family}")  # type: ignore[arg-type]


def token_mode(lm: LanguageModel, mode: TokenMode) -> CotTokens:
    """Returns the mode with sigma from the model's E, as a trainer does it for noise on the mixture."""
    return MODES[mode.kind](mode, mode.noise_scale * embedding_rms(lm.embedding_VD))


class TokenRules(TextRules):
    """Rules without text: single tokens end a CoT, as phrase or as EOS, or an answer."""

    def __init__(
        self,
        vocabulary: int,
        *,
        phrase: Collection[int] = (),
        eos: Collection[int] = (),
        ends: Collection[int] = (),
        prefill_after_phrase: Sequence[int] = (5,),
        prefill_after_cut: Sequence[int] = (6, 7),
    ) -> None:
        self.phrase, self.eos, self.ends = set(phrase), set(eos), set(ends) | set(eos)
        self.may_stop = np.isin(np.arange(vocabulary), [*phrase, *eos])
        self.prefill_after_phrase, self.prefill_after_cut = list(prefill_after_phrase), list(prefill_after_cut)

    def stop(self, ids: np.ndarray) -> str | None:
        """Returns why a CoT that now has these ids ends, or None."""
        if int(ids[-1]) in self.eos:
            return "eos"
        return "phrase" if int(ids[-1]) in self.phrase else None

    def answer_ends(self, ids: list[int]) -> bool:
        """Returns whether an answer ends with its newest id."""
        return ids[-1] in self.ends


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """Returns normal logits of standard deviation 3, shape (rows, vocabulary)."""
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
