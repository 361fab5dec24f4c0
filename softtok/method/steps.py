"""What a CoT step is made of, what it leaves behind, and what scoring it again finds.

Shapes: N rows, M tokens of a tile, T CoT steps, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from softtok.method.draws import Draws
from softtok.method.vocabulary_products import Vocabulary

Place = tuple[torch.Tensor | np.ndarray | slice, int | np.ndarray]  # rows and steps of a record


@dataclass(frozen=True)
class Predictions:
    """What N rows (or M tokens) predict next, and the matrices that turn it into tokens."""

    hidden_ND: torch.Tensor  # final hidden states
    logits_NV: torch.Tensor  # fp32, at temperature 1
    vocabulary: Vocabulary
    p_NV: torch.Tensor | None = None  # softmax(logits), where it is known and no gradient is wanted


@dataclass(frozen=True)
class CotStep:
    """One CoT step of N rows."""

    x_ND: torch.Tensor  # what is fed, in the model's dtype
    ids_N: torch.Tensor  # the token (hard) or its shadow (soft)
    near_tie_N: torch.Tensor  # true where rounding could have changed ids_N
    mean_ND: torch.Tensor | None = None  # the action's mean in fp32: h = p E, s, or D of the logits
    action_ND: torch.Tensor | None = None  # where the action is not what is fed: s + sigma eps in fp32


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of M recorded CoT tokens; of soft ones also how well their steps are computed again."""

    log_prob_M: torch.Tensor
    mean_MD: torch.Tensor | None = None  # the action's mean, with its graph
    gap: float = 0.0  # largest difference of a coordinate of the mean from the rollout's, in units of the noise
    noise_M: torch.Tensor | None = None  # the size of the noise as it is found again: 1 on average
    shadow_M: torch.Tensor | None = None  # the ids that the steps would have now


@dataclass(frozen=True)
class Record:
    """What training needs of soft CoT tokens. Columns behind a row's CoT are undefined."""

    x_NTD: torch.Tensor  # what was fed
    mean_NTD: torch.Tensor  # the action's mean in fp32

    def note(self, at: Place, step: CotStep) -> None:
        """Writes one step of some rows."""
        assert step.mean_ND is not None, "a step of soft tokens has a mean"
        self.x_NTD[at] = step.x_ND
        self.mean_NTD[at] = step.mean_ND


@dataclass(frozen=True)
class HiddenRecord(Record):
    """A record of noise on the hidden state: the action is not what is fed."""

    action_NTD: torch.Tensor  # s + sigma eps in fp32

    def note(self, at: Place, step: CotStep) -> None:
        super().note(at, step)
        assert step.action_ND is not None, "noise on the hidden state has an action of its own"
        self.action_NTD[at] = step.action_ND


@dataclass(frozen=True)
class LogitRecord(Record):
    """A record of noise on the logits: too wide to be kept, it is drawn again."""

    draws: Draws
