"""A path of one's own has its gradient through the thoughts, whatever it does with the mixture."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from softtok.method.noise_units import embedding_rms
from softtok.method.steps import Predictions
from softtok.method.token_modes import MODES, CotTokens, SoftTokens
from softtok.method.vocabulary_products import Vocabulary
from softtok.models.language_model import LanguageModel
from tests.support.gradients import Case, assert_same, make_advantages, make_rollout, pass_gradients
from tests.support.pathwise import PLACES, PlainRow, pathwise, rollout_gradients
from tests.support.tiny_models import tiny_model

STEPS = 5
EXACT = pathwise(STEPS - 1)
SCALE = 10.0  # beyond a tenth, coordinates of a mixture are bent


def bent(h_MD: torch.Tensor) -> torch.Tensor:
    return (SCALE * h_MD).tanh() / SCALE


class Bent(SoftTokens):
    """Soft tokens whose mixture is no longer a sum over rows of E; step and path make it alike."""

    def mixture(
        self, kept_NV: torch.Tensor, vocabulary: Vocabulary, p_NV: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h_ND, ids, near_tie = super().mixture(kept_NV, vocabulary, p_NV)
        return bent(h_ND), ids, near_tie

    def mean(self, predicted: Predictions) -> torch.Tensor:
        return bent(super().mean(predicted))


def make_case(lm: LanguageModel, kind: type[CotTokens], place: str) -> Case:
    tokens = kind(PLACES[place], PLACES[place].noise_scale * embedding_rms(lm.embedding_VD))
    out = make_rollout(lm, tokens, STEPS)
    return lm, tokens, out, make_advantages(len(out.answers))


def test_the_mixture_may_be_bent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slope of the bend is that at the mixture's value, in the iterations too."""
    feed = PlainRow.feed

    def bent_feed(self: PlainRow, states_TD: torch.Tensor, noise_TW: torch.Tensor) -> torch.Tensor:
        noise_TD = noise_TW.to(states_TD)
        return bent(feed(self, states_TD, noise_TW) - noise_TD) + noise_TD

    case = make_case(tiny_model(tied=False, spread=0.2, seed=7), Bent, "embedding")
    monkeypatch.setattr(PlainRow, "feed", bent_feed)
    assert_same(pass_gradients(case, EXACT), rollout_gradients(case))


@pytest.mark.parametrize("place", PLACES)
def test_a_class_of_ones_own_has_the_gradient_of_the_built_in_one(place: str) -> None:
    """The iterations of built-in modes skip values that nothing asks for."""
    base = MODES[PLACES[place].kind]
    own = cast("type[CotTokens]", type("Own", (base,), {}))
    lm = tiny_model(spread=0.2, seed=7)
    wanted, got = (pass_gradients(make_case(lm, kind, place), EXACT) for kind in (base, own))
    assert_same(got, wanted, 1e-6)
