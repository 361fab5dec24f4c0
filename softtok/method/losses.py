"""What other objectives put in the place of RLOO's terms: advantages, clipped ratios, and the KL to the base model.

With N = B G rows, A the advantages, r_t = pi(token) / pi_old(token) the ratios of a row's sampled tokens and |o| their
number (prefilled words are not among them):
    rloo      A = r - mean of the other rewards            loss = -1/N sum_rows A sum_t log pi_t
    ppo-clip  the same A                                   loss = -1/N sum_rows sum_t min(r_t A, clip(r_t) A)
    grpo      A = (r - mean) / (std + 1e-4) of the group   loss = -1/N sum_rows 1/|o| sum_t min(r_t A, clip(r_t) A)
where clip(r) cuts r to [1 - clip_range, 1 + clip_range] (PPO: arXiv 1707.06347; GRPO: 2402.03300; std with ddof 1 and
1e-4 as in TRL). pi_old is the policy that the rollout was made with: in the first update of a step all ratios are 1.

Shapes: B prompts, G samples, M tokens of a tile, D width, V vocabulary.
"""

from __future__ import annotations

import torch


def leave_one_out(rewards_BG: torch.Tensor) -> torch.Tensor:
    """A_bg = r_bg - mean of the other G-1 rewards of prompt b (RLOO baseline), shape (B, G)."""
    others = rewards_BG.shape[1] - 1
    return rewards_BG - (rewards_BG.sum(1, keepdim=True) - rewards_BG) / others


def group_advantages(rewards_BG: torch.Tensor, objective: str) -> torch.Tensor:
    """The advantages of an objective, shape (B, G); zero where all rewards of a prompt are equal."""
    advantages_BG = leave_one_out(rewards_BG)
    if objective == "grpo":
        centred_BG = rewards_BG - rewards_BG.mean(1, keepdim=True)
        advantages_BG = centred_BG / (rewards_BG.std(1, keepdim=True) + 1e-4)
    # Rewards such as 0.1 have means that are off by a rounding error.
    return advantages_BG.masked_fill((rewards_BG == rewards_BG[:, :1]).all(1, keepdim=True), 0.0)


def clipped(
    log_prob_M: torch.Tensor, old_M: torch.Tensor, weights_M: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's -min(r A, clip(r) A) / N, shape (M,), with `weights_M` = -A / N; and which ratios are beyond the
    range."""
    ratio = torch.exp(log_prob_M - old_M)
    inside = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(ratio * weights_M, inside * weights_M), (ratio != inside).detach()


def hard_kl(logits_MV: torch.Tensor, base_logits_MV: torch.Tensor) -> torch.Tensor:
    """KL(p || p_base) of the next-token distributions, exact over the whole vocabulary, shape (M,)."""
    log_p, base_log_p = torch.log_softmax(logits_MV, -1), torch.log_softmax(base_logits_MV, -1)
    return (log_p.exp() * (log_p - base_log_p)).sum(-1)


def gaussian_kl(mixture_MD: torch.Tensor, base_mixture_MD: torch.Tensor, noise_std: float) -> torch.Tensor:
    """KL of the Gaussians around two mixtures: |h - h_base|^2 / (2 sigma^2), shape (M,)."""
    return (mixture_MD - base_mixture_MD).square().sum(-1) / (2 * noise_std**2)
