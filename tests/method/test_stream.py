"""Rows that begin in the places of finished ones become what they become in a batch of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from softtok.method.rollout import rollout
from softtok.method.stream import Queue, Room, stream
from softtok.method.trajectories import INFERENCE_STOPS, Batch, Limits, Policy, Rollout
from softtok.models import decoding
from softtok.models.decoding import Decoder
from softtok.models.language_model import LanguageModel
from tests.support.beginnings import COMMON, sharing
from tests.support.rollouts import LIMITS, MODES, SPREAD, policy, streamed
from tests.support.tiny_models import FAMILIES, TokenRules, tiny_model, token_mode

LENGTHS = [3, 9, 1, 5, 5, 2, 7, 4, 12, 6, 3]
PROMPTS = [[(7 * b + 3 * t) % 64 for t in range(length)] for b, length in enumerate(LENGTHS)]
ROOMS = {"one row": 1, "fewer rows than samples": 3, "parts of prompts": 10, "a prompt at a time": 4, "all": 256}
ANY = 10**9


def batch(samples: int, prompts: list[list[int]] = PROMPTS) -> Batch:
    return Batch(prompts, samples, [f"{b}|{g}" for b in range(len(prompts)) for g in range(samples)])


def assert_same(got: Rollout, wanted: Rollout) -> None:
    """Compares all rows; those with a near-tie may part, and few have one."""
    parted = 0
    for row in range(len(wanted.answers)):
        same = (got.cot(row), got.answers[row], got.stops[row]) == (
            wanted.cot(row), wanted.answers[row], wanted.stops[row],
        )  # fmt: skip
        if not same:
            assert got.near_ties[row] + wanted.near_ties[row] > 0, f"row {row} differs without a near-tie"
            parted += 1
            continue
        length = wanted.cot_lengths[row]
        torch.testing.assert_close(
            got.entropy_NT[row, :length], wanted.entropy_NT[row, :length], rtol=0, atol=1e-3, msg=f"row {row}"
        )
        assert got.near_ties[row] == wanted.near_ties[row]
    assert parted <= len(wanted.answers) // 20


@pytest.mark.parametrize("rows", ROOMS.values(), ids=ROOMS.keys())
@pytest.mark.parametrize("mode", MODES)
def test_rows_do_not_depend_on_whose_places_they_take(mode: str, rows: int) -> None:
    """Prompts of many lengths, sampled answers, CoTs that end by phrase, EOS and cap, over several blocks of draws."""
    lm = tiny_model(spread=SPREAD.get(mode, 0.12))
    asked, wanted = policy(lm, token_mode(lm, MODES[mode])), batch(4)
    drained = rollout(asked, wanted)
    assert mode.endswith("greedy") or len(set(drained.cot_lengths)) > 5, "rows end at different steps"
    assert_same(streamed(asked, wanted, Room(rows, ANY)), drained)


@pytest.mark.parametrize("mode", ["hard", "soft-greedy"])
def test_steps_that_are_sure_are_counted_anew(mode: str) -> None:
    """CoTs that end when the entropy of two steps in a row was low."""
    lm = tiny_model(spread=SPREAD.get(mode, 0.12))
    first = rollout(policy(lm, token_mode(lm, MODES[mode])), batch(4))
    low = float(np.quantile(first.entropy_NT[first.entropy_NT > 0], 0.2))
    sure = MODES[mode].model_copy(update={"end_entropy": low, "end_entropy_steps": 2})
    asked, wanted = policy(lm, token_mode(lm, sure)), batch(4)
    drained = rollout(asked, wanted)
    assert (drained.stops == INFERENCE_STOPS.index("entropy")).any()
    assert_same(streamed(asked, wanted, Room(7, ANY)), drained)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_all_prompts_begin_with_is_run_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, beginning, passes = tiny_model(family), [(5 * t) % 64 for t in range(40)], []
    hidden = LanguageModel.hidden

    def noted(self: LanguageModel, x_NTD: torch.Tensor, *others: Any) -> torch.Tensor:
        passes.append(x_NTD.shape[:2])
        return hidden(self, x_NTD, *others)

    asked, wanted = policy(lm, token_mode(lm, MODES["hard"])), batch(2, [beginning + prompt for prompt in PROMPTS])
    drained = rollout(asked, wanted)
    monkeypatch.setattr(LanguageModel, "hidden", noted)
    assert_same(streamed(asked, wanted, Room(6, ANY)), drained)
    prefilled = [shape for shape in passes if shape[1] > 1]
    assert prefilled[0] == (1, 40) and len(prefilled) > 3
    assert max(length for _, length in prefilled[1:]) == max(LENGTHS)


def test_recorded_steps_drain_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded step writes all rows at one place."""
    monkeypatch.setattr(decoding, "record", lambda once, device: once)
    lm = tiny_model()
    recorded = dataclasses.replace(lm, cuda_graphs=True)
    asked, tokens = policy(lm, token_mode(lm, MODES["hard"])), token_mode(lm, MODES["hard"])
    monkeypatch.setattr(Decoder, "replace", lambda *_: pytest.fail("a row was replaced"))
    assert_same(streamed(policy(recorded, tokens), batch(4), Room(10, ANY)), rollout(asked, batch(4)))


