"""Batched trajectories: prompt -> CoT -> prefilled words -> answer.

Every prompt is run once and its keys and values are shared out to its G samples. From then on all rows go in lockstep,
one position a step, each in its own phase (thinking, being fed the prefilled words, answering), so that a row's states
lie without gaps behind its prompt, exactly as the teacher-forced pass will lay them out. Finished rows are dropped from
the batch.

Randomness is keyed by row and step, not by the order of the work: a trajectory does not depend on its batch, on dropped
rows or on a resume (in fp32, up to rounding at near-ties, which are counted; a soft CoT is a real-valued sequence, in
which rounding can also grow from step to step where the model is no contraction, as large random weights are not).

Shapes: B prompts, G samples per prompt, N = B * G rows (row b * G + g), n rows still active, T CoT steps, D width, V
vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from softtok.cot import CotTokens, entropy_of, sample_ids
from softtok.decoding import Decoder, GraphDecoder
from softtok.models import LanguageModel, in_fp32, logits_fp32, prefill
from softtok.prompt import PREFILL_AFTER_CUT, PREFILL_AFTER_STOP, BoxRule, StopRule, decode, eos_ids, token_texts

THINKING, PREFILLED, ANSWERING, DONE = range(4)
STOPS = ("phrase", "eos", "cap")
INFERENCE_STOPS = (*STOPS, "entropy")  # the last for modes with `end_entropy`
DRAW_BLOCK = 32  # steps drawn at a time: one generator call per row and block instead of one per step


class Draws:
    """Random numbers keyed by (row key, purpose, block of steps), drawn on the model's device."""

    def __init__(
        self, keys: list[str], purpose: str, kind: str, width: int, device: torch.device, block: int = DRAW_BLOCK
    ):
        self.seeds = [hashlib.blake2b(f"{key}|{purpose}".encode(), digest_size=8) for key in keys]
        self.kind, self.steps = kind, block
        self.generator = torch.Generator(device)
        self.drawn = -1  # the block that `values` holds
        self.values = torch.empty(len(keys), block, width, device=device) if kind != "none" else torch.empty(0)

    def again(self, rows: np.ndarray, steps: np.ndarray) -> torch.Tensor:
        """What `at` drew for these rows at these steps, pair by pair, shape (M, width); for blocks of one step."""
        assert self.steps == 1, "single steps can be drawn again where they were drawn singly"
        drawn = torch.empty(len(rows), 1, self.values.shape[2], device=self.values.device)
        for place, (row, step) in enumerate(zip(rows, steps, strict=True)):
            self._draw(drawn[place], int(row), int(step))
        return drawn[:, 0]

    def _draw(self, values: torch.Tensor, row: int, block: int) -> None:
        seed = self.seeds[row].copy()
        seed.update(block.to_bytes(4, "little"))
        self.generator.manual_seed(int.from_bytes(seed.digest(), "little") >> 1)
        if self.kind == "normal":
            values.normal_(generator=self.generator)
        else:
            values.uniform_(generator=self.generator)

    def at(self, step: int, rows: np.ndarray) -> torch.Tensor | None:
        """Draws of these rows (by original number) at this step, shape (n, width): standard normals or uniforms in [0,
        1), None for kind "none". From call to call, `step` may only grow and `rows` only shrink."""
        if self.kind == "none":
            return None
        block, offset = divmod(step, self.steps)
        if block != self.drawn:
            self.drawn = block
            for row in rows:
                self._draw(self.values[row], row, block)
        return self.values[:, offset] if len(rows) == len(self.seeds) else self.values[torch.from_numpy(rows), offset]


class TextRules:
    """What text does to a trajectory, for one model: when a CoT ends, what is prefilled, when an answer ends."""

    def __init__(self, lm: LanguageModel):
        texts = token_texts(lm.tokenizer, size=lm.embedding_VD.shape[0])  # once: a vocabulary takes a second
        self._stop, self._box = StopRule(lm.tokenizer, texts), BoxRule(lm.tokenizer, texts)
        self.eos = eos_ids(lm.model.generation_config, lm.tokenizer)
        self.may_stop = self._stop.candidates.copy()  # (V,) tokens after which a CoT may end; all others need no look
        self.may_stop[list(self.eos)] = True
        encode = functools.partial(lm.tokenizer.encode, add_special_tokens=False)
        self._text = functools.lru_cache(4096)(functools.partial(decode, lm.tokenizer))  # answers are often alike
        self.prefill_after_phrase: list[int] = encode(PREFILL_AFTER_STOP)
        self.prefill_after_cut: list[int] = encode(PREFILL_AFTER_CUT)

    def stop(self, ids: np.ndarray) -> str | None:
        """Why a CoT that now has these ids ends, "eos" or "phrase", or None."""
        if int(ids[-1]) in self.eos:
            return "eos"
        return "phrase" if self._stop.candidates[ids[-1]] and self._stop.matches(ids.tolist()) else None

    def answer_text(self, out: Rollout, row: int) -> str:
        """What the reward reads: the prefilled words and the answer, without the EOS that may end it."""
        ids = out.answers[row]
        return self._text((*out.prefills[out.stops[row]], *(ids[:-1] if ids[-1] in self.eos else ids)))

    def answer_ends(self, ids: list[int]) -> bool:
        """Whether an answer ends with its newest id: at EOS, or when its box closes."""
        return ids[-1] in self.eos or (bool(self._box.candidates[ids[-1]]) and self._box.closed(ids))


