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

import numpy as np
import torch

from softtok.method.draws import DRAW_BLOCK, Draws
from softtok.method.stopping import TextRules, most_steps
from softtok.method.token_modes import CotTokens, entropy_of, sample_ids
from softtok.method.trajectories import INFERENCE_STOPS, Limits, Rollout
from softtok.models.decoding import Decoder, GraphDecoder
from softtok.models.language_model import LanguageModel, in_fp32, logits_fp32, prefill

THINKING, PREFILLED, ANSWERING, DONE = range(4)


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
