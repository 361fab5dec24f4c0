"""Single CoT steps, made from given logits instead of a model's."""

from __future__ import annotations

import torch

from softtok.config.settings import TokenMode
from softtok.method.steps import CotStep, Predictions
from softtok.method.token_modes import MODES, CotTokens
from softtok.method.vocabulary_products import Vocabulary
from softtok.models.language_model import LanguageModel


def random_embedding(vocabulary: int, width: int, seed: int = 1) -> torch.Tensor:
    """Returns a matrix of standard normals, shape (vocabulary, width)."""
    return torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(seed))


def bound_to(mode: TokenMode, noise_std: float = 0.0) -> CotTokens:
    """Returns the mode with noise of a given standard deviation."""
    return MODES[mode.kind](mode, noise_std)


def vocabulary_of(embedding: torch.Tensor | LanguageModel) -> Vocabulary:
    """Returns E as a vocabulary whose head is E too, or head and E of a model."""
    if isinstance(embedding, LanguageModel):
        return Vocabulary(embedding.head_VD.detach(), embedding.embedding_VD.detach(), embedding.dtype)
    return Vocabulary(embedding, embedding, embedding.dtype)


def predictions(
    vocabulary: Vocabulary,
    logits_NV: torch.Tensor,
    hidden_ND: torch.Tensor | None = None,
    p_NV: torch.Tensor | None = None,
) -> Predictions:
    """Returns predictions with these logits; states that nobody gives are not numbers."""
    if hidden_ND is None:
        hidden_ND = torch.full((len(logits_NV), vocabulary.embedding.shape[1]), torch.nan)
    return Predictions(hidden_ND, logits_NV, vocabulary, p_NV)


def step(
    tokens: CotTokens,
    embedding: torch.Tensor | LanguageModel,
    logits_NV: torch.Tensor,
    draw: torch.Tensor | None = None,
    p_NV: torch.Tensor | None = None,
) -> CotStep:
    """Returns the step that a mode makes of logits; one uniform per row (N,) is given to hard tokens as (N, 1)."""
    draw_NW = draw[:, None] if draw is not None and draw.ndim == 1 else draw
    return tokens.step(predictions(vocabulary_of(embedding), logits_NV, p_NV=p_NV), draw_NW)


def mean_of(made: CotStep) -> torch.Tensor:
    """Returns the mean of a soft step's action, shape (N, D)."""
    assert made.mean_ND is not None
    return made.mean_ND
