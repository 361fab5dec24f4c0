"""What a rollout is asked for, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from softtok.method.draws import Draws

STOPS = ("phrase", "eos", "cap")
INFERENCE_STOPS = (*STOPS, "entropy")  # the last for modes with `end_entropy`


@dataclass(frozen=True)
class Limits:
    """When the phases of a trajectory end, and how its answer is sampled."""

    max_cot_tokens: int
    max_answer_tokens: int
    answer_temperature: float  # 0 is greedy
    stop_on: str  # "shadow" or "nearest": whose text is searched for the stop phrase


@dataclass
class Rollout:
    """N finished trajectories, on the model's device unless named numpy. Columns behind a row's length are
    undefined."""

    prompts: list[list[int]]
    samples: int
    cot_ids: np.ndarray  # (N, T) sampled (hard) or shadow (soft) tokens
    cot_lengths: np.ndarray  # (N,)
    stops: np.ndarray  # (N,) index into INFERENCE_STOPS
    prefills: tuple[list[int], ...]  # per stop: the ids that were prefilled
    answers: list[list[int]]  # sampled answer ids of each row, EOS included
    near_ties: np.ndarray  # (N,) CoT steps and answer tokens that rounding could have changed
    entropy_NT: torch.Tensor  # next-token entropy at each CoT step, nats
    x_NTD: torch.Tensor | None = None  # soft, recorded: what was fed
    mixture_NTD: torch.Tensor | None = None  # soft, recorded: the action's mean in fp32 (h = p E, ...), see `CotStep`
    action_NTD: torch.Tensor | None = None  # noise on the hidden state, recorded: s + sigma eps in fp32
    draws: Draws | None = None  # noise on the logits, recorded: draws it again, for it is too wide to be kept
    old_log_prob_NL: torch.Tensor | None = None  # of sampled tokens before any update; filled in training
    decode_rows: int = 0  # rows x decode steps that the model ran

    def cot(self, row: int) -> list[int]:
        """Ids of one row's CoT."""
        return self.cot_ids[row, : self.cot_lengths[row]].tolist()
