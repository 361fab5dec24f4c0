"""Rollouts of tiny models in the paper's six inference modes, over padded prompts and several blocks of draws."""

from __future__ import annotations

import itertools

from softtok.config.settings import TokenMode
from softtok.method.draws import DRAW_BLOCK
from softtok.method.rollout import rollout
from softtok.method.stream import Room, stream
from softtok.method.token_modes import CotTokens
from softtok.method.trajectories import Batch, Limits, Policy, Rollout
from softtok.models.language_model import LanguageModel
from tests.support.tiny_models import TokenRules, token_mode

MODES = {
    "hard": TokenMode(tokens="hard", temperature=1.0),
    "hard-greedy": TokenMode(tokens="hard", temperature=0.0),
    "soft": TokenMode(tokens="soft", temperature=0.5, noise_scale=0.33),
    "soft-greedy": TokenMode(tokens="soft", temperature=0.5),
    "fuzzy": TokenMode(tokens="soft", temperature=1e-4, noise_scale=0.33),
    "fuzzy-greedy": TokenMode(tokens="soft", temperature=1e-4),
}
# A soft CoT is fed its own mixtures: with larger random weights it is chaotic, and rounding soon grows to everything.
SPREAD = {"hard": 0.3, "soft": 0.12, "fuzzy": 0.3}
PROMPTS = [[3, 4, 5, 6, 7, 0, 2], [8, 9, 10], [1]]
SAMPLES = 8
KEYS = [f"row {row}" for row in range(len(PROMPTS) * SAMPLES)]
BATCH = Batch(PROMPTS, SAMPLES, KEYS)
LIMITS = Limits(max_cot_tokens=40, max_answer_tokens=6, answer_temperature=1.0, stop_on="shadow")
assert LIMITS.max_cot_tokens > DRAW_BLOCK, "trajectories outlast a block of draws"


def rules() -> TokenRules:
    """Returns rules by which CoTs end by a phrase, by EOS and at the cap."""
    return TokenRules(64, phrase=range(10, 14), eos=(40, 41), ends=(1, 20, 21, 22, 23, 24))


def policy(lm: LanguageModel, tokens: CotTokens, limits: Limits = LIMITS) -> Policy:
    """Returns a policy by these rules."""
    return Policy(lm, rules(), tokens, limits)


def roll(
    lm: LanguageModel,
    mode: str,
    batch: Batch = BATCH,
    limits: Limits = LIMITS,
    *,
    drop_rows: bool = True,
) -> Rollout:
    """Returns a recorded rollout in one of `MODES`."""
    return rollout(policy(lm, token_mode(lm, MODES[mode]), limits), batch, record=True, drop_rows=drop_rows)


def streamed(asked: Policy, wanted: Batch, room: Room) -> Rollout:
    """Returns what a stream gives as one rollout, and asserts that every prompt comes once."""
    whole, seen = Rollout.empty(asked, wanted.prompts, wanted.samples), []
    for b, made in itertools.chain.from_iterable(stream(asked, wanted, room)):
        assert (made.prompts, made.samples) == ([wanted.prompts[b]], wanted.samples)
        seen.append(b)
        for g in range(wanted.samples):
            whole.take(b * wanted.samples + g, made, g)
    assert sorted(seen) == list(range(len(wanted.prompts)))
    return whole
