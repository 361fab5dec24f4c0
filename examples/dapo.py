"""An objective of one's own: DAPO (arXiv 2503.14476) for hard tokens.

It differs from GRPO in three ways:
    decoupled clip range    a ratio may rise by 0.28 and fall by 0.2
    token-level loss        every sampled token of the batch counts alike, however long its row
    dynamic sampling        groups without a signal (all rewards equal) are left out of the mean

Where DAPO draws new prompts until every group has a signal, here the others carry the step alone. In config.yaml:

    training_modes:
      hard-dapo: {like: hard, training: {objective: "examples/dapo.py:DAPO", updates_per_step: 2}}
"""

import numpy as np
import numpy.typing as npt
import torch

from softtok.method.objectives import GRPO, clipped


class DAPO(GRPO):
    """GRPO's advantages, clipped further above than below, in a mean over tokens."""

    clip_below, clip_above = 0.2, 0.28

    def normaliser(
        self, tokens_BG: npt.NDArray[np.int64], advantages_BG: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int64]:
        signal_B1 = (advantages_BG != 0).any(1, keepdims=True)
        return np.full(tokens_BG.shape, max(1, (tokens_BG * signal_B1).sum()))

    def surrogate(
        self, log_prob_M: torch.Tensor, old_M: torch.Tensor, weights_M: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return clipped(log_prob_M, old_M, weights_M, (self.clip_below, self.clip_above))
