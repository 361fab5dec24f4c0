"""Log-densities of noisy steps, and divergences from the base model.

Shapes: N rows, M tokens of a tile, D width, V vocabulary.
"""

from __future__ import annotations

import torch

# The smallest uniform that Gumbel noise is made of: half a step of a 24-bit generator, in the place of its 0.
SMALLEST_UNIFORM = 2.0**-25


def gumbel(uniform: torch.Tensor) -> torch.Tensor:
    """Returns standard Gumbel noise made of uniforms in [0, 1)."""
    return -(-uniform.clamp(min=SMALLEST_UNIFORM).log()).log()


def gaussian_log_density(action_ND: torch.Tensor, mean_ND: torch.Tensor, noise_std: float) -> torch.Tensor:
    """Returns -|a - mean|^2 / (2 sigma^2), shape (N,); the action is a constant."""
    return -(action_ND.detach().float() - mean_ND).square().sum(-1) / (2 * noise_std**2)


def gumbel_log_density(action_NV: torch.Tensor, mean_NV: torch.Tensor) -> torch.Tensor:
    """Returns sum_i -(y_i - l_i) - exp(-(y_i - l_i)), shape (N,), over the tokens whose l is not -inf.

    This is the log-density of Gumbel variables y around l; y is a constant.
    """
    dropped_NV = torch.isinf(mean_NV)
    excess_NV = action_NV.detach().masked_fill(dropped_NV, 0.0) - mean_NV.masked_fill(dropped_NV, 0.0)
    return -(excess_NV + torch.exp(-excess_NV)).masked_fill(dropped_NV, 0.0).sum(-1)


def hard_kl(logits_MV: torch.Tensor, base_logits_MV: torch.Tensor) -> torch.Tensor:
    """Returns KL(p || p_base) of the next-token distributions, exact over the whole vocabulary, shape (M,)."""
    log_p, base_log_p = torch.log_softmax(logits_MV, -1), torch.log_softmax(base_logits_MV, -1)
    return (log_p.exp() * (log_p - base_log_p)).sum(-1)


def gaussian_kl(mean_MD: torch.Tensor, base_mean_MD: torch.Tensor, noise_std: float) -> torch.Tensor:
    """Returns the KL of two Gaussians of one width, |h - h_base|^2 / (2 sigma^2), shape (M,)."""
    return (mean_MD - base_mean_MD).square().sum(-1) / (2 * noise_std**2)