@dataclass(frozen=True)
class Limits:
    """When the phases of a trajectory end, and how its answer is sampled."""

    max_cot_tokens: int
    max_answer_tokens: int
    answer_temperature: float  # 0 is greedy
    stop_on: str  # "shadow" or "nearest": whose text is searched for the stop phrase


def most_steps(rules: TextRules, limits: Limits) -> int:
    """How many positions a row may write behind its prompt."""
    prefill = max(len(rules.prefill_after_phrase), len(rules.prefill_after_cut))
    return limits.max_cot_tokens + prefill + limits.max_answer_tokens


@dataclass
class Rollout:
    """N finished trajectories, on the model's device unless named numpy. Columns behind a row's length are
    undefined."""

    prompts: list[list[int]]
    samples: int
    cot_ids: np.ndarray  # (N, T) sampled (hard) or shadow (soft) tokens
    cot_lengths: np.ndarray  # (N,)
    stops: np.ndarray  # (N,) index into INFERENCE_STOPS
    prefills: tuple[list[int], ...]  # per stop: the ids that were prefilled
    answers: list[list[int]]  # sampled answer ids of each row, EOS included
    near_ties: np.ndarray  # (N,) CoT steps and answer tokens that rounding could have changed
    entropy_NT: torch.Tensor  # next-token entropy at each CoT step, nats
    x_NTD: torch.Tensor | None = None  # soft, recorded: what was fed
    mixture_NTD: torch.Tensor | None = None  # soft, recorded: the action's mean in fp32 (h = p E, ...), see `CotStep`
    action_NTD: torch.Tensor | None = None  # noise on the hidden state, recorded: s + sigma eps in fp32
    draws: Draws | None = None  # noise on the logits, recorded: draws it again, for it is too wide to be kept
    old_log_prob_NL: torch.Tensor | None = None  # of sampled tokens before any update; filled in training
    decode_rows: int = 0  # rows x decode steps that the model ran

    def cot(self, row: int) -> list[int]:
        """Ids of one row's CoT."""
        return self.cot_ids[row, : self.cot_lengths[row]].tolist()


