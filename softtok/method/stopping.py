"""Where a CoT and an answer end, by their text."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from softtok.errors import UserError
from softtok.models.language_model import LanguageModel
from softtok.problems.answer_format import PAPER_FORMAT, AnswerFormat
from softtok.problems.prompt import AnswerRule, StopRule, decode, eos_ids, token_texts


class TextRules:
    """What text does to a trajectory, for one model: when a CoT ends, what is prefilled, when an answer ends."""

    def __init__(self, lm: LanguageModel, answer_format: AnswerFormat = PAPER_FORMAT):
        texts = token_texts(lm.tokenizer, size=lm.embedding_VD.shape[0])  # once: a vocabulary takes a second
        self._stop = StopRule(lm.tokenizer, texts, answer_format.stop_phrase)
        self._end = AnswerRule(lm.tokenizer, texts, answer_format)
        self.eos = eos_ids(lm.model.generation_config, lm.tokenizer)
        self.may_stop = self._stop.candidates.copy()  # (V,) tokens after which a CoT may end; all others need no look
        self.may_stop[list(self.eos)] = True
        self._text = functools.lru_cache(4096)(functools.partial(decode, lm.tokenizer))  # answers are often alike
        self.prefill_after_phrase: list[int] = _prefill(lm, answer_format.prefill_after_stop)
        self.prefill_after_cut: list[int] = _prefill(lm, answer_format.prefill_after_cut)

    def stop(self, ids: np.ndarray) -> str | None:
        """Why a CoT that now has these ids ends, "eos" or "phrase", or None."""
        if int(ids[-1]) in self.eos:
            return "eos"
        return "phrase" if self._stop.candidates[ids[-1]] and self._stop.matches(ids.tolist()) else None

    def answer_text(self, prefill: Sequence[int], answer: Sequence[int]) -> str:
        """Returns what the reward reads: the prefilled words and the answer, without the EOS that may end it."""
        return self._text((*prefill, *(answer[:-1] if answer[-1] in self.eos else answer)))

    def answer_ends(self, ids: list[int]) -> bool:
        """Whether an answer ends with its newest id: at EOS, or when it is complete."""
        return ids[-1] in self.eos or (bool(self._end.candidates[ids[-1]]) and self._end.complete(ids))


def _prefill(lm: LanguageModel, text: str) -> list[int]:
    """Returns the ids of a prefilled text; raises UserError where the tokenizer has no tokens for it."""
    ids: list[int] = lm.tokenizer.encode(text, add_special_tokens=False)
    if (written := decode(lm.tokenizer, ids)).strip() != text.strip():
        raise UserError(
            f"model {lm.name}: its tokenizer writes {written!r} for the prefilled {text!r}; take another answer_format,"
            " or a model that knows these words"
        )
    return ids
