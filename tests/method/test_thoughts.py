"""Thoughts are what the steps were, computed again from the model; looking at them changes nothing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from softtok.config.settings import TokenMode
from softtok.method.densities import gumbel
from softtok.method.noise_units import embedding_rms
from softtok.method.rollout import rollout
from softtok.method.steps import CotStep, Predictions
from softtok.method.stream import Room
from softtok.method.thoughts import LEAST_WEIGHT, Thought, Watch
from softtok.method.token_modes import SoftTokens
from softtok.method.trajectories import Batch, Rollout
from softtok.models.language_model import LanguageModel, causal_mask, left_pad
from tests.support.rollouts import MODES, PROMPTS, policy, streamed
from tests.support.tiny_models import tiny_model, token_mode

SOFT_MODES = {name: mode for name, mode in MODES.items() if not mode.hard} | {
    "top-k": TokenMode(tokens="soft", temperature=0.5, noise_scale=0.33, top_k=3),
    "hidden": TokenMode(tokens="soft", temperature=0.5, noise_scale=0.5, noise_at="hidden"),
    "logits": TokenMode(tokens="soft", temperature=0.5, noise_scale=2.0, noise_at="logits", top_k=8),
    "gumbel": TokenMode(tokens="soft", temperature=0.5, noise="gumbel"),
}
ANY = 10**9
KEYS = [f"{b}|{g}" for b in range(len(PROMPTS)) for g in range(4)]


def batch(watched: list[str], lm: LanguageModel) -> Batch:
    return Batch(PROMPTS, 4, KEYS, Watch(frozenset(watched), embedding_rms(lm.embedding_VD)))


@torch.no_grad()
def states(lm: LanguageModel, made: Rollout, row: int) -> torch.Tensor:
    """Returns the states that the steps of a row are made of, from one pass over all that was fed."""
    assert made.record is not None
    ids, mask, positions = left_pad([PROMPTS[row // made.samples] + [0] * made.cot_lengths[row]], lm.device)
    embeds = lm.embed(ids)
    embeds[0, -made.cot_lengths[row] :] = made.record.x_NTD[row, : made.cot_lengths[row]]
    hidden: torch.Tensor = lm.hidden(embeds, causal_mask(mask), positions, None)[0]
    return hidden[-made.cot_lengths[row] - 1 : -1]


def kept(logits_TV: torch.Tensor, k: int | None) -> torch.Tensor:
    """Returns the logits with all but the k largest at -inf."""
    least = logits_TV.sort(-1, descending=True).values[:, (k or logits_TV.shape[1]) - 1, None]
    return logits_TV.where(logits_TV >= least, -torch.inf)


@pytest.mark.parametrize("name", SOFT_MODES)
def test_weights_and_displacement_are_those_that_the_model_gives(name: str) -> None:
    mode, lm = SOFT_MODES[name], tiny_model(spread=0.12)
    tokens, row = token_mode(lm, mode), 6
    made = rollout(policy(lm, tokens), batch([KEYS[row]], lm), record=True)
    assert made.thoughts.keys() == {row}
    assert len(made.thoughts[row]) == made.cot_lengths[row] > 3

    hidden_TD = states(lm, made, row)
    head_VD, embedding_VD = lm.head_VD.detach(), lm.embedding_VD.detach()
    draws = tokens.draws([KEYS[row]], embedding_VD)
    drawn = [
        draw if draw is None else draw[0].clone() for draw in (draws.at(t, np.arange(1)) for t in range(len(hidden_TD)))
    ]
    draw_TX = torch.stack([draw for draw in drawn if draw is not None] or [torch.zeros(1)] * len(hidden_TD))
    plain_TV = kept(hidden_TD @ head_VD.T, mode.top_k)
    mixed_TV, noise_TD = plain_TV, torch.zeros(())
    match name:
        case "hidden":
            mixed_TV = kept((hidden_TD + tokens.noise_std * draw_TX) @ head_VD.T, mode.top_k)
        case "logits":
            mixed_TV = plain_TV + tokens.noise_std * draw_TX
        case "gumbel":
            mixed_TV = plain_TV + gumbel(draw_TX)
        case _ if mode.noise_scale > 0:
            noise_TD = tokens.noise_std * draw_TX
    weights_TV = torch.softmax(mixed_TV.double() / mode.temperature, -1)
    fed_TD = weights_TV.float() @ embedding_VD + noise_TD
    still_TD = torch.softmax(plain_TV.double() / mode.temperature, -1).float() @ embedding_VD
    typical = embedding_VD.square().sum(1).mean().sqrt()
    moved = (fed_TD - still_TD).norm(dim=1) / typical
    for step, thought in enumerate(made.thoughts[row]):
        assert thought.ids[0] == made.cot_ids[row, step], "the heaviest is the shadow"
        top = weights_TV[step].sort(descending=True).values[:5]
        wanted = top[: max(1, int((top >= LEAST_WEIGHT).sum()))].tolist()
        assert thought.weights == pytest.approx(wanted, abs=2e-3 if "fuzzy" in name else 1e-4)
        assert weights_TV[step, thought.ids].tolist() == pytest.approx(thought.weights, abs=2e-3)
        assert thought.moved == pytest.approx(float(moved[step]), abs=1e-3)
    assert (sum(thought.moved for thought in made.thoughts[row]) == 0) == name.endswith("greedy")
    if name == "soft":
        assert math.isclose(float(moved.mean()), mode.noise_scale, rel_tol=0.15), (
            "noise on the mixture, in its own unit"
        )


@pytest.mark.parametrize("places", [1, 3, 5, 256])
@pytest.mark.parametrize("name", ["soft", "fuzzy", "logits"])
def test_rows_in_the_places_of_others_keep_their_own_thoughts(name: str, places: int) -> None:
    lm, watched = tiny_model(spread=0.12), [KEYS[1], KEYS[2], KEYS[11]]
    asked = policy(lm, token_mode(lm, SOFT_MODES[name]))
    alone, together = rollout(asked, batch(watched, lm)), streamed(asked, batch(watched, lm), Room(places, ANY))
    assert together.thoughts.keys() == alone.thoughts.keys() == {1, 2, 11}
    for row, steps in together.thoughts.items():
        assert len(steps) == together.cot_lengths[row]
        assert [step.ids[0] for step in steps] == together.cot(row)
        if together.cot(row) == alone.cot(row):
            assert_alike(steps, alone.thoughts[row])
    assert any(together.cot(row) == alone.cot(row) for row in together.thoughts)


def assert_alike(some: list[Thought], others: list[Thought]) -> None:
    for one, other in zip(some, others, strict=True):
        assert one.weights[0] == pytest.approx(other.weights[0], abs=1e-2)
        assert one.moved == pytest.approx(other.moved, abs=1e-3)


@pytest.mark.parametrize("name", [*SOFT_MODES, "hard"])
def test_what_is_watched_becomes_what_it_becomes_unwatched_to_the_bit(name: str) -> None:
    lm = tiny_model(spread=0.12)
    asked = policy(lm, token_mode(lm, (SOFT_MODES | MODES)[name]))
    watched, blind = batch(KEYS[2:5], lm), dataclasses.replace(batch([], lm), watch=Watch())
    seen, unseen = streamed(asked, watched, Room(5, ANY)), streamed(asked, blind, Room(5, ANY))
    assert seen.thoughts.keys() == (set() if name == "hard" else {2, 3, 4})
    assert not unseen.thoughts
    assert seen.answers == unseen.answers
    assert [seen.cot(row) for row in range(len(KEYS))] == [unseen.cot(row) for row in range(len(KEYS))]
    for row, length in enumerate(seen.cot_lengths):
        assert torch.equal(seen.entropy_NT[row, :length], unseen.entropy_NT[row, :length])


class OtherSteps(SoftTokens):
    """Steps of its own, and no word about what they mix."""

    def step(self, predicted: Predictions, draw: torch.Tensor | None) -> CotStep:
        return super().step(predicted, draw)


class ToldSteps(OtherSteps):
    """Says what its steps mix."""

    def mixed_logits(self, predicted: Predictions, draw: torch.Tensor | None) -> torch.Tensor:
        return super().mixed_logits(predicted, draw)


def test_own_steps_are_not_recorded_as_mixtures_that_they_may_not_be() -> None:
    lm = tiny_model(spread=0.12)
    for kind, watched in ((OtherSteps, set()), (ToldSteps, {0})):
        made = rollout(policy(lm, kind(SOFT_MODES["soft-greedy"])), batch([KEYS[0]], lm))
        assert made.thoughts.keys() == watched
