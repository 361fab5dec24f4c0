"""The pathwise pass gives the gradient through the thoughts: autograd's through a whole rollout, with nothing left out.

`tests/support/pathwise.py` has that gradient in plain code. T is 7 here, so that 6 iterations are exact.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from softtok.config.settings import TokenMode, TrainingSettings
from softtok.method.terms import TERMS, Tiling
from softtok.method.trajectories import STOPS
from softtok.models.language_model import LanguageModel
from tests.support.gradients import (
    SETTINGS,
    SMALL_TILES,
    TILING,
    Case,
    LargestOfVocabulary,
    assert_same,
    in_double,
    make_advantages,
    make_rollout,
    naive_loss,
    pass_gradients,
    run_pass,
    take_gradients,
)
from tests.support.pathwise import PLACES, TOP_K, pathwise, rollout_gradients, series
from tests.support.tiny_models import tiny_model, token_mode

STEPS = 7
EXACT = pathwise(STEPS - 1)
FAMILIES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)]


def make_case(mode: TokenMode, family: str = "llama", tied: bool = True, steps: int = STEPS) -> Case:
    """Returns a case whose thoughts depend on each other, but so little that fp32 follows them to 1e-6."""
    lm = tiny_model(family, tied=tied, spread=0.2, seed=7)
    tokens = token_mode(lm, mode)
    out = make_rollout(lm, tokens, steps)
    return lm, tokens, out, make_advantages(len(out.answers))


def few_rows(case: Case) -> Case:
    """Returns the case with an advantage in the first rows of the two longest thoughts of each prompt."""
    lm, tokens, out, advantages = case
    kept = np.zeros_like(advantages)
    for prompt in range(len(out.prompts)):
        rows = range(prompt * out.samples, (prompt + 1) * out.samples)
        for row in sorted(rows, key=lambda row: -out.cot_lengths[row])[:2]:
            kept[row] = 1.0 + row
    return lm, tokens, out, kept


def entropy_bonus(settings: TrainingSettings) -> TrainingSettings:
    """Returns the settings with a bonus that counts for as much as the answers do."""
    return settings.model_copy(update={"entropy_bonus": 0.3})


@pytest.mark.parametrize("place", PLACES)
def test_trajectories_end_in_every_way(place: str) -> None:
    """What the comparisons below rest on: unequal lengths, words after each kind of stop, rows without advantage."""
    _, _, out, advantages = make_case(PLACES[place])
    assert set(out.stops.tolist()) == set(range(len(STOPS))), f"stops {out.stops}"
    assert len(set(out.cot_lengths.tolist())) > 2 and out.cot_lengths.max() == STEPS, f"lengths {out.cot_lengths}"
    assert len({len(out.prefill(row)) for row in range(len(out.answers))}) > 1, "the prefills differ in length"
    assert (advantages == 0).any()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_the_gradient_is_that_of_a_rollout_that_autograd_goes_through(place: str, family: str, tied: bool) -> None:
    """Whatever the tiles and micro-batches."""
    case = make_case(PLACES[place], family, tied)
    wanted = rollout_gradients(case)
    assert_same(pass_gradients(case, EXACT), wanted)
    assert_same(pass_gradients(case, EXACT, tiling=SMALL_TILES), wanted)


@pytest.mark.parametrize("place", PLACES)
def test_without_a_gradient_of_the_mixtures_rows(place: str) -> None:
    """With the switch off, E in F is a constant, but what comes before still goes through it."""
    case, settings = make_case(PLACES[place], tied=False), SETTINGS.model_copy(update={"embedding_gradient": False})
    wanted = rollout_gradients(case, settings)
    assert_same(pass_gradients(case, pathwise(STEPS - 1, settings)), wanted)
    name = "model.embed_tokens.weight"
    with_it = pass_gradients(case, EXACT)[name]
    assert (with_it - wanted[name]).norm() > 0.05 * with_it.norm(), "the switch should matter"


@pytest.mark.parametrize("place", TOP_K)
def test_the_kept_logits_are_those_of_the_rollout(place: str) -> None:
    case = make_case(TOP_K[place], tied=False)
    assert_same(pass_gradients(case, EXACT), rollout_gradients(case))


@pytest.mark.parametrize("embedding_gradient", [True, False])
def test_fuzzy_thoughts_teach_the_rows_that_they_are(embedding_gradient: bool) -> None:
    """They do not depend on the logits, but for near ties: with E in F a constant, the answer's term alone is left."""
    mode = TokenMode(tokens="soft", temperature=1e-4, noise_scale=0.5)
    case = make_case(mode, tied=False)
    settings = SETTINGS.model_copy(update={"embedding_gradient": embedding_gradient})
    wanted, exact = rollout_gradients(case, settings), pathwise(STEPS - 1, settings)
    assert_same(pass_gradients(case, exact), wanted)
    assert_same(pass_gradients(case, exact, tiling=SMALL_TILES), wanted)
    path = pass_gradients(case, exact, ("cot",))
    size = path.pop("model.embed_tokens.weight").norm()
    assert bool(size > 0) == embedding_gradient
    assert all(gradient.norm() <= 1e-4 * size for gradient in path.values())


@pytest.mark.parametrize("place", ["embedding", "logits"])
def test_the_entropy_bonus_has_its_derivative_through_the_thoughts(place: str) -> None:
    """All rows have a bonus, those without an advantage too."""
    case, settings = make_case(PLACES[place], tied=False), entropy_bonus(SETTINGS)
    wanted = rollout_gradients(case, settings)
    assert_same(pass_gradients(case, pathwise(STEPS - 1, settings)), wanted)
    assert_same(pass_gradients(case, pathwise(STEPS - 1, settings), tiling=SMALL_TILES), wanted)


