"""What a rollout is asked for, and what it returns.

Shapes: B prompts, G samples per prompt, N = B * G rows (row b * G + g), T CoT steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from softtok.method.draws import Draws
from softtok.method.steps import Record
from softtok.method.stopping import TextRules
from softtok.method.thoughts import Thought, Watch
from softtok.method.token_modes import CotTokens
from softtok.models.language_model import LanguageModel

STOPS = ("phrase", "eos", "cap")
INFERENCE_STOPS = (*STOPS, "entropy")  # the last for modes with `end_entropy`


@dataclass(frozen=True)
class Limits:
    """When the phases of a trajectory end, and how its answer is sampled."""

    max_cot_tokens: int
    max_answer_tokens: int
    answer_temperature: float  # 0 is greedy
    stop_on: str  # "shadow" or "nearest": whose text is searched for the stop phrase; "never": none


@dataclass(frozen=True)
class Policy:
    """What generates trajectories: a model that thinks in a token mode, by the rules of a text, within limits."""

    lm: LanguageModel
    rules: TextRules
    tokens: CotTokens
    limits: Limits

    @property
    def most_steps(self) -> int:
        """How many positions a row may write behind its prompt."""
        longest_prefill = max(len(self.rules.prefill_after_phrase), len(self.rules.prefill_after_cut))
        return self.limits.max_cot_tokens + longest_prefill + self.limits.max_answer_tokens


@dataclass(frozen=True)
class Batch:
    """Prompts to be answered side by side, G times each."""

    prompts: list[list[int]]  # token ids
    samples: int  # G
    keys: list[str]  # N names of the rows, from which their random numbers are made
    watch: Watch = field(default_factory=Watch)

    def __post_init__(self) -> None:
        assert len(self.keys) == self.rows, "one randomness key per row"

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.samples

    def as_rows(self) -> Rows:
        """Returns all rows of all prompts."""
        return Rows(self.prompts, np.repeat(np.arange(len(self.prompts)), self.samples), self.keys, self.watch)


@dataclass(frozen=True)
class Rows:
    """Rows to be begun side by side, any number of each prompt."""

    prompts: list[list[int]]
    owners: np.ndarray  # (rows,) which prompt each is of
    keys: list[str]
    watch: Watch = field(default_factory=Watch)

    @property
    def watched(self) -> list[bool]:
        """Which rows are watched."""
        return [key in self.watch.keys for key in self.keys]


@dataclass
class Rollout:
    """N finished trajectories, on the model's device unless named numpy.

    Columns behind a row's length are undefined.
    """

    prompts: list[list[int]]
    samples: int
    cot_ids: np.ndarray  # (N, T) sampled (hard) or shadow (soft) tokens
    cot_lengths: np.ndarray  # (N,)
    stops: np.ndarray  # (N,) index into INFERENCE_STOPS
    prefills: tuple[list[int], ...]  # per stop: the ids that were prefilled
    answers: list[list[int]]  # sampled answer ids of each row, EOS included
    near_ties: np.ndarray  # (N,) CoT steps and answer tokens that rounding could have changed
    entropy_NT: torch.Tensor  # next-token entropy at each CoT step, nats
    record: Record | None = None  # of soft tokens, where training asks for it
    thoughts: dict[int, list[Thought]] = field(default_factory=dict)  # of the soft steps of each watched row
    decode_rows: int = 0  # rows x decode steps that the model ran

    @classmethod
    @torch.inference_mode(False)  # training computes gradients with what is recorded
    def empty(cls, policy: Policy, prompts: list[list[int]], samples: int, draws: Draws | None = None) -> Rollout:
        """Returns a rollout without steps; with `draws`, those of the CoT, it has room for what training needs."""
        count, steps, lm, rules = len(prompts) * samples, policy.limits.max_cot_tokens, policy.lm, policy.rules
        return cls(
            prompts=prompts,
            samples=samples,
            cot_ids=np.zeros((count, steps), np.int64),
            cot_lengths=np.zeros(count, np.int64),
            stops=np.zeros(count, np.int64),
            prefills=(rules.prefill_after_phrase, *[rules.prefill_after_cut] * (len(INFERENCE_STOPS) - 1)),
            answers=[[] for _ in range(count)],
            near_ties=np.zeros(count, np.int64),
            entropy_NT=torch.zeros(count, steps, device=lm.device),
            record=None if draws is None else policy.tokens.new_record(steps, lm.embedding_VD.detach(), draws),
        )

    def take(self, row: int, other: Rollout, theirs: int) -> None:
        """Copies a finished row of another rollout, without what training needs."""
        for name in ("cot_ids", "cot_lengths", "stops", "near_ties", "entropy_NT"):
            getattr(self, name)[row] = getattr(other, name)[theirs]
        self.answers[row] = other.answers[theirs]
        if theirs in other.thoughts:
            self.thoughts[row] = other.thoughts[theirs]

    def prefill(self, row: int) -> list[int]:
        """Returns the ids that were prefilled in front of one row's answer."""
        return self.prefills[int(self.stops[row])]

    def cot(self, row: int) -> list[int]:
        """Returns the ids of one row's CoT."""
        ids: list[int] = self.cot_ids[row, : self.cot_lengths[row]].tolist()
        return ids
