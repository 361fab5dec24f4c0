"""Trajectories: the batched rollout is what a plain loop over one row gives, the training pass sees the same states,
and text ends phases where it should."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softtok.config.schema import RuntimeSettings, TokenMode, TrainingSettings
from softtok.method import objective
from softtok.method.draws import DRAW_BLOCK, Draws
from softtok.method.objective import accumulate_gradients, lay_out
from softtok.method.rollout import rollout
from softtok.method.stopping import TextRules
from softtok.method.token_modes import CotTokens, embedding_rms, hard_log_prob
from softtok.method.trajectories import STOPS, Limits, Rollout
from softtok.models.language_model import LanguageModel
from softtok.problems.prompt import PREFILL_AFTER_CUT, PREFILL_AFTER_STOP, STOP_PHRASE, decode
from tests.support.rollouts import KEYS, LIMITS, MODES, PROMPTS, SAMPLES, SPREAD, roll, rules
from tests.support.tiny_models import FAMILIES, TokenRules, tiny_model, token_mode

SAMPLED = ["hard", "soft", "fuzzy"]
# Two runs may part where an argmax leads by less than this in logits, or a uniform is this near a step of the CDF.
NEAR_TIE = 1e-4
NEAR_TIE_CDF = 1e-5
# Where the argmax leads by 40 temperatures a fuzzy mixture is one row of E; below, h magnifies rounding 1e4-fold.
FUZZY_GAP = 40 * 1e-4


# The rollout against a plain loop


@dataclass
class Trajectory:
    """One row, and how close its calls were."""

    cot: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    stop: str = ""
    x: list[torch.Tensor] = field(default_factory=list)
    h: list[torch.Tensor] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # lead of the argmax at each CoT step
    close_calls: int = 0


def by_hand(
    lm: LanguageModel, rules: TokenRules, tokens: CotTokens, prompt: list[int], key: str, limits: Limits
) -> Trajectory:
    """One trajectory, as the paper describes it: one row, no cache, no padding, the model's own forward over the
    whole text at every step, fp64 where the vocabulary appears."""
    made, embedding = Trajectory(), lm.embedding_VD.detach()
    fed = [embedding[i] for i in prompt]
    cot_draws = Draws([key], "cot", tokens.draws, embedding.shape[1] if tokens.soft else 1, lm.device)
    answer_draws = Draws([key], "answer", "uniform", limits.max_answer_tokens, lm.device, block=1).at(0, np.arange(1))

    def next_logits() -> torch.Tensor:
        with torch.no_grad():
            return lm.model(inputs_embeds=torch.stack(fed)[None]).logits[0, -1].double()

    def choose(logits: torch.Tensor, temperature: float, u: float | None) -> int:
        if temperature == 0 or u is None:
            top = logits.topk(2).values
            made.close_calls += bool(top[0] - top[1] < NEAR_TIE)
            return int(logits.argmax())
        cdf = (logits / temperature).softmax(-1).cumsum(-1)
        made.close_calls += bool((cdf - u).abs().min() < NEAR_TIE_CDF)
        return int((cdf <= u).sum())

    while not made.stop:
        logits = next_logits()
        top = logits.topk(2).values
        made.gaps.append((top[0] - top[1]).item())
        made.entropy.append(torch.distributions.Categorical(logits=logits).entropy().item())
        draw = cot_draws.at(len(made.cot), np.arange(1))
        if tokens.soft:
            made.cot.append(choose(logits, 0, None))
            made.h.append(((logits / tokens.mode.temperature).softmax(-1) @ embedding.double()).float())
            made.x.append(made.h[-1] if draw is None else made.h[-1] + tokens.noise_std * draw[0])
            fed.append(made.x[-1])
        else:
            made.cot.append(choose(logits, tokens.mode.temperature, None if draw is None else draw[0, 0].item()))
            fed.append(embedding[made.cot[-1]])
        made.stop = rules.stop(np.array(made.cot)) or ("cap" if len(made.cot) == limits.max_cot_tokens else "")

    words = rules.prefill_after_phrase if made.stop == "phrase" else rules.prefill_after_cut
    fed += [embedding[i] for i in words]
    while len(made.answer) < limits.max_answer_tokens and not (made.answer and rules.answer_ends(made.answer)):
        u = answer_draws[0, len(made.answer)].item() if limits.answer_temperature else None
        made.answer.append(choose(next_logits(), limits.answer_temperature, u))
        fed.append(embedding[made.answer[-1]])
    return made


@pytest.mark.parametrize("mode", SAMPLED)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_batched_rollout_is_the_plain_loop(family: str, mode: str) -> None:
    """Every phase of every row: tokens, reasons to stop, answers; mixtures and inputs to 1e-3 sigma; entropies.

    Excused are rows with a close call (which may part from there on), and the mixtures of a fuzzy row from its first
    near-tie within 40 temperatures on; both are few.
    """
    lm = tiny_model(family, tied=family == "qwen2", spread=SPREAD[mode])
    tokens, out = token_mode(lm, MODES[mode]), roll(lm, mode)
    parted = close = blurred = 0
    for row, key in enumerate(KEYS):
        wanted = by_hand(lm, rules(), tokens, PROMPTS[row // SAMPLES], key, LIMITS)
        same = (out.cot(row), STOPS[out.stops[row]], out.answers[row]) == (wanted.cot, wanted.stop, wanted.answer)
        if wanted.close_calls:
            close, parted = close + 1, parted + (not same)
            continue
        assert same, f"row {row} differs without a close call"
        length = len(wanted.cot)
        torch.testing.assert_close(out.entropy_NT[row, :length], torch.tensor(wanted.entropy), rtol=0, atol=1e-3)
        if not tokens.soft:
            continue
        clear = length
        if mode == "fuzzy":
            clear = next((t for t, gap in enumerate(wanted.gaps) if gap < FUZZY_GAP), length)
            blurred += clear < length
        assert out.x_NTD is not None and out.mixture_NTD is not None
        for got, hand in ((out.mixture_NTD, wanted.h), (out.x_NTD, wanted.x)):
            off = (got[row, :clear] - torch.stack(hand)[:clear]).abs()
            assert off.numel() == 0 or off.max() < 1e-3 * tokens.noise_std, f"row {row}"
    assert parted <= 1 and close <= len(KEYS) // 4 and blurred <= len(KEYS) // 4
    assert len(set(out.stops)) > 1 and len(set(out.cot_lengths)) > 3, "thoughts end for several reasons, at many steps"
    assert len({len(answer) for answer in out.answers}) > 2


@pytest.mark.parametrize("mode", ["hard-greedy", "soft-greedy", "fuzzy-greedy"])
def test_greedy_rollouts_are_the_plain_loop(mode: str) -> None:
    """Greedy CoT and greedy answers, as in evaluation."""
    lm, limits = tiny_model(tied=False, spread=SPREAD[mode.removesuffix("-greedy")]), Limits(12, 5, 0.0, "shadow")
    prompts = [[i, 3 * i, 5] for i in range(2, 20)]
    out = roll(lm, mode, prompts=prompts, samples=1, keys=[""] * len(prompts), limits=limits)
    parted = 0
    for row, prompt in enumerate(prompts):
        wanted = by_hand(lm, rules(), token_mode(lm, MODES[mode]), prompt, "", limits)
        same = (out.cot(row), STOPS[out.stops[row]], out.answers[row]) == (wanted.cot, wanted.stop, wanted.answer)
        assert same or wanted.close_calls, f"row {row} differs without a close call"
        parted += not same
    assert parted <= 1


@pytest.mark.parametrize("mode", ["hard-greedy", "soft-greedy", "fuzzy-greedy"])
def test_near_ties_are_counted(mode: str) -> None:
    """With every logit 0, each CoT step and each answer token is one; in a model that knows what it wants none is."""
    lm, limits = tiny_model(tied=False), Limits(4, 3, 0.0, "shadow")
    assert roll(lm, mode, limits=limits).near_ties.sum() <= 1
    lm.head_VD.data.zero_()
    out = rollout(lm, TokenRules(64), token_mode(lm, MODES[mode]), PROMPTS, 2, KEYS[:6], limits)
    assert out.near_ties.tolist() == [4 + 3] * 6


# What a trajectory must not depend on


def assert_same_rows(a: Rollout, rows_a: list[int], b: Rollout, rows_b: list[int], tolerance: float) -> int:
    """Rows are equal, what they are fed up to `tolerance`; returns how many part and are excused because the rollout
    itself counted a near-tie in them."""
    parted = 0
    for i, j in zip(rows_a, rows_b, strict=True):
        same = (a.cot(i), a.stops[i], a.answers[i]) == (b.cot(j), b.stops[j], b.answers[j])
        assert same or a.near_ties[i] + b.near_ties[j] > 0, f"rows {i} and {j} differ without a near-tie"
        parted += not same
        if same and a.x_NTD is not None and b.x_NTD is not None:
            off = (a.x_NTD[i, : a.cot_lengths[i]] - b.x_NTD[j, : b.cot_lengths[j]]).abs().max()
            assert off < tolerance, f"rows {i} and {j} are fed other mixtures"
    return parted


def whole(rows: int = len(KEYS)) -> list[int]:
    return list(range(rows))


def each_row_alone(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    parted = 0
    for row in whole():
        out = roll(lm, mode, prompts=[PROMPTS[row // SAMPLES]], samples=1, keys=[KEYS[row]])
        parted += assert_same_rows(base, [row], out, [0], tolerance)
    return parted


def other_order(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    order = [2, 0, 1]
    moved = [b * SAMPLES + g for b in order for g in reversed(range(SAMPLES))]
    out = roll(lm, mode, prompts=[PROMPTS[b] for b in order], keys=[KEYS[row] for row in moved])
    return assert_same_rows(base, moved, out, whole(), tolerance)


def more_padding(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    long = [[7, 3, 9, 30, 2] * 9]
    out = roll(lm, mode, prompts=long + PROMPTS, keys=[f"long {g}" for g in range(SAMPLES)] + KEYS)
    return assert_same_rows(base, whole(), out, [SAMPLES + row for row in whole()], tolerance)


def no_dropped_rows(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    out = roll(lm, mode, drop_rows=False)
    assert out.decode_rows > base.decode_rows, "rows were dropped, so that there is something to compare"
    return assert_same_rows(base, whole(), out, whole(), tolerance)


def prompts_repeated(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    out = roll(lm, mode, prompts=[prompt for prompt in PROMPTS for _ in range(SAMPLES)], samples=1)
    return assert_same_rows(base, whole(), out, whole(), tolerance)


@pytest.mark.parametrize("change", [each_row_alone, other_order, more_padding, no_dropped_rows, prompts_repeated])
@pytest.mark.parametrize("mode", SAMPLED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trajectory_depends_on_its_prompt_and_key_alone(
    family: str, mode: str, change: Callable[[LanguageModel, str, Rollout, float], int]
) -> None:
    lm = tiny_model(family, spread=SPREAD[mode], seed=1)
    # Within 40 temperatures of a tie, a fuzzy mixture magnifies rounding ten-thousandfold.
    tolerance = token_mode(lm, MODES[mode]).noise_std * (0.2 if mode == "fuzzy" else 1e-3)
    parted = change(lm, mode, roll(lm, mode), tolerance)
    assert parted <= 1, "near-ties are rare"


@pytest.mark.parametrize("mode", SAMPLED)
def test_samples_of_one_prompt_differ(mode: str) -> None:
    out = roll(tiny_model(spread=SPREAD[mode]), mode)
    for b in range(len(PROMPTS)):
        lines = {tuple(out.cot(row)) for row in range(b * SAMPLES, (b + 1) * SAMPLES)}
        assert len(lines) > SAMPLES // 2


@pytest.mark.parametrize("mode", ["hard-greedy", "soft-greedy", "fuzzy-greedy"])
def test_without_sampling_the_key_does_not_matter(mode: str) -> None:
    lm, limits = tiny_model(spread=SPREAD[mode.removesuffix("-greedy")]), Limits(20, 6, 0.0, "shadow")
    first, second = (roll(lm, mode, keys=keys, limits=limits) for keys in (KEYS, KEYS[::-1]))
    assert assert_same_rows(first, whole(), second, whole(), 1e-3) == 0
    assert np.array_equal(first.cot_lengths, np.repeat(first.cot_lengths[::SAMPLES], SAMPLES)), "all samples are one"


def test_fuzzy_without_noise_is_hard_greedy_token_for_token() -> None:
    """Over 200 greedy trajectories; they may part at a near-tie within 40 temperatures only."""
    lm, limits = tiny_model(), Limits(12, 5, 0.0, "shadow")
    prompts = [[i % 61, i % 7, 5, i % 13] for i in range(200)]
    fuzzy, hard = (
        roll(lm, mode, prompts=prompts, samples=1, keys=[""] * 200, limits=limits)
        for mode in ("fuzzy-greedy", "hard-greedy")
    )
    same = [
        (fuzzy.cot(row), fuzzy.stops[row], fuzzy.answers[row]) == (hard.cot(row), hard.stops[row], hard.answers[row])
        for row in range(200)
    ]
    parted = [row for row in range(200) if not same[row]]
    for row in parted:
        wanted = by_hand(lm, rules(), token_mode(lm, MODES["hard-greedy"]), prompts[row], "", limits)
        assert min(wanted.gaps) < FUZZY_GAP
    assert len(parted) <= 6


def test_hard_sampling_goes_to_greedy_as_the_temperature_falls() -> None:
    lm = tiny_model()
    greedy = roll(lm, "hard-greedy", limits=Limits(20, 6, 0.0, "shadow"))
    cold = rollout(
        lm,
        rules(),
        token_mode(lm, TokenMode(tokens="hard", temperature=1e-4)),
        PROMPTS,
        SAMPLES,
        KEYS,
        Limits(20, 6, 1e-4, "shadow"),
    )
    same = sum((greedy.cot(row), greedy.answers[row]) == (cold.cot(row), cold.answers[row]) for row in whole())
    assert same >= len(KEYS) - 1


# The training pass sees the rollout's states


def zero_near_ties(lm: LanguageModel, tokens: CotTokens, out: Rollout, advantages: np.ndarray) -> int:
    """Takes rows with a fuzzy near-tie out of the pass, and returns their number."""
    left_out = 0
    for row in range(len(advantages)):
        gaps = naive_logits(lm, tokens, out, row)[: out.cot_lengths[row]].topk(2).values
        if (gaps[:, 0] - gaps[:, 1] < FUZZY_GAP).any():
            advantages[row] = 0.0
            left_out += 1
    return left_out


@torch.no_grad()
def naive_logits(lm: LanguageModel, tokens: CotTokens, out: Rollout, row: int) -> torch.Tensor:
    """Logits before every completion token of one row, from the model's own forward over all that it was fed."""
    embedding = lm.embedding_VD.detach()
    prompt, length = out.prompts[row // out.samples], out.cot_lengths[row]
    thought = out.x_NTD[row, :length] if tokens.soft else embedding[out.cot(row)]  # type: ignore[index]
    rest = embedding[out.prefills[out.stops[row]] + out.answers[row]]
    logits = lm.model(inputs_embeds=torch.cat([embedding[prompt], thought, rest])[None]).logits[0]
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("mode", ["soft", "fuzzy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_recomputes_the_mixtures_of_the_rollout(family: str, mode: str) -> None:
    """h of the teacher-forced pass, and of a naive forward, equals the rollout's to 1e-3 sigma, early stops included;
    noise has the length its density assumes. Rows with a fuzzy near-tie are taken out and counted."""
    lm = tiny_model(family, seed=2)
    tokens, out = token_mode(lm, MODES[mode]), roll(lm, mode)
    assert out.x_NTD is not None and out.mixture_NTD is not None
    assert len(set(out.cot_lengths)) > 3, "rows stop early, at different steps"
    advantages = np.random.default_rng(0).normal(size=len(KEYS))
    if mode == "fuzzy":
        assert zero_near_ties(lm, tokens, out, advantages) <= len(KEYS) // 4
    rows = np.flatnonzero(advantages)

    squares, embedding = [], lm.embedding_VD.detach().double()
    for row in rows:
        length = out.cot_lengths[row]
        logits = naive_logits(lm, tokens, out, row)[:length].double()
        h = (logits / tokens.mode.temperature).softmax(-1) @ embedding
        assert (h - out.mixture_NTD[row, :length]).abs().max() < 1e-3 * tokens.noise_std, f"row {row}"
        squares.append((out.x_NTD[row, :length] - out.mixture_NTD[row, :length]).double().square())
    ratio = torch.cat(squares).mean().item() / tokens.noise_std**2
    assert abs(ratio - 1) < 4 * math.sqrt(2 / torch.cat(squares).numel())

    seen = accumulate_gradients(
        lm, tokens, out, advantages, TrainingSettings(), RuntimeSettings(micro_batch_tokens=300, tile_tokens=50)
    )
    metrics = seen.as_metrics()
    assert seen.tokens == out.cot_lengths[rows].sum()
    assert metrics["recomputation_gap"] < 1e-3
    assert metrics["noise_check"] == pytest.approx(ratio, rel=1e-4)
    assert metrics["shadow_flips"] <= 1 / seen.tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_hard_log_probs_of_training_are_those_of_sampling(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass's log-probabilities, CoT and answer, are the log-softmax of the naive forward at the temperature that
    was sampled with; nothing else enters the loss: prefilled words carry none."""
    lm = tiny_model(family, tied=False)
    tokens = token_mode(lm, TokenMode(tokens="hard", temperature=0.8))
    limits = Limits(20, 6, 1.3, "shadow")
    out = rollout(lm, rules(), tokens, PROMPTS, SAMPLES, KEYS, limits)
    terms: dict[float, list[torch.Tensor]] = {0.8: [], 1.3: []}

    def spy(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
        terms[temperature].append(hard_log_prob(logits, ids, temperature))
        return terms[temperature][-1]

    monkeypatch.setattr(objective, "hard_log_prob", spy)
    settings = TrainingSettings(answer_temperature=1.3)
    accumulate_gradients(lm, tokens, out, np.ones(len(KEYS)), settings, RuntimeSettings(micro_batch_tokens=200))

    wanted: dict[float, list[torch.Tensor]] = {0.8: [], 1.3: []}
    for row in whole():
        length, words = out.cot_lengths[row], len(out.prefills[out.stops[row]])
        logits = naive_logits(lm, tokens, out, row)
        answer = torch.tensor(out.answers[row])
        wanted[0.8].append((logits[:length] / 0.8).log_softmax(-1)[range(length), torch.tensor(out.cot(row))])
        wanted[1.3].append((logits[length + words :] / 1.3).log_softmax(-1)[range(len(answer)), answer])
    for temperature in (0.8, 1.3):  # the pass runs the rows in an order of its own
        got = torch.cat(terms[temperature]).detach().sort().values
        torch.testing.assert_close(got, torch.cat(wanted[temperature]).sort().values, rtol=0, atol=1e-3)


def test_tokens_are_drawn_from_the_probabilities_that_training_uses() -> None:
    """First CoT token and first answer token of 6000 samples of one prompt against hard_log_prob, by chi-square."""
    lm, count = tiny_model(spread=0.2), 6000
    tokens, limits = token_mode(lm, MODES["hard"]), Limits(1, 1, 0.7, "shadow")
    plain = TokenRules(64)
    out = rollout(lm, plain, tokens, [[8, 9, 10]], count, [str(i) for i in range(count)], limits)
    first = torch.tensor(out.cot_ids[:, 0])
    most = int(first.bincount().argmax())
    given = [row for row in range(count) if out.cot_ids[row, 0] == most]
    answers = torch.tensor([out.answers[row][0] for row in given])
    logits = naive_logits(lm, tokens, out, given[0])
    for ids, before, temperature in ((first, logits[0], 1.0), (answers, logits[-1], 0.7)):
        expected = len(ids) * hard_log_prob(before.expand(64, -1), torch.arange(64), temperature).double().exp()
        often = expected > 5
        observed = ids.bincount(minlength=64).double()
        observed, expected = (torch.cat([v[often], v[~often].sum()[None] + 1e-9]) for v in (observed, expected))
        assert len(observed) > 10
        assert stats.chisquare(observed.numpy(), (expected * observed.sum() / expected.sum()).numpy()).pvalue > 1e-3


def test_completions_are_laid_out_as_they_were_fed() -> None:
    """[CoT | prefill | answer]: the masks mark what was sampled, also where the id is 0 (a real token); prefill and
    padding carry none."""
    out = Rollout(
        prompts=[[1]], samples=3, cot_ids=np.array([[0, 3, 0], [4, 9, 9], [6, 6, 6]]), cot_lengths=np.array([3, 1, 2]),
        stops=np.array([0, 1, 2]), prefills=([0, 8], [0, 8, 0], [0, 8, 0]), answers=[[0], [0, 2, 0], [5]],
        near_ties=np.zeros(3), entropy_NT=torch.zeros(3, 3),
    )  # fmt: skip
    laid = lay_out(out)
    assert laid.ids_NL.tolist() == [[0, 3, 0, 0, 8, 0, 0], [4, 0, 8, 0, 0, 2, 0], [6, 6, 0, 8, 0, 5, 0]]
    assert laid.lengths_N.tolist() == [6, 7, 6]
    marks = [
        ["".join("ca-"[0 if c else 1 if a else 2] for c, a in zip(*row, strict=True))]
        for row in zip(laid.cot_NL, laid.answer_NL, strict=True)
    ]
    assert marks == [["ccc--a-"], ["c---aaa"], ["cc---a-"]]


@pytest.mark.parametrize("mode", ["soft", "fuzzy"])
def test_the_nearest_token_may_end_a_cot(mode: str) -> None:
    """`stop_on: nearest` reads the text of the rows of E nearest to what was fed, and stops by it."""
    lm = tiny_model(spread=SPREAD[mode])
    tokens = token_mode(lm, MODES[mode].model_copy(update={"noise_scale": 3.0}))
    shadow, nearest = (
        rollout(lm, rules(), tokens, PROMPTS, SAMPLES, KEYS, Limits(20, 2, 0.0, stop_on), record=True)
        for stop_on in ("shadow", "nearest")
    )
    assert nearest.x_NTD is not None and nearest.mixture_NTD is not None and shadow.x_NTD is not None
    for row in whole():
        length = nearest.cot_lengths[row]
        distance = torch.cdist(nearest.x_NTD[row, :length], lm.embedding_VD.detach())
        assert nearest.cot(row) == distance.argmin(-1).tolist()
        assert STOPS[nearest.stops[row]] == (rules().stop(nearest.cot_ids[row, :length]) or "cap")
        both = min(length, shadow.cot_lengths[row])
        off = (nearest.x_NTD[row, :both] - shadow.x_NTD[row, :both]).abs().max()
        assert off < 0.01 * tokens.noise_std, "the stop changes where, not what"
    assert not np.array_equal(nearest.cot_lengths, shadow.cot_lengths), "so much noise moves x to other tokens"


# Random numbers


def every(draws: Draws, steps: int, rows: list[int]) -> torch.Tensor:
    return torch.stack([draws.at(step, np.array(rows)).clone() for step in range(steps)], 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_draws_depend_on_key_purpose_and_step_alone(kind: str) -> None:
    steps, cpu = 2 * DRAW_BLOCK + 5, torch.device("cpu")
    keys = ["a", "b", "c", "d"]
    all_rows = every(Draws(keys, "cot", kind, 16, cpu), steps, [0, 1, 2, 3])
    assert all_rows.shape == (4, steps, 16)
    assert torch.equal(every(Draws(["x", "c", "y"], "cot", kind, 16, cpu), steps, [0, 1, 2])[1], all_rows[2])
    # Rows leave: at every step, those that stay see what they would have seen.
    leaving = Draws(keys, "cot", kind, 16, cpu)
    for step in range(steps):
        rows = [0, 1, 2, 3] if step < 3 else [1, 3] if step < DRAW_BLOCK + 2 else [3]
        assert torch.equal(leaving.at(step, np.array(rows)), all_rows[rows, step])  # type: ignore[arg-type]
    # Everything else gives other numbers.
    flat = all_rows.reshape(4 * steps, 16)
    assert len(flat.unique(dim=0)) == 4 * steps, "no row repeats another, no block repeats the one before"
    assert not torch.isin(every(Draws(keys, "answer", kind, 16, cpu), steps, [0, 1, 2, 3]), all_rows).all(-1).any()


def test_draws_have_their_distributions() -> None:
    keys, cpu = [str(i) for i in range(300)], torch.device("cpu")
    normal = every(Draws(keys, "cot", "normal", 8, cpu), 40, list(range(300))).flatten().numpy()
    uniform = every(Draws(keys, "cot", "uniform", 1, cpu), 40, list(range(300)))
    assert stats.kstest(normal, "norm").pvalue > 1e-3
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert uniform.min() >= 0 and uniform.max() < 1
    first = uniform[:, 0, 0].numpy()
    assert abs(stats.pearsonr(first[:-1], first[1:]).statistic) < 4 / math.sqrt(300), "neighbouring keys are unrelated"
    assert abs(stats.pearsonr(first, uniform[:, DRAW_BLOCK, 0].numpy()).statistic) < 4 / math.sqrt(300), "so are blocks"
    assert Draws(keys, "cot", "none", 8, cpu).at(0, np.arange(300)) is None


# Phases, by the text of a real BPE tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Byte-level BPE, words with the space in front, and punctuation glued to the line break behind it, as Llama 3 and
    Qwen split."""
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"), behavior="isolated")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"Ada has {i} pears. {i} + 2 = {i + 2}. {STOP_PHRASE} \\boxed{{{i + 2}}} So:\n{i}\n" for i in range(30)]
    core.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    assert 2 < len(made.encode(STOP_PHRASE)) < CAP, "the phrase spans some tokens"
    assert len(made.encode(":\n")) == 1, "its end may be glued to what follows"
    return made


class ScriptedModel:
    """A `LanguageModel` whose next token is any function of the text so far, whatever the machinery around it does.

    Its states are what it was fed, so it reads the text from its own cache: a row that is mixed up, masked wrongly or
    put at a wrong position has a text that nobody wrote, and fails.
    """

    def __init__(self, tokenizer: Any, continuations: dict[tuple[int, ...], int], eos: int | list[int] | None = None):
        size = len(tokenizer) + 7  # an embedding may have more rows than there are tokens
        self.embedding_VD = F.normalize(torch.randn(size, 48, generator=torch.Generator().manual_seed(0)), dim=-1)
        self.head_VD = 300 * self.embedding_VD  # sure of itself at any temperature
        self.tokenizer, self.continuations = tokenizer, continuations
        self.device, self.dtype, self.cuda_graphs = torch.device("cpu"), torch.float32, False
        self.model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.embedding_VD)

    def hidden(
        self, embeds: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        fed, _ = cache.update(embeds[:, None], embeds[:, None], 0)
        if mask is None:  # decoding: the layer knows whose prompt stands in front of what a row wrote
            owner = fed.groups.owner_n
            own = fed.keys[0, :, : fed.written]
            mask = torch.cat([~fed.groups.padding_B1P[owner, 0], torch.ones(own.shape[:2], dtype=torch.bool)], 1)
            fed, mask = torch.cat([fed.prompt_keys[0, owner], own], 1)[:, None], mask[:, None, None]
        assert mask.shape[-1] == fed.shape[2]
        texts = (fed[:, 0] @ self.embedding_VD.T).argmax(-1)
        states = torch.zeros_like(embeds)
        for row in range(len(embeds)):
            seen = mask[row, 0, -1]
            assert positions[row, -1] == seen.sum() - 1, "a position is the number of tokens before it"
            states[row, -1] = self.embedding_VD[self.next_id(texts[row][seen].tolist())]
        return states

    def next_id(self, text: list[int]) -> int:
        while tuple(text) not in self.continuations:
            assert text[-1:] == [0], f"nobody wrote {self.tokenizer.decode(text)!r}"
            text = text[:-1]  # a finished row that waits to be dropped is fed id 0
        return self.continuations[tuple(text)]


@dataclass(frozen=True)
class Case:
    """What the model would write, in pieces that are encoded apart (so that token boundaries fall between them), and
    what is made of it: of the CoT all but the last `unread` pieces, of the answer the first `answered` tokens."""

    cot: tuple[str, ...]
    stop: str
    answer: tuple[str, ...] = ("12", "}")
    unread: int = 0
    answered: int | None = None
    last_at: int | None = None  # fill in front, so that the last token of the CoT is the `last_at`-th


CAP, ANSWER_CAP = 24, 5
CASES = {
    "phrase from step 0": Case((STOP_PHRASE,), "phrase"),
    "space in front": Case((" " + STOP_PHRASE,), "phrase"),
    "after other words": Case(("Ada has", " 5 + 2", " = 7.", " " + STOP_PHRASE), "phrase", ("7", "}")),
    "cut inside its words": Case(("Th", "e fin", "al an", "swer", " ", "is", ":"), "phrase"),
    "colon glued to a line break": Case(("The final answer", " is", ":\n"), "phrase"),
    "white space behind the phrase": Case((STOP_PHRASE, "\n\n"), "phrase", unread=1),
    "words behind the phrase": Case((STOP_PHRASE, " 7"), "phrase", unread=1),
    "almost the phrase": Case(("The final answer is", " that: 7", "<eos>"), "eos"),
    "end of the phrase alone": Case(("The answer is:", "<eos>"), "eos"),
    "EOS at step 0": Case(("<eos>",), "eos", ("3", "}")),
    "EOS inside the phrase": Case(("The final answer", "<eos>", " is:"), "eos", ("3", "}"), unread=1),
    "phrase behind EOS": Case(("Ada", "<eos>", STOP_PHRASE), "eos", unread=1),
    "no end": Case((" Ada has", " pears." * 40), "cap", last_at=CAP),
    "phrase at the cap": Case((STOP_PHRASE,), "phrase", last_at=CAP),
    "phrase right behind the cap": Case((STOP_PHRASE,), "cap", last_at=CAP + 1),
    "EOS at the cap": Case(("<eos>",), "eos", last_at=CAP),
    "EOS right behind the cap": Case(("<eos>",), "cap", last_at=CAP + 1),
    "answer ends with EOS": Case((STOP_PHRASE,), "phrase", ("12", "<eos>", "3"), answered=-1),
    "answer is EOS": Case((STOP_PHRASE,), "phrase", ("<eos>",)),
    "braces in the answer": Case((STOP_PHRASE,), "phrase", ("{", "1", "}", "2", "}")),
    "escaped brace": Case((STOP_PHRASE,), "phrase", ("1", "\\", "}", "}")),
    "answer goes on behind its box": Case((STOP_PHRASE,), "phrase", ("1", "}", "<eos>"), answered=-1),
    "answer at its cap": Case(("<eos>",), "eos", ("1", "2", "3", "4", "5", "}"), answered=ANSWER_CAP),
    "box closes at the cap": Case(("<eos>",), "eos", ("1", "2", "3", "4", "}")),
}


@dataclass(frozen=True)
class Script:
    """A case as ids."""

    prompt: list[int]
    cot: list[int]
    stop: str
    words: list[int]
    answer: list[int]
    continuations: dict[tuple[int, ...], int]


def write(tokenizer: Any, number: int, case: Case) -> Script:
    """The model follows the case; while words are prefilled, and behind the end, it would rather say EOS."""

    def ids(*pieces: str) -> list[int]:
        return [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False)]

    # Prompts of several lengths, all different; the phrase in a prompt means nothing.
    prompt = ids(*["Ada has pears."] * (number % 4), f"{STOP_PHRASE} {number}:")
    wish, cot = ids(*case.cot), ids(*case.cot[: len(case.cot) - case.unread])
    if case.last_at is not None:
        filler = ids(" pears" * CAP)[: max(0, case.last_at - len(wish))]
        wish = filler + wish
        cot = wish[:CAP]
    words = ids(PREFILL_AFTER_STOP if case.stop == "phrase" else PREFILL_AFTER_CUT)
    answer = ids(*case.answer)
    continuations = {tuple(prompt + wish[:t]): wish[t] for t in range(len(wish))}
    start = prompt + cot
    continuations |= {tuple(start + words[:t]): tokenizer.eos_token_id for t in range(1, len(words))}
    continuations.setdefault(tuple(start), tokenizer.eos_token_id)
    start = start + words
    continuations |= {tuple(start + answer[:t]): answer[t] for t in range(len(answer))}
    continuations[tuple(start + answer)] = tokenizer.eos_token_id
    return Script(prompt, cot, case.stop, words, answer[: case.answered], continuations)


@pytest.mark.parametrize("drop_rows", [True, False])
@pytest.mark.parametrize("mode", ["hard", "hard-greedy", "soft", "fuzzy"])
def test_text_ends_the_phases(tokenizer: Any, mode: str, drop_rows: bool) -> None:
    """All cases in one batch, so that rows end at all steps and are in all phases at once, two samples each."""
    scripts = [write(tokenizer, number, case) for number, case in enumerate(CASES.values())]
    lm: Any = ScriptedModel(tokenizer, {k: v for script in scripts for k, v in script.continuations.items()})
    tokens = CotTokens(MODES[mode], lm.embedding_VD, MODES[mode].noise_scale * embedding_rms(lm.embedding_VD))
    keys = [str(row) for row in range(2 * len(scripts))]
    limits = Limits(CAP, ANSWER_CAP, 1.0, "shadow")
    out = rollout(
        lm, TextRules(lm), tokens, [s.prompt for s in scripts], 2, keys, limits, record=True, drop_rows=drop_rows
    )
    laid = lay_out(out)
    for row in range(2 * len(scripts)):
        name, script = list(CASES)[row // 2], scripts[row // 2]
        got = (STOPS[out.stops[row]], decode(tokenizer, out.cot(row)), decode(tokenizer, out.answers[row]))
        assert got == (script.stop, decode(tokenizer, script.cot), decode(tokenizer, script.answer)), name
        assert (out.cot(row), out.answers[row]) == (script.cot, script.answer), name
        fed = script.cot + script.words + script.answer
        assert laid.ids_NL[row, : laid.lengths_N[row]].tolist() == fed, name
        assert np.flatnonzero(laid.cot_NL[row]).tolist() == list(range(len(script.cot))), name
        first = len(script.cot) + len(script.words)
        assert np.flatnonzero(laid.answer_NL[row]).tolist() == list(range(first, first + len(script.answer))), name
    assert len(set(out.cot_lengths)) > 5, "rows end at different steps"
    assert out.near_ties.sum() == 0


def test_the_texts_of_the_prefill_read_on(tokenizer: Any) -> None:
    """Behind the phrase comes the box alone; behind a cut or an EOS the phrase, a space in front, and the box."""
    text_rules = TextRules(ScriptedModel(tokenizer, {}))  # type: ignore[arg-type]
    assert decode(tokenizer, text_rules.prefill_after_phrase) == r" \boxed{"
    assert decode(tokenizer, text_rules.prefill_after_cut) == r" The final answer is: \boxed{"


@pytest.mark.parametrize("eos", [[1, 40], 40])
def test_every_eos_of_the_generation_config_counts(tokenizer: Any, eos: int | list[int]) -> None:
    """Chat models end with another token than their tokenizer's EOS: it ends a CoT and an answer too."""
    lm: Any = ScriptedModel(tokenizer, {}, eos=eos)
    text_rules = TextRules(lm)
    for end in (1, 40):
        assert text_rules.may_stop[end]
        assert text_rules.stop(np.array([50, end])) == "eos"
        assert text_rules.answer_ends([50, end])
    assert not text_rules.may_stop[41]
    assert text_rules.stop(np.array([40, 41])) is None and not text_rules.answer_ends([41])


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_one_token_caps(mode: str) -> None:
    """The shortest trajectory: one CoT token, one answer token."""
    lm = tiny_model()
    out = rollout(
        lm, TokenRules(64), token_mode(lm, MODES[mode]), PROMPTS, 2, KEYS[:6], Limits(1, 1, 0.0, "shadow"), record=True
    )
    assert out.cot_lengths.tolist() == [1] * 6 and {STOPS[i] for i in out.stops} == {"cap"}
    assert [len(answer) for answer in out.answers] == [1] * 6
    # Fed: the CoT token and the two prefilled ones; the answer's state is wanted by nobody.
    assert out.decode_rows == 6 * 3