@pytest.mark.parametrize("place", PLACES)
def test_a_few_iterations_give_the_series_cut_off_there(place: str) -> None:
    """With residual and growth: they tell how far the iterations have come."""
    case = few_rows(make_case(PLACES[place], tied=False))
    assert_same(series(case, STEPS - 1).gradients, rollout_gradients(case))
    exact = pass_gradients(case, EXACT)
    for iterations in (0, 1):
        wanted = series(case, iterations)
        case[0].model.zero_grad()
        metrics = run_pass(case, pathwise(iterations)).as_metrics()
        got = take_gradients(case[0])
        assert_same(got, wanted.gradients)
        assert metrics["adjoint_residual"] == pytest.approx(wanted.residual, rel=1e-3)
        assert metrics["adjoint_growth"] == pytest.approx(wanted.growth, rel=1e-3)
        with pytest.raises(AssertionError, match="relative difference"):
            assert_same(got, exact, 1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_terms_add_up(place: str) -> None:
    """The answer's term is the plain loss's, at fixed x; what the other adds is the path's."""
    case = make_case(PLACES[place], tied=False)
    path, direct = pass_gradients(case, EXACT, ("cot",)), pass_gradients(case, EXACT, ("answer",))
    assert_same({name: path[name] + direct[name] for name in path}, pass_gradients(case, EXACT, TERMS))
    lm, tokens, out, advantages = in_double(case[0]), *case[1:]
    naive_loss(lm, tokens, out, advantages, terms=("answer",)).backward()
    assert_same(direct, {name: gradient.float() for name, gradient in take_gradients(lm).items()})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_iterations_leave_no_trace_in_any_gradient(place: str, tied: bool) -> None:
    """With one thought there is nothing to iterate; with seven, iterations beyond the sixth change nothing.

    Were an iteration to add to a gradient, more of them would add more.
    """
    short, long = make_case(PLACES[place], tied=tied, steps=1), make_case(PLACES[place], tied=tied)
    for case, few, many in ((short, 0, 5), (long, STEPS - 1, STEPS + 3)):
        wanted = pass_gradients(case, pathwise(few))
        for name, gradient in pass_gradients(case, pathwise(many)).items():
            assert torch.equal(gradient, wanted[name]), f"{name}: {few} and {many} iterations differ"


def test_gradients_add_to_what_is_there() -> None:
    case = make_case(PLACES["embedding"])
    once = pass_gradients(case, EXACT)
    run_pass(case, EXACT)
    assert_same(take_gradients(case[0]), {name: 2 * gradient for name, gradient in once.items()}, 1e-6)


@pytest.mark.parametrize("place", [*PLACES, "logits-top-k"])
def test_gradients_do_not_depend_on_micro_batch_or_tile(place: str) -> None:
    """Nor does what the pass tells of them."""
    case = make_case({**PLACES, **TOP_K}[place])
    whole = pass_gradients(case, pathwise(2))
    seen = run_pass(case, pathwise(2)).as_metrics()
    for micro_batch_tokens, tile_tokens in ((1, 512), (40, 7), (16384, 1)):
        tiling = Tiling(micro_batch_tokens, tile_tokens)
        assert_same(pass_gradients(case, pathwise(2), tiling=tiling), whole)
        assert run_pass(case, pathwise(2), tiling=tiling).as_metrics() == pytest.approx(seen, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_vocabulary_exists_for_one_tile_at_a_time(place: str) -> None:
    """In the iterations too: the largest tensor with a vocabulary axis, matrices aside, has the rows of one tile."""
    lm = tiny_model(vocabulary=67, tied=False)
    tokens = token_mode(lm, PLACES[place])
    out = make_rollout(lm, tokens)
    case = lm, tokens, out, make_advantages(len(out.answers))
    with LargestOfVocabulary(67, lm.embedding_VD.shape[1]) as largest:
        pass_gradients(case, pathwise(2), tiling=Tiling(TILING.micro_batch_tokens, 5))
    assert largest.rows == 5
    assert out.cot_lengths.sum() > 50


@pytest.mark.parametrize("place", PLACES)
def test_bf16_weights_have_nearly_the_gradient_of_the_same_weights_in_fp32(place: str) -> None:
    """The thoughts are those that bf16 made. Two passes are equal to the bit."""
    lm = tiny_model(dtype=torch.bfloat16, spread=0.1, tied=False)  # smaller weights, smaller rounding errors
    tokens = token_mode(lm, PLACES[place])
    out = make_rollout(lm, tokens)
    advantages = make_advantages(len(out.answers))
    rounded, again = (pass_gradients((lm, tokens, out, advantages), pathwise(2)) for _ in range(2))
    for name, gradient in rounded.items():
        assert torch.equal(gradient, again[name]), f"{name}: two passes differ"
    exact = LanguageModel(in_double(lm).model.float(), lm.tokenizer, lm.name)
    wanted = pass_gradients((exact, tokens, out, advantages), pathwise(2))
    direct = pass_gradients((exact, tokens, out, advantages), pathwise(2), ("answer",))
    gap, path = (
        functools.reduce(np.hypot, [(a[name].float() - wanted[name]).norm().item() for name in wanted])
        for a in (rounded, direct)
    )
    whole = functools.reduce(np.hypot, [gradient.norm().item() for gradient in wanted.values()])
    print(f"{place}: off by {gap / whole:.4f}, and without the path by {path / whole:.4f}")
    assert gap < 0.05 * whole
    assert gap < 0.3 * path, "rounding is small beside what the path adds"
