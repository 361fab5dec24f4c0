"""Trajectories side by side: prompt -> CoT -> prefilled words -> answer.

Every prompt is run once, and its samples share its keys and values. From then on all rows go in lockstep, one position
a step, each in its own phase: it thinks, is fed the prefilled words, or answers. So the states of a row lie without
gaps behind its prompt, exactly as the teacher-forced pass lays them out. Training rolls out one batch, whose finished
rows are dropped. Elsewhere their places go to rows that wait (`stream.py`), and rows differ in age.

Random numbers are keyed by row and step, not by the order of the work: a trajectory does not depend on its batch, on
other rows' ends or on a resume. This holds in fp32 up to rounding at near-ties, which are counted. A soft CoT is a
sequence of real numbers, in which rounding can also grow from step to step where the model is not a contraction.

Shapes: B prompts, N places of rows (in training row b * G + g), n rows still active, T CoT steps, A answer tokens,
D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from softtok.method.draws import Draws
from softtok.method.sampling import entropy_of, sample_ids
from softtok.method.steps import CotStep, Predictions
from softtok.method.thoughts import look
from softtok.method.trajectories import INFERENCE_STOPS, Batch, Policy, Rollout, Rows
from softtok.method.vocabulary_products import Vocabulary
from softtok.models.decoding import Decoder, GraphDecoder
from softtok.models.language_model import Beginning, begin, in_fp32, prefill

THINKING, PREFILLED, ANSWERING, DONE = range(4)


def rollout(policy: Policy, batch: Batch, record: bool = False, drop_rows: bool = True) -> Rollout:
    """Generates the trajectories of a batch side by side; `record` keeps what training needs of soft tokens."""
    for rows in follow(policy, batch, record, drop_rows):
        out = rows.out
    out.prompts, out.samples = batch.prompts, batch.samples
    return out


@torch.inference_mode()  # a twentieth to a tenth faster than no_grad: a step has hundreds of small operations
def follow(policy: Policy, batch: Batch, record: bool = False, drop_rows: bool = True) -> Iterator[ActiveRows]:
    """Generates the trajectories of a batch side by side; yields its rows after every step."""
    rows = ActiveRows(policy, batch.as_rows(), record)
    while not rows.advance():
        yield rows
        if drop_rows and rows.due:
            rows.drop()
        rows.decode()
    yield rows


class ActiveRows:
    """The rows that are not finished, each with its age, its phase and its last hidden state."""

    def __init__(self, policy: Policy, wanted: Rows, record: bool = False, beginning: Beginning | None = None):
        """`beginning` is what these prompts and those of later rows begin with; None if there are no later rows."""
        lm, count = policy.lm, len(wanted.keys)
        self.policy, self.tokens, self.rules = policy, policy.tokens, policy.rules
        self.beginning = begin(lm, wanted.prompts) if beginning is None else beginning
        run = prefill(lm, wanted.prompts, self.beginning)
        self.last = run.last_BD[-1:], run.lengths_B[-1:]  # of the newest prompt: more of its rows may follow
        samples_B, owner_N = (self._on_device(x) for x in (np.bincount(wanted.owners), wanted.owners))
        decoder = GraphDecoder if lm.cuda_graphs else Decoder
        self.decoder = decoder(lm, run.cache, run.mask_BP, samples_B, policy.most_steps)
        self.vocabulary = Vocabulary(*in_fp32(lm, self.tokens.mixes), lm.dtype)
        self.hidden_nD = run.last_BD[owner_N]
        self.position_n = run.lengths_B[owner_N]  # where each row writes next

        self.cot_draws = self.tokens.draws(wanted.keys, lm.embedding_VD)
        answer_kind = "uniform" if policy.limits.answer_temperature > 0 else "none"
        self.answer_draws = Draws(
            wanted.keys, "answer", answer_kind, policy.limits.max_answer_tokens, lm.device, block=1
        )

        self.rows = np.arange(count)  # their places
        self.phase = np.full(count, THINKING)
        self.age = np.zeros(count, np.int64)  # CoT steps so far
        self.written = np.zeros(count, np.int64)  # positions behind the prompt
        self.fed = np.zeros(count, np.int64)  # prefilled or answer tokens so far, in the row's phase
        self.sure_N = np.zeros(count, np.int64)  # CoT steps in a row with an entropy below `end_entropy`
        self.ended = np.zeros(0, np.int64)  # active rows that the present step finished
        self.out = Rollout.empty(policy, [[]], count, self.cot_draws if record else None)
        self.watch, self.watched_N = wanted.watch, np.zeros(count, bool)
        self._watch(self.rows, wanted)
        # Of the present step: which active rows do what, and what they are fed.
        self.thinking = self.answering = self.prefilling = np.zeros(0, np.int64)
        self.ids = np.zeros(count, np.int64)  # where it is a token
        self.x_nD: torch.Tensor | None = None  # of the thinking rows

    @property
    def finished(self) -> np.ndarray:
        """Which active rows are finished."""
        done: np.ndarray = self.phase == DONE
        return done

    @property
    def due(self) -> bool:
        """Whether so many rows are finished that it pays to drop or to replace them, or one has no room to wait on."""
        waited = bool((self.written >= self.policy.most_steps).any())
        share = self.decoder.drop_share * len(self.rows)
        return waited or bool(self.finished.any() and self.finished.sum() >= share)

    def progress(self, row: int) -> tuple[int, bool]:
        """Returns how many CoT steps a row has made, and whether it is finished."""
        if len(at := np.flatnonzero(self.rows == row)):
            return int(self.age[at[0]]), bool(self.finished[at[0]])
        return int(self.out.cot_lengths[row]), True

    def advance(self) -> bool:
        """Makes the next token of every row; returns whether all rows are finished."""
        before = self.finished
        self._think()
        self._answer()
        self._feed_prefill()
        self._change_phases()
        self.ended = np.flatnonzero(self.finished & ~before)
        return bool(self.finished.all())

    def _think(self) -> None:
        """Makes the next CoT token of the rows that think."""
        self.ids, self.x_nD = np.zeros(len(self.rows), np.int64), None
        self.thinking = np.flatnonzero(self.phase == THINKING)
        if not len(self.thinking):
            return
        rows, out, ages = self.rows[self.thinking], self.out, self.age[self.thinking]
        step = int(ages[0]) if (ages == ages[0]).all() else ages
        predicted = self._predict(self.thinking)
        draw = self.cot_draws.at(step, rows)
        made = self.tokens.step(predicted, draw)
        self.x_nD = made.x_ND
        if self.watched_N[rows].any():
            self._look(rows, predicted, draw, made)
        text_ids = self.tokens.text_ids(made, self.policy.limits.stop_on, self.vocabulary)
        self.ids[self.thinking] = out.cot_ids[rows, step] = text_ids.cpu().numpy()
        out.near_ties[rows] += made.near_tie_N.cpu().numpy()
        of_place = self._on_device(rows) if len(rows) < len(out.answers) or not isinstance(step, int) else slice(None)
        if out.record is not None:
            assert isinstance(step, int), "in training all rows begin together"
            out.record.note((of_place, step), made)
        assert predicted.p_NV is not None
        entropy_n = entropy_of(predicted.p_NV, predicted.logits_NV)  # the last to read the logits
        out.entropy_NT[of_place, step if isinstance(step, int) else self._on_device(step)] = entropy_n
        self.age[self.thinking] += 1
        if self.tokens.mode.end_entropy is not None:
            self.sure_N[rows] = (self.sure_N[rows] + 1) * (entropy_n < self.tokens.mode.end_entropy).cpu().numpy()

    def _predict(self, thinking: np.ndarray) -> Predictions:
        hidden_nD = self.hidden_nD if len(thinking) == len(self.rows) else self.hidden_nD[self._on_device(thinking)]
        logits_nV = self.vocabulary.logits(hidden_nD)
        return Predictions(hidden_nD, logits_nV, self.vocabulary, torch.softmax(logits_nV, -1))

    def _watch(self, places: np.ndarray, begun: Rows) -> None:
        """Begins to watch rows that have just begun in these places, if they are to be watched."""
        self.watched_N[places] = np.array(begun.watched, bool) & self.tokens.known_mixture
        for place in places.tolist():
            self.out.thoughts.pop(place, None)  # of the row that was there before
            if self.watched_N[place]:
                self.out.thoughts[place] = []

    def _look(self, rows: np.ndarray, predicted: Predictions, draw: torch.Tensor | None, made: CotStep) -> None:
        """Notes the thoughts of the watched rows; the others are not looked at."""
        seen = np.flatnonzero(self.watched_N[rows])
        at = self._on_device(seen)
        p_nV = None if predicted.p_NV is None else predicted.p_NV[at]
        part = Predictions(predicted.hidden_ND[at], predicted.logits_NV[at], predicted.vocabulary, p_nV)
        found = look(self.tokens, part, None if draw is None else draw[at], made.x_ND[at], self.watch)
        for row, thought in zip(rows[seen], found, strict=True):
            self.out.thoughts[int(row)].append(thought)

    def _answer(self) -> None:
        """Samples the next token of the rows that answer."""
        self.answering = np.flatnonzero(self.phase == ANSWERING)
        if not len(self.answering):
            return
        rows, out = self.rows[self.answering], self.out
        logits_nV = self.vocabulary.logits(self.hidden_nD[self._on_device(self.answering)])
        u_nA = self.answer_draws.at(0, rows)
        u_n = None if u_nA is None else u_nA[np.arange(len(rows)), self.fed[self.answering]]
        sampled, near_tie = sample_ids(logits_nV, self.policy.limits.answer_temperature, u_n)
        self.ids[self.answering] = sampled.cpu().numpy()
        out.near_ties[rows] += near_tie.cpu().numpy()
        for row, i in zip(rows, self.answering, strict=True):
            out.answers[row].append(int(self.ids[i]))

    def _feed_prefill(self) -> None:
        """Takes the next prefilled token of the rows whose CoT has ended."""
        self.prefilling = np.flatnonzero(self.phase == PREFILLED)
        for i in self.prefilling:
            self.ids[i] = self.out.prefill(self.rows[i])[self.fed[i]]
        self.fed[self.phase != THINKING] += 1

    def _change_phases(self) -> None:
        """Decides what each row does next."""
        out, limits = self.out, self.policy.limits
        for i in self.prefilling:
            if self.fed[i] == len(out.prefill(self.rows[i])):
                self.phase[i], self.fed[i] = ANSWERING, 0
        for i in self.answering:
            if self.rules.answer_ends(out.answers[self.rows[i]]) or self.fed[i] == limits.max_answer_tokens:
                self.phase[i] = DONE
        last = self.age == limits.max_cot_tokens
        sure = self.sure_N[self.rows] >= self.tokens.mode.end_entropy_steps
        # Other tokens cannot end a CoT: their texts need no look.
        stops = limits.stop_on != "never"
        may_stop = self.rules.may_stop[self.ids[self.thinking]] & stops
        for i in self.thinking[may_stop | sure[self.thinking] | last[self.thinking]]:
            row = self.rows[i]
            stop = self.rules.stop(out.cot_ids[row, : self.age[i]]) if stops else None
            stop = stop or ("entropy" if sure[i] else "cap" if last[i] else None)
            if stop is not None:
                out.cot_lengths[row], out.stops[row] = self.age[i], INFERENCE_STOPS.index(stop)
                self.phase[i], self.fed[i] = PREFILLED if out.prefill(row) else ANSWERING, 0

    def decode(self) -> None:
        """Feeds every row its token or mixture."""
        if self.x_nD is not None and len(self.thinking) == len(self.rows):
            embeds_nD = self.x_nD
        else:
            embeds_nD = self.policy.lm.embed(self._on_device(self.ids))
            if self.x_nD is not None:
                embeds_nD[self._on_device(self.thinking)] = self.x_nD
        self.hidden_nD = self.decoder.step(embeds_nD, self.position_n)
        self.position_n, self.written = self.position_n + 1, self.written + 1
        self.out.decode_rows += len(self.rows)

    def drop(self) -> None:
        """Drops the finished rows, between `advance` and `decode`."""
        stays = ~self.finished
        kept, self.thinking = np.flatnonzero(stays), stays.cumsum()[self.thinking] - 1  # no row thinks as it ends
        at = self._on_device(kept)
        for name in ("rows", "phase", "age", "written", "fed", "ids"):
            setattr(self, name, getattr(self, name)[kept])
        self.position_n = self.position_n[at]
        self.decoder.keep(at)

    def replace(self, begun: Rows, places: np.ndarray) -> None:
        """Begins other rows in the places of finished ones, between `decode` and `advance`.

        Owner 0 is the newest prompt that is here already; those of `begun` count from 1.
        """
        last_BD, lengths_B = self.last
        run = prefill(self.policy.lm, begun.prompts, self.beginning) if begun.prompts else None
        if run is not None:
            last_BD, lengths_B = torch.cat([last_BD, run.last_BD]), torch.cat([lengths_B, run.lengths_B])
        at, owners = self._on_device(places), self._on_device(begun.owners)
        self.decoder.replace(at, owners, run)
        self.hidden_nD = self.hidden_nD.index_copy(0, at, last_BD[owners])
        self.position_n = self.position_n.index_copy(0, at, lengths_B[owners])
        self.last = last_BD[-1:], lengths_B[-1:]
        for state in (self.age, self.written, self.fed):
            state[places] = 0
        self.phase[places] = THINKING
        rows = self.rows[places]
        self.sure_N[rows] = self.out.near_ties[rows] = 0
        for row in rows:
            self.out.answers[row] = []
        self._watch(rows, begun)
        self.cot_draws.restart(rows, begun.keys)
        self.answer_draws.restart(rows, begun.keys)

    def _on_device(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self.policy.lm.device)