class Steps:
    """Counts decode steps, and the rows and positions of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.positions: list[int] = []
        step = Decoder.step

        def noted(decoder: Decoder, x_nD: torch.Tensor, positions_n: torch.Tensor) -> torch.Tensor:
            self.rows.append(len(x_nD))
            held = decoder.groups.prompts * decoder.layers[0].prompt_length
            self.positions.append(held + len(x_nD) * decoder.length)
            return step(decoder, x_nD, positions_n)

        monkeypatch.setattr(Decoder, "step", noted)


def tokens_of(made: Rollout) -> np.ndarray:
    """Returns how many tokens each row has, prefilled ones included."""
    return np.array([
        made.cot_lengths[row] + len(made.prefill(row)) + len(answer) for row, answer in enumerate(made.answers)
    ])  # fmt: skip


def scheduled(lengths: list[int], places: int, share: float) -> int:
    """Returns the decode steps of rows of these lengths that take each other's places, by a simulation of its own."""
    left, waiting, steps = lengths[:places], lengths[places:], 0
    while True:
        ended = [i for i, tokens in enumerate(left) if tokens <= 0]
        if waiting and ended and len(ended) >= share * places:
            for i in ended[: len(waiting)]:
                left[i] = waiting.pop(0)
        left = [tokens - 1 for tokens in left]
        if not waiting and max(left) <= 0:
            return steps
        steps += max(left) > 0


def in_order(wanted: Batch, of_row: np.ndarray) -> list[int]:
    """Returns what belongs to rows in the order of the queue."""
    order = sorted(range(len(wanted.prompts)), key=lambda b: len(wanted.prompts[b]))
    return [int(of_row[b * wanted.samples + g]) for b in order for g in range(wanted.samples)]


@pytest.mark.parametrize("rows", [3, 8, 16])
def test_steps_are_as_few_as_the_lengths_allow(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    asked, wanted = policy(lm, token_mode(lm, MODES["hard"])), batch(4)
    lengths = in_order(wanted, tokens_of(rollout(asked, wanted)))
    steps = Steps(monkeypatch)
    streamed(asked, wanted, Room(rows, ANY))
    assert len(steps.rows) == scheduled(lengths, rows, Decoder.drop_share)
    drained = sum(max(lengths[start : start + rows]) - 1 for start in range(0, len(lengths), rows))
    assert len(steps.rows) < 0.8 * drained
    assert max(steps.rows) == rows and steps.rows[-1] < rows, "those of the last rows are dropped"


@pytest.mark.parametrize(("rows", "positions"), [(8, ANY), (ANY, 400), (5, 300), (ANY, 1)])
def test_a_stream_stays_within_its_room(rows: int, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_model()
    steps, asked = Steps(monkeypatch), policy(lm, token_mode(lm, MODES["hard"]))
    streamed(asked, batch(2), Room(rows, positions))
    assert max(steps.rows) <= rows and (max(steps.positions) <= positions or max(steps.rows) == 1)
    longest = max(LENGTHS) + asked.most_steps
    assert max(steps.rows) == max(1, min(rows, positions // longest, 2 * len(PROMPTS))), "no room is left unused"


@pytest.mark.parametrize(("rows", "positions"), [(8, ANY), (ANY, 400), (5, 300), (ANY, 1)])
def test_room_for_what_all_prompts_begin_with_is_taken_once(rows: int, positions: int) -> None:
    lm = tiny_model()
    asked = policy(lm, token_mode(lm, MODES["hard"]))
    with sharing(True):
        queue = Queue(asked, batch(2, [COMMON + prompt for prompt in PROMPTS]), Room(rows, positions))
    held = [len(COMMON) + n * (max(LENGTHS) + asked.most_steps) for n in range(1, 2 * len(PROMPTS) + 1)]
    assert queue.places == max(1, min(rows, sum(one <= positions for one in held)))


def test_prompts_come_as_they_are_finished() -> None:
    """Not at the end: what has come is kept when the job is stopped."""
    lm = tiny_model()
    asked, wanted = policy(lm, token_mode(lm, MODES["hard"])), batch(4)
    lengths, order = tokens_of(rollout(asked, wanted)).reshape(-1, 4), []
    finished = stream(asked, wanted, Room(8, ANY))
    order = [len(one) for one in finished]
    assert len(order) >= len(PROMPTS) // 2, "most come alone"
    coming: Iterator[list[tuple[int, Rollout]]] = stream(asked, wanted, Room(256, ANY))
    ends = [max(lengths[b]) for one in coming for b, _ in one]
    assert ends == sorted(ends)


def test_a_row_that_has_ended_waits_without_writing_beyond_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that ends at once waits for longer than a row may be, since few others end."""
    monkeypatch.setattr(Decoder, "drop_share", 0.9)
    lm: LanguageModel = tiny_model()
    limits = Limits(LIMITS.max_cot_tokens, 1, 1.0, "shadow")
    rules = TokenRules(64, phrase=range(10, 12), eos=(40,))
    asked, wanted = Policy(lm, rules, token_mode(lm, MODES["hard"]), limits), batch(6)
    assert_same(streamed(asked, wanted, Room(11, ANY)), rollout(asked, wanted))


def test_nothing_to_do() -> None:
    lm = tiny_model()
    assert list(stream(policy(lm, token_mode(lm, MODES["hard"])), Batch([], 4, []), Room(8, ANY))) == []