@torch.inference_mode()  # a twentieth to a tenth faster than no_grad: a step has hundreds of small operations
def rollout(
    lm: LanguageModel,
    rules: TextRules,
    tokens: CotTokens,
    prompts: list[list[int]],
    samples: int,
    keys: list[str],
    limits: Limits,
    record: bool = False,
    drop_rows: bool = True,
) -> Rollout:
    """Generates `samples` trajectories for each prompt (token ids).

    `keys` (N of them, row b * samples + g) name each row's randomness. `record` keeps what training needs of soft
    tokens.
    """
    count, device, width = len(prompts) * samples, lm.device, lm.embedding_VD.shape[1]
    assert len(keys) == count, "one randomness key per row"
    prefills = (rules.prefill_after_phrase, *[rules.prefill_after_cut] * (len(INFERENCE_STOPS) - 1))
    longest = most_steps(rules, limits)
    hidden_BD, prompt_cache, prompt_mask, prompt_lengths = prefill(lm, prompts)
    decoder = (GraphDecoder if lm.cuda_graphs else Decoder)(lm, prompt_cache, prompt_mask, samples, longest)
    head_VD, embedding_VD = in_fp32(lm, tokens.mixes)
    tokens = dataclasses.replace(tokens, embedding_VD=embedding_VD, head_VD=head_VD)
    hidden_nD = hidden_BD.repeat_interleave(samples, 0)
    start_n = prompt_lengths.repeat_interleave(samples)

    block = 1 if tokens.noise_on_logits else DRAW_BLOCK
    cot_draws = Draws(keys, "cot", tokens.draws, tokens.draw_width, device, block)
    answer_kind = "uniform" if limits.answer_temperature > 0 else "none"
    answer_u_NA = Draws(keys, "answer", answer_kind, limits.max_answer_tokens, device, block=1).at(0, np.arange(count))
    soft = record and tokens.soft
    mean_width = min(lm.embedding_VD.shape) if tokens.noise_on_logits else width
    on_hidden = soft and tokens.noise_on_hidden
    with torch.inference_mode(False):  # training computes gradients with what is recorded
        out = Rollout(
            prompts=prompts,
            samples=samples,
            cot_ids=np.zeros((count, limits.max_cot_tokens), np.int64),
            cot_lengths=np.zeros(count, np.int64),
            stops=np.zeros(count, np.int64),
            prefills=prefills,
            answers=[[] for _ in range(count)],
            near_ties=np.zeros(count, np.int64),
            entropy_NT=torch.zeros(count, limits.max_cot_tokens, device=device),
            x_NTD=torch.zeros(count, limits.max_cot_tokens, width, dtype=lm.dtype, device=device) if soft else None,
            mixture_NTD=torch.zeros(count, limits.max_cot_tokens, mean_width, device=device) if soft else None,
            action_NTD=torch.zeros(count, limits.max_cot_tokens, width, device=device) if on_hidden else None,
            draws=cot_draws if soft and tokens.noise_on_logits else None,
        )
    rows = np.arange(count)  # original numbers of the active rows
    phase = np.full(count, THINKING)
    fed = np.zeros(count, np.int64)  # prefilled or answer tokens so far, in the row's phase
    sure_N = np.zeros(count, np.int64)  # CoT steps in a row with an entropy below `end_entropy`

    for step in range(longest):
        ids = np.zeros(len(rows), np.int64)  # what each row is fed, where it is a token
        x_nD = None
        thinking = np.flatnonzero(phase == THINKING)
        if len(thinking):
            at = torch.from_numpy(thinking).to(device)
            state_nD = hidden_nD if len(thinking) == len(rows) else hidden_nD[at]
            logits_nV = logits_fp32(state_nD, head_VD)
            draw = cot_draws.at(step, rows[thinking])
            p_nV = torch.softmax(logits_nV, -1)
            made = tokens.step(logits_nV, draw[:, 0] if draw is not None and not tokens.soft else draw, state_nD, p_nV)
            x_nD = made.x_ND.to(lm.dtype)
            text_ids = tokens.nearest_ids(x_nD) if tokens.soft and limits.stop_on == "nearest" else made.ids_N
            ids[thinking] = text_ids.cpu().numpy()
            out.cot_ids[rows[thinking], step] = ids[thinking]
            out.near_ties[rows[thinking]] += made.near_tie_N.cpu().numpy()
            original = torch.from_numpy(rows[thinking]).to(device) if len(thinking) < count else slice(None)
            if out.x_NTD is not None and out.mixture_NTD is not None:
                out.x_NTD[original, step] = x_nD
                out.mixture_NTD[original, step] = made.mixture_ND  # type: ignore[assignment]
            if out.action_NTD is not None:
                out.action_NTD[original, step] = made.action_ND  # type: ignore[assignment]
            entropy_n = entropy_of(p_nV, logits_nV)  # the last to read the logits
            out.entropy_NT[original, step] = entropy_n
            if tokens.mode.end_entropy is not None:
                sure = (entropy_n < tokens.mode.end_entropy).cpu().numpy()
                sure_N[rows[thinking]] = (sure_N[rows[thinking]] + 1) * sure
        answering = np.flatnonzero(phase == ANSWERING)
        if len(answering):
            logits_nV = logits_fp32(hidden_nD[torch.from_numpy(answering).to(device)], head_VD)
            u_n = None if answer_u_NA is None else answer_u_NA[rows[answering], fed[answering]]
            sampled, near_tie = sample_ids(logits_nV, limits.answer_temperature, u_n)
            ids[answering] = sampled.cpu().numpy()
            out.near_ties[rows[answering]] += near_tie.cpu().numpy()
            for i in answering:
                out.answers[rows[i]].append(int(ids[i]))
        prefilling = np.flatnonzero(phase == PREFILLED)
        for i in prefilling:
            ids[i] = prefills[out.stops[rows[i]]][fed[i]]
        fed[phase != THINKING] += 1

        # What each row does next.
        for i in prefilling[[fed[i] == len(prefills[out.stops[rows[i]]]) for i in prefilling]]:
            phase[i], fed[i] = ANSWERING, 0
        for i in answering:
            if rules.answer_ends(out.answers[rows[i]]) or fed[i] == limits.max_answer_tokens:
                phase[i] = DONE
        last = step + 1 == limits.max_cot_tokens
        settled = sure_N[rows] >= tokens.mode.end_entropy_steps
        for i in thinking[rules.may_stop[ids[thinking]] | settled[thinking] | last]:
            stop = rules.stop(out.cot_ids[rows[i], : step + 1])
            if stop is None and settled[i]:
                stop = "entropy"
            if stop is None and last:
                stop = "cap"
            if stop is not None:
                out.cot_lengths[rows[i]], out.stops[rows[i]] = step + 1, INFERENCE_STOPS.index(stop)
                phase[i], fed[i] = PREFILLED, 0

        if (phase == DONE).all():
            break
        embeds_nD = lm.embed(torch.from_numpy(ids).to(device)) if x_nD is None or len(thinking) < len(rows) else x_nD
        if x_nD is not None and len(thinking) < len(rows):
            embeds_nD[at] = x_nD
        if drop_rows and (phase == DONE).sum() >= decoder.drop_share * len(rows):
            kept = np.flatnonzero(phase != DONE)
            at = torch.from_numpy(kept).to(device)
            rows, phase, fed = rows[kept], phase[kept], fed[kept]
            embeds_nD, start_n = embeds_nD[at], start_n[at]
            decoder.keep(at)
        hidden_nD = decoder.step(embeds_nD, start_n + step)
        out.decode_rows += len(rows)
    return out
