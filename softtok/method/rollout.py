"""Batched trajectories: prompt -> CoT -> prefilled words -> answer.

Every prompt is run once, and its G samples share its keys and values. From then on all rows go in lockstep, one
position a step, each in its own phase: it thinks, is fed the prefilled words, or answers. So the states of a row lie
without gaps behind its prompt, exactly as the teacher-forced pass lays them out. Finished rows are dropped.

Random numbers are keyed by row and step, not by the order of the work: a trajectory does not depend on its batch, on
dropped rows or on a resume. This holds in fp32 up to rounding at near-ties, which are counted. A soft CoT is a sequence
of real numbers, in which rounding can also grow from step to step where the model is not a contraction.

Shapes: B prompts, G samples per prompt, N = B * G rows (row b * G + g), n rows still active, T CoT steps, A answer
tokens, D width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch

from softtok.method.draws import Draws
from softtok.method.sampling import entropy_of, sample_ids
from softtok.method.steps import Predictions
from softtok.method.trajectories import INFERENCE_STOPS, Batch, Policy, Rollout
from softtok.method.vocabulary_products import Vocabulary
from softtok.models.decoding import Decoder, GraphDecoder
from softtok.models.language_model import in_fp32, prefill

THINKING, PREFILLED, ANSWERING, DONE = range(4)


@torch.inference_mode()  # a twentieth to a tenth faster than no_grad: a step has hundreds of small operations
def rollout(policy: Policy, batch: Batch, record: bool = False, drop_rows: bool = True) -> Rollout:
    """Generates the trajectories of a batch; `record` keeps what training needs of soft tokens."""
    rows = ActiveRows(policy, batch, record)
    for step in range(policy.most_steps):
        rows.think(step)
        rows.answer()
        rows.feed_prefill()
        rows.change_phases(step)
        if rows.all_done:
            break
        rows.decode(step, drop_rows)
    return rows.out


class ActiveRows:
    """The rows of a batch that are not finished, each with its phase and its last hidden state."""

    def __init__(self, policy: Policy, batch: Batch, record: bool):
        lm, limits, count = policy.lm, policy.limits, batch.rows
        self.policy, self.tokens, self.rules = policy, policy.tokens, policy.rules
        last_BD, prompt_cache, prompt_mask, prompt_lengths = prefill(lm, batch.prompts)
        decoder = GraphDecoder if lm.cuda_graphs else Decoder
        self.decoder = decoder(lm, prompt_cache, prompt_mask, batch.samples, policy.most_steps)
        self.vocabulary = Vocabulary(*in_fp32(lm, self.tokens.mixes), lm.dtype)
        self.hidden_nD = last_BD.repeat_interleave(batch.samples, 0)
        self.start_n = prompt_lengths.repeat_interleave(batch.samples)

        self.cot_draws = self.tokens.draws(batch.keys, lm.embedding_VD)
        answer_kind = "uniform" if limits.answer_temperature > 0 else "none"
        answer_draws = Draws(batch.keys, "answer", answer_kind, limits.max_answer_tokens, lm.device, block=1)
        self.answer_u_NA = answer_draws.at(0, np.arange(count))

        self.rows = np.arange(count)  # original numbers
        self.phase = np.full(count, THINKING)
        self.fed = np.zeros(count, np.int64)  # prefilled or answer tokens so far, in the row's phase
        self.sure_N = np.zeros(count, np.int64)  # CoT steps in a row with an entropy below `end_entropy`
        self.out = _empty(policy, batch, self.cot_draws if record else None)
        # Of the present step: which active rows do what, and what they are fed.
        self.thinking = self.answering = self.prefilling = np.zeros(0, np.int64)
        self.ids = np.zeros(count, np.int64)  # where it is a token
        self.x_nD: torch.Tensor | None = None  # of the thinking rows

    @property
    def all_done(self) -> bool:
        return bool((self.phase == DONE).all())

    def think(self, step: int) -> None:
        """Makes the next CoT token of the rows that think."""
        self.ids, self.x_nD = np.zeros(len(self.rows), np.int64), None
        self.thinking = np.flatnonzero(self.phase == THINKING)
        if not len(self.thinking):
            return
        rows, out = self.rows[self.thinking], self.out
        predicted = self._predict(self.thinking)
        made = self.tokens.step(predicted, self.cot_draws.at(step, rows))
        self.x_nD = made.x_ND
        text_ids = self.tokens.text_ids(made, self.policy.limits.stop_on, self.vocabulary)
        self.ids[self.thinking] = out.cot_ids[rows, step] = text_ids.cpu().numpy()
        out.near_ties[rows] += made.near_tie_N.cpu().numpy()
        original = self._on_device(rows) if len(rows) < len(out.answers) else slice(None)
        if out.record is not None:
            out.record.note((original, step), made)
        assert predicted.p_NV is not None
        entropy_n = entropy_of(predicted.p_NV, predicted.logits_NV)  # the last to read the logits
        out.entropy_NT[original, step] = entropy_n
        if self.tokens.mode.end_entropy is not None:
            self.sure_N[rows] = (self.sure_N[rows] + 1) * (entropy_n < self.tokens.mode.end_entropy).cpu().numpy()

    def _predict(self, thinking: np.ndarray) -> Predictions:
        hidden_nD = self.hidden_nD if len(thinking) == len(self.rows) else self.hidden_nD[self._on_device(thinking)]
        logits_nV = self.vocabulary.logits(hidden_nD)
        return Predictions(hidden_nD, logits_nV, self.vocabulary, torch.softmax(logits_nV, -1))

    def answer(self) -> None:
        """Samples the next token of the rows that answer."""
        self.answering = np.flatnonzero(self.phase == ANSWERING)
        if not len(self.answering):
            return
        rows, out = self.rows[self.answering], self.out
        logits_nV = self.vocabulary.logits(self.hidden_nD[self._on_device(self.answering)])
        u_n = None if self.answer_u_NA is None else self.answer_u_NA[rows, self.fed[self.answering]]
        sampled, near_tie = sample_ids(logits_nV, self.policy.limits.answer_temperature, u_n)
        self.ids[self.answering] = sampled.cpu().numpy()
        out.near_ties[rows] += near_tie.cpu().numpy()
        for row, i in zip(rows, self.answering, strict=True):
            out.answers[row].append(int(self.ids[i]))

    def feed_prefill(self) -> None:
        """Takes the next prefilled token of the rows whose CoT has ended."""
        self.prefilling = np.flatnonzero(self.phase == PREFILLED)
        for i in self.prefilling:
            self.ids[i] = self.out.prefill(self.rows[i])[self.fed[i]]
        self.fed[self.phase != THINKING] += 1

    def change_phases(self, step: int) -> None:
        """Decides what each row does next."""
        out, limits = self.out, self.policy.limits
        for i in self.prefilling:
            if self.fed[i] == len(out.prefill(self.rows[i])):
                self.phase[i], self.fed[i] = ANSWERING, 0
        for i in self.answering:
            if self.rules.answer_ends(out.answers[self.rows[i]]) or self.fed[i] == limits.max_answer_tokens:
                self.phase[i] = DONE
        last = step + 1 == limits.max_cot_tokens
        sure = self.sure_N[self.rows] >= self.tokens.mode.end_entropy_steps
        # Other tokens cannot end a CoT: their texts need no look.
        stops = limits.stop_on != "never"
        may_stop = self.rules.may_stop[self.ids[self.thinking]] & stops
        for i in self.thinking[may_stop | sure[self.thinking] | last]:
            row = self.rows[i]
            stop = self.rules.stop(out.cot_ids[row, : step + 1]) if stops else None
            stop = stop or ("entropy" if sure[i] else "cap" if last else None)
            if stop is not None:
                out.cot_lengths[row], out.stops[row] = step + 1, INFERENCE_STOPS.index(stop)
                self.phase[i], self.fed[i] = PREFILLED if out.prefill(row) else ANSWERING, 0

    def decode(self, step: int, drop_rows: bool) -> None:
        """Feeds every row its token or mixture, after finished rows are dropped."""
        lm, all_think = self.policy.lm, len(self.thinking) == len(self.rows)
        if self.x_nD is not None and all_think:
            embeds_nD = self.x_nD
        else:
            embeds_nD = lm.embed(self._on_device(self.ids))
            if self.x_nD is not None:
                embeds_nD[self._on_device(self.thinking)] = self.x_nD
        if drop_rows and (self.phase == DONE).sum() >= self.decoder.drop_share * len(self.rows):
            kept = np.flatnonzero(self.phase != DONE)
            at = self._on_device(kept)
            self.rows, self.phase, self.fed = self.rows[kept], self.phase[kept], self.fed[kept]
            embeds_nD, self.start_n = embeds_nD[at], self.start_n[at]
            self.decoder.keep(at)
        self.hidden_nD = self.decoder.step(embeds_nD, self.start_n + step)
        self.out.decode_rows += len(self.rows)

    def _on_device(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self.policy.lm.device)


def _empty(policy: Policy, batch: Batch, draws: Draws | None) -> Rollout:
    """Returns a rollout without steps; with `draws`, those of the CoT, it has room for what training needs."""
    count, steps, lm = batch.rows, policy.limits.max_cot_tokens, policy.lm
    with torch.inference_mode(False):  # training computes gradients with what is recorded
        return Rollout(
            prompts=batch.prompts,
            samples=batch.samples,
            cot_ids=np.zeros((count, steps), np.int64),
            cot_lengths=np.zeros(count, np.int64),
            stops=np.zeros(count, np.int64),
            prefills=(
                policy.rules.prefill_after_phrase,
                *[policy.rules.prefill_after_cut] * (len(INFERENCE_STOPS) - 1),
            ),
            answers=[[] for _ in range(count)],
            near_ties=np.zeros(count, np.int64),
            entropy_NT=torch.zeros(count, steps, device=lm.device),
            record=None if draws is None else policy.tokens.new_record(steps, lm.embedding_VD.detach(), draws),
        )
