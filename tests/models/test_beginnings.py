"""What prompts begin with is run once, and its states are those of each prompt run by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from softtok.models import beginnings
from softtok.models.attention import layer_states
from softtok.models.beginnings import blocks, common_tokens
from softtok.models.decoding import Decoder
from softtok.models.language_model import LanguageModel, begin, prefill
from tests.support.beginnings import ALIKE, COMMON, UNLIKE, WITHIN, positions_run, sharing
from tests.support.tiny_models import FAMILIES, tiny_model

DROPS = {1: [0, 1, 3, 4, 5], 3: [2, 3, 4]}  # the places that are kept at a step
PROMPTS = {"alike": (ALIKE, len(COMMON)), "within": (WITHIN, len(COMMON) - 1), "unlike": (UNLIKE, 0)}


def alone(lm: LanguageModel, text: list[int]) -> tuple[torch.Tensor, DynamicCache]:
    """Returns the model's own final states (T, D) of a text, and its keys and values."""
    cache = DynamicCache()
    out = lm.model.base_model(input_ids=torch.tensor([text]), past_key_values=cache, use_cache=True)
    return out.last_hidden_state[0], cache


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), min_size=1, max_size=4))
def test_a_common_beginning_is_the_longest_that_leaves_a_token_to_each(prompts: list[list[int]]) -> None:
    with sharing(True):
        found = common_tokens(prompts)
    shared = [n for n in range(8) if len({tuple(prompt[:n]) for prompt in prompts}) == 1 and n < min(map(len, prompts))]
    assert found == (max(shared) if len(prompts) > 1 else 0)


def test_a_beginning_is_shared_where_it_pays() -> None:
    """A single prompt spares nothing, and short beginnings of few prompts little."""
    text, spared = list(range(200)), beginnings.LEAST_SPARED
    assert common_tokens([text]) == 0
    assert common_tokens([text, text]) == 199
    least = beginnings.LEAST_TOKENS
    many = -(-spared // least) + 1
    assert common_tokens([[*text[:least], i] for i in range(many)]) == least
    assert common_tokens([[*text[:least], i] for i in range(many - 1)]) == 0, "too little is spared"
    assert common_tokens([[*text[: least - 1], i] for i in range(100)]) == 0, "too short for a product of its own"


@pytest.mark.parametrize("case", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_prompts_behind_a_beginning_are_the_prompts_one_by_one(family: str, case: str) -> None:
    """Compares final states, and keys and values in the order of positions; counts what goes through the body."""
    lm, (prompts, common) = tiny_model(family), PROMPTS[case]
    with sharing(True), positions_run() as run:
        made = prefill(lm, prompts)
    rest = max(map(len, prompts)) - common
    assert run == ([(1, common)] if common else []) + [(len(prompts), rest)]
    assert made.lengths_B.tolist() == list(map(len, prompts))
    assert made.mask_BP.sum(1).tolist() == [len(prompt) - common for prompt in prompts]
    for row, prompt in enumerate(prompts):
        states, cache = alone(lm, prompt)
        same(made.last_BD[row], states[-1])
        for ours, theirs in zip(made.cache.layers, cache.layers, strict=True):
            *front, own = blocks(ours)
            assert [len(x) for begun in front for x in begun] == [1, 1] * (common > 0), "held once"
            for i, wanted in enumerate(layer_states(theirs)):
                parts = [*(begun[i][0] for begun in front), own[i][row][:, made.mask_BP[row]]]
                same(torch.cat(parts, 1), wanted[0])


@torch.no_grad()
def test_a_beginning_serves_prompts_that_come_later() -> None:
    """Although these alone begin with more."""
    lm, later = tiny_model(), [[*COMMON, 3, 4, 5], [*COMMON, 3, 4, 6, 7]]
    with sharing(True):
        beginning = begin(lm, ALIKE)
        with positions_run() as run:
            made = prefill(lm, later, beginning)
    assert run == [(2, 4)]
    for row, prompt in enumerate(later):
        same(made.last_BD[row], alone(lm, prompt)[0][-1])
    with sharing(True), pytest.raises(AssertionError):
        prefill(lm, [[2, 60, 1], *later], beginning)


@pytest.mark.parametrize("case", PROMPTS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_decoding_behind_a_beginning_is_the_uncached_forward(family: str, case: str) -> None:
    """Rows are dropped, unevenly over the prompts, and then all rows of the first prompt."""
    lm, (prompts, _) = tiny_model(family), PROMPTS[case]
    steps = torch.arange(6 * 5).reshape(6, 5) % 64
    with sharing(True):
        made = prefill(lm, prompts)
        decoder = Decoder(lm, made.cache, made.mask_BP, samples=2, length=5)
    rows = torch.arange(6)
    for step in range(5):
        if step in DROPS:
            kept = torch.tensor(DROPS[step])
            rows = rows[kept]
            decoder.keep(kept)
        positions = made.lengths_B.repeat_interleave(2)[rows] + step
        hidden = decoder.step(lm.embed(steps[rows, step]), positions)
        for i, row in enumerate(rows.tolist()):
            same(hidden[i], alone(lm, prompts[row // 2] + steps[row, : step + 1].tolist())[0][-1])
    assert rows.tolist() == [3, 4, 5]
