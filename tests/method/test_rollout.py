"""The batched rollout is what a plain loop over one row gives, and the training pass sees the same states.

Where text ends a phase is tested in `test_text_phases.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from scipy import stats

from softtok.config.settings import TokenMode, TrainingSettings
from softtok.method import terms as loss_terms
from softtok.method import token_modes
from softtok.method.draws import Draws
from softtok.method.rollout import rollout
from softtok.method.sampling import log_prob
from softtok.method.teacher_forcing import lay_out
from softtok.method.terms import Tiling
from softtok.method.token_modes import CotTokens, SoftTokens
from softtok.method.trajectories import STOPS, Batch, Limits, Policy, Rollout
from softtok.models.language_model import LanguageModel
from tests.support.gradients import TILING, Advantages, run_pass
from tests.support.records import fed, means
from tests.support.rollouts import BATCH, KEYS, LIMITS, MODES, PROMPTS, SAMPLES, SPREAD, policy, roll, rules
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
    """One trajectory, as the paper describes it: one row, no cache, no padding.

    The model's own forward runs over the whole text at every step, in fp64 where the vocabulary appears.
    """
    made, embedding, soft = Trajectory(), lm.embedding_VD.detach(), isinstance(tokens, SoftTokens)
    inputs = [embedding[i] for i in prompt]
    cot_draws = Draws([key], "cot", tokens.draw_kind, embedding.shape[1] if soft else 1, lm.device)
    answer_draws = Draws([key], "answer", "uniform", limits.max_answer_tokens, lm.device, block=1).at(0, np.arange(1))
    assert answer_draws is not None

    def next_logits() -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = lm.model(inputs_embeds=torch.stack(inputs)[None]).logits
        return logits[0, -1].double()

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
        if soft:
            made.cot.append(choose(logits, 0, None))
            made.h.append(((logits / tokens.mode.temperature).softmax(-1) @ embedding.double()).float())
            made.x.append(made.h[-1] if draw is None else made.h[-1] + tokens.noise_std * draw[0])
            inputs.append(made.x[-1])
        else:
            made.cot.append(choose(logits, tokens.mode.temperature, None if draw is None else draw[0, 0].item()))
            inputs.append(embedding[made.cot[-1]])
        made.stop = rules.stop(np.array(made.cot)) or ("cap" if len(made.cot) == limits.max_cot_tokens else "")

    words = rules.prefill_after_phrase if made.stop == "phrase" else rules.prefill_after_cut
    inputs += [embedding[i] for i in words]
    while len(made.answer) < limits.max_answer_tokens and not (made.answer and rules.answer_ends(made.answer)):
        u = answer_draws[0, len(made.answer)].item() if limits.answer_temperature else None
        made.answer.append(choose(next_logits(), limits.answer_temperature, u))
        inputs.append(embedding[made.answer[-1]])
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
        if not isinstance(tokens, SoftTokens):
            assert out.record is None, "ids are all there is to know"
            continue
        clear = length
        if mode == "fuzzy":
            clear = next((t for t, gap in enumerate(wanted.gaps) if gap < FUZZY_GAP), length)
            blurred += clear < length
        for got, hand in ((means(out), wanted.h), (fed(out), wanted.x)):
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
    out = roll(lm, mode, Batch(prompts, 1, [""] * len(prompts)), limits)
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
    out = rollout(Policy(lm, TokenRules(64), token_mode(lm, MODES[mode]), limits), Batch(PROMPTS, 2, KEYS[:6]))
    assert out.near_ties.tolist() == [4 + 3] * 6


# What a trajectory must not depend on


def assert_same_rows(a: Rollout, rows_a: list[int], b: Rollout, rows_b: list[int], tolerance: float) -> int:
    """Asserts that rows are equal, what they are fed up to `tolerance`.

    Returns how many part and are excused because the rollout itself counted a near-tie in them.
    """
    parted = 0
    for i, j in zip(rows_a, rows_b, strict=True):
        same = (a.cot(i), a.stops[i], a.answers[i]) == (b.cot(j), b.stops[j], b.answers[j])
        assert same or a.near_ties[i] + b.near_ties[j] > 0, f"rows {i} and {j} differ without a near-tie"
        parted += not same
        assert (a.record is None) == (b.record is None)
        if same and a.record is not None:
            off = (fed(a)[i, : a.cot_lengths[i]] - fed(b)[j, : b.cot_lengths[j]]).abs().max()
            assert off < tolerance, f"rows {i} and {j} are fed other mixtures"
    return parted


def whole(rows: int = len(KEYS)) -> list[int]:
    return list(range(rows))


def each_row_alone(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    parted = 0
    for row in whole():
        out = roll(lm, mode, Batch([PROMPTS[row // SAMPLES]], 1, [KEYS[row]]))
        parted += assert_same_rows(base, [row], out, [0], tolerance)
    return parted


def other_order(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    order = [2, 0, 1]
    moved = [b * SAMPLES + g for b in order for g in reversed(range(SAMPLES))]
    out = roll(lm, mode, Batch([PROMPTS[b] for b in order], SAMPLES, [KEYS[row] for row in moved]))
    return assert_same_rows(base, moved, out, whole(), tolerance)


def more_padding(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    long = [[7, 3, 9, 30, 2] * 9]
    out = roll(lm, mode, Batch(long + PROMPTS, SAMPLES, [f"long {g}" for g in range(SAMPLES)] + KEYS))
    return assert_same_rows(base, whole(), out, [SAMPLES + row for row in whole()], tolerance)


def no_dropped_rows(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    out = roll(lm, mode, drop_rows=False)
    assert out.decode_rows > base.decode_rows, "rows were dropped, so that there is something to compare"
    return assert_same_rows(base, whole(), out, whole(), tolerance)


def prompts_repeated(lm: LanguageModel, mode: str, base: Rollout, tolerance: float) -> int:
    out = roll(lm, mode, Batch([prompt for prompt in PROMPTS for _ in range(SAMPLES)], 1, KEYS))
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
    first, second = (roll(lm, mode, Batch(PROMPTS, SAMPLES, keys), limits) for keys in (KEYS, KEYS[::-1]))
    assert assert_same_rows(first, whole(), second, whole(), 1e-3) == 0
    assert np.array_equal(first.cot_lengths, np.repeat(first.cot_lengths[::SAMPLES], SAMPLES)), "all samples are one"


def test_fuzzy_without_noise_is_hard_greedy_token_for_token() -> None:
    """Over 200 greedy trajectories; they may part at a near-tie within 40 temperatures only."""
    lm, limits = tiny_model(), Limits(12, 5, 0.0, "shadow")
    prompts = [[i % 61, i % 7, 5, i % 13] for i in range(200)]
    fuzzy, hard = (roll(lm, mode, Batch(prompts, 1, [""] * 200), limits) for mode in ("fuzzy-greedy", "hard-greedy"))
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
    tokens = token_mode(lm, TokenMode(tokens="hard", temperature=1e-4))
    cold = rollout(policy(lm, tokens, Limits(20, 6, 1e-4, "shadow")), BATCH)
    same = sum((greedy.cot(row), greedy.answers[row]) == (cold.cot(row), cold.answers[row]) for row in whole())
    assert same >= len(KEYS) - 1


# The training pass sees the rollout's states


def zero_near_ties(lm: LanguageModel, tokens: CotTokens, out: Rollout, advantages: Advantages) -> int:
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
    thought = fed(out)[row, :length] if isinstance(tokens, SoftTokens) else embedding[out.cot(row)]
    rest = embedding[out.prefill(row) + out.answers[row]]
    logits: torch.Tensor = lm.model(inputs_embeds=torch.cat([embedding[prompt], thought, rest])[None]).logits[0]
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize("mode", ["soft", "fuzzy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_recomputes_the_mixtures_of_the_rollout(family: str, mode: str) -> None:
    """h of the teacher-forced pass, and of a naive forward, equals the rollout's to 1e-3 sigma, early stops included.

    Noise has the length its density assumes. Rows with a fuzzy near-tie are taken out and counted.
    """
    lm = tiny_model(family, seed=2)
    tokens, out = token_mode(lm, MODES[mode]), roll(lm, mode)
    assert len(set(out.cot_lengths)) > 3, "rows stop early, at different steps"
    advantages = np.random.default_rng(0).normal(size=len(KEYS))
    if mode == "fuzzy":
        assert zero_near_ties(lm, tokens, out, advantages) <= len(KEYS) // 4
    rows = np.flatnonzero(advantages).tolist()

    squares, embedding = [], lm.embedding_VD.detach().double()
    for row in rows:
        length = out.cot_lengths[row]
        logits = naive_logits(lm, tokens, out, row)[:length].double()
        h = (logits / tokens.mode.temperature).softmax(-1) @ embedding
        assert (h - means(out)[row, :length]).abs().max() < 1e-3 * tokens.noise_std, f"row {row}"
        squares.append((fed(out)[row, :length] - means(out)[row, :length]).double().square())
    ratio = torch.cat(squares).mean().item() / tokens.noise_std**2
    assert abs(ratio - 1) < 4 * math.sqrt(2 / torch.cat(squares).numel())

    seen = run_pass((lm, tokens, out, advantages), TrainingSettings(), tiling=Tiling(300, 50))
    metrics = seen.as_metrics()
    assert seen.tokens == out.cot_lengths[rows].sum()
    assert metrics["recomputation_gap"] < 1e-3
    assert metrics["noise_check"] == pytest.approx(ratio, rel=1e-4)
    assert metrics["shadow_flips"] <= 1 / seen.tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_hard_log_probs_of_training_are_those_of_sampling(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass's log-probabilities are the log-softmax of the naive forward at the temperature that was sampled with.

    So it is for CoT and answer. Nothing else enters the loss: prefilled words carry none.
    """
    lm = tiny_model(family, tied=False)
    tokens = token_mode(lm, TokenMode(tokens="hard", temperature=0.8))
    out = rollout(policy(lm, tokens, Limits(20, 6, 1.3, "shadow")), BATCH)
    terms: dict[float, list[torch.Tensor]] = {0.8: [], 1.3: []}

    def spy(logits: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
        terms[temperature].append(log_prob(logits, ids, temperature))
        return terms[temperature][-1]

    for module in (token_modes, loss_terms):  # CoT tokens and answers
        monkeypatch.setattr(module, "log_prob", spy)
    settings, tiling = TrainingSettings(answer_temperature=1.3), Tiling(200, TILING.tile_tokens)
    run_pass((lm, tokens, out, np.ones(len(KEYS))), settings, tiling=tiling)

    wanted: dict[float, list[torch.Tensor]] = {0.8: [], 1.3: []}
    for row in whole():
        length, words = out.cot_lengths[row], len(out.prefill(row))
        logits = naive_logits(lm, tokens, out, row)
        answer = torch.tensor(out.answers[row])
        wanted[0.8].append((logits[:length] / 0.8).log_softmax(-1)[range(length), torch.tensor(out.cot(row))])
        wanted[1.3].append((logits[length + words :] / 1.3).log_softmax(-1)[range(len(answer)), answer])
    for temperature in (0.8, 1.3):  # the pass runs the rows in an order of its own
        got = torch.cat(terms[temperature]).detach().sort().values
        torch.testing.assert_close(got, torch.cat(wanted[temperature]).sort().values, rtol=0, atol=1e-3)


def test_tokens_are_drawn_from_the_probabilities_that_training_uses() -> None:
    """First CoT token and first answer token of 6000 samples of one prompt against log_prob, by chi-square."""
    lm, count = tiny_model(spread=0.2), 6000
    tokens, limits = token_mode(lm, MODES["hard"]), Limits(1, 1, 0.7, "shadow")
    keys = [str(i) for i in range(count)]
    out = rollout(Policy(lm, TokenRules(64), tokens, limits), Batch([[8, 9, 10]], count, keys))
    first = torch.tensor(out.cot_ids[:, 0])
    most = int(first.bincount().argmax())
    given = [row for row in range(count) if out.cot_ids[row, 0] == most]
    answers = torch.tensor([out.answers[row][0] for row in given])
    logits = naive_logits(lm, tokens, out, given[0])
    for ids, before, temperature in ((first, logits[0], 1.0), (answers, logits[-1], 0.7)):
        expected = len(ids) * log_prob(before.expand(64, -1), torch.arange(64), temperature).double().exp()
        often = expected > 5
        observed = ids.bincount(minlength=64).double()
        observed, expected = (torch.cat([v[often], v[~often].sum()[None] + 1e-9]) for v in (observed, expected))
        assert len(observed) > 10
        assert stats.chisquare(observed.numpy(), (expected * observed.sum() / expected.sum()).numpy()).pvalue > 1e-3


def test_completions_are_laid_out_as_they_were_fed() -> None:
    """[CoT | prefill | answer]: the masks mark what was sampled, also where the id is 0 (a real token).

    Prefill and padding carry none.
    """
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
    kinds = ("shadow", "nearest")
    shadow, nearest = (
        rollout(policy(lm, tokens, Limits(20, 2, 0.0, stop_on)), BATCH, record=True) for stop_on in kinds
    )
    for row in whole():
        length = nearest.cot_lengths[row]
        distance = torch.cdist(fed(nearest)[row, :length], lm.embedding_VD.detach())
        assert nearest.cot(row) == distance.argmin(-1).tolist()
        assert STOPS[nearest.stops[row]] == (rules().stop(nearest.cot_ids[row, :length]) or "cap")
        both = min(length, shadow.cot_lengths[row])
        off = (fed(nearest)[row, :both] - fed(shadow)[row, :both]).abs().max()
        assert off < 0.01 * tokens.noise_std, "the stop changes where, not what"
    assert not np.array_equal(nearest.cot_lengths, shadow.cot_lengths), "so much noise moves x to other tokens"


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_one_token_caps(mode: str) -> None:
    """The shortest trajectory: one CoT token, one answer token."""
    lm = tiny_model()
    shortest = Policy(lm, TokenRules(64), token_mode(lm, MODES[mode]), Limits(1, 1, 0.0, "shadow"))
    out = rollout(shortest, Batch(PROMPTS, 2, KEYS[:6]), record=True)
    assert out.cot_lengths.tolist() == [1] * 6 and {STOPS[i] for i in out.stops} == {"cap"}
    assert [len(answer) for answer in out.answers] == [1] * 6
    # Fed: the CoT token and the two prefilled ones; the answer's state is wanted by nobody.
    assert out.decode_rows == 6 * 3


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_cot_that_never_stops_runs_to_its_cap(mode: str) -> None:
    """Until a text would have ended it, it is the CoT that stops."""
    lm = tiny_model(spread=SPREAD[mode])
    limits = replace(LIMITS, max_cot_tokens=12)
    free, fixed = (roll(lm, mode, limits=replace(limits, stop_on=stop_on)) for stop_on in ("shadow", "never"))
    assert free.cot_lengths.min() < 12, "a text ends some"
    assert fixed.cot_lengths.tolist() == [12] * len(KEYS) and {STOPS[i] for i in fixed.stops} == {"cap"}
    for row, length in enumerate(free.cot_lengths):
        assert fixed.cot(row)[:length] == free.cot(row)
