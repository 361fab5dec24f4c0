r"""Text around a trajectory: prompts, the phrase that ends a CoT, the prefill, and when an answer is complete.

A trajectory reads `prompt + CoT + prefill + answer`. Everything here is decided
on decoded text, because token boundaries differ between tokenizers: a colon may be glued to the word before it or to
the newline behind it. Decoding the whole CoT at every step would take time quadratic in its length, so a rule first
looks at the last id alone (`candidates`, a table over the vocabulary) and then decodes a tail that can hold the phrase.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from softtok.errors import UserError
from softtok.problems.answer_format import PAPER_FORMAT, AnswerFormat

if TYPE_CHECKING:
    import numpy as np

FIELD = "{question}"
STOP_PHRASE = PAPER_FORMAT.stop_phrase
TURN = f"User: {FIELD} Assistant:"
"""The end of the paper's prompt, behind its instruction."""
PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first shows the complete reasoning process step by step, then provides the final answer in "
    r"\boxed{}. The assistant must always follow the format: "
    rf"'User: [question] Assistant: [detailed reasoning] {STOP_PHRASE} \boxed{{[answer]}}.' {TURN}"
)
BOX = PAPER_FORMAT.prefill
PREFILL_AFTER_STOP = PAPER_FORMAT.prefill_after_stop
"""Prefilled when the CoT ended with the stop phrase: a space and the opening of the box."""
PREFILL_AFTER_CUT = PAPER_FORMAT.prefill_after_cut
"""Prefilled when the CoT ended otherwise (cap or EOS); it starts with a space, as a word may come before it."""


def render(template: str, question: str) -> str:
    """Returns `template` with its one `{question}` replaced; all other braces stay. Raises UserError."""
    if template.count(FIELD) != 1:
        raise UserError(
            f"prompt: the template must hold {FIELD} exactly once, found {template.count(FIELD)} times in {template!r}"
        )
    before, after = template.split(FIELD)
    return before + question + after


def choice_prompt(question: str, choices: Sequence[str]) -> str:
    """Returns the question with lettered options; a space and a letter continue it. UserError for over 26 options."""
    if len(choices) > len(ascii_uppercase):
        raise UserError(
            f"a multiple-choice question has {len(choices)} options, letters go to {len(ascii_uppercase)}: {question!r}"
        )
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip(ascii_uppercase, choices, strict=False))
    return f"Question: {question}\n{options}Answer:"


def cloze_prompt(question: str) -> str:
    """Returns the question alone; a space and the text of an option continue it."""
    return f"Question: {question}\nAnswer:"


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Returns the exact text of `ids`, with special tokens (one inside the phrase breaks it) and all spaces."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def token_texts(tokenizer: Any, size: int = 0) -> list[str]:
    """Returns the text of each id alone, id 0 first; part of a UTF-8 character gives U+FFFD, an unused id "".

    `size` lengthens the list to the rows of a model's embedding, which may outnumber the tokens.
    """
    known = sorted(tokenizer.get_vocab().values())
    texts = [""] * max(size, known[-1] + 1)
    for i, text in zip(
        known, tokenizer.batch_decode([[i] for i in known], clean_up_tokenization_spaces=False), strict=True
    ):
        texts[i] = text
    return texts


def eos_ids(generation_config: Any | None, tokenizer: Any) -> set[int]:
    """Returns the ids that end a text: those of the generation config (an int, a list or None) and the tokenizer's."""
    named = getattr(generation_config, "eos_token_id", None)
    ids = set(named) if isinstance(named, list | tuple) else {named}
    return {int(i) for i in ids | {tokenizer.eos_token_id} if i is not None}


def marked(texts: Sequence[str], mark: Callable[[str], bool]) -> np.ndarray:
    """Returns a bool array over the vocabulary; imports NumPy here, as the Snakefile reads PROMPT at every start."""
    import numpy as np

    return np.fromiter(map(mark, texts), dtype=bool, count=len(texts))


class StopRule:
    """Says when a CoT's text, stripped on the right, ends with `phrase`.

    `candidates` (bool, V) marks the ids that can complete the phrase; after others the text need not be looked at. It
    is a superset: the id's text, stripped, agrees with the end of the phrase as far as both go. `texts` are the
    `token_texts`, if they are known already. They are as long as the model's V if that exceeds the tokenizer's.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str] | None = None, phrase: str = STOP_PHRASE) -> None:
        self.tokenizer = tokenizer
        self.phrase = phrase
        self.candidates = marked(token_texts(tokenizer) if texts is None else texts, self._can_end)

    def _can_end(self, text: str) -> bool:
        # Some tokenizers drop the leading space of a text's first token, so leading space does not count here.
        end = text.strip()
        return bool(end) and (end.endswith(self.phrase) or self.phrase.endswith(end))

    def matches(self, ids: Sequence[int]) -> bool:
        """Whether the text of `ids` (a whole CoT, or its tail) ends with the phrase, trailing white space aside.

        The decoded tail grows until it has more text than the phrase. White space after the phrase and ids without
        text may make it longer than the phrase has characters.
        """
        length = min(len(ids), len(self.phrase) + 1)
        while True:
            text = decode(self.tokenizer, ids[len(ids) - length :]).rstrip()
            if len(text) > len(self.phrase) or length == len(ids):
                return text.endswith(self.phrase)
            length = min(len(ids), 2 * length)


class AnswerRule:
    r"""Says when an answer, which starts after the prefill, is complete: in the paper's format, when its box closes.

    `candidates` (bool, V) marks the ids that can complete it. `texts` as in `StopRule`.
    """

    def __init__(
        self, tokenizer: Any, texts: Sequence[str] | None = None, answer_format: AnswerFormat = PAPER_FORMAT
    ) -> None:
        self.tokenizer = tokenizer
        self.format = answer_format
        self.candidates = marked(token_texts(tokenizer) if texts is None else texts, answer_format.ends_with)

    def complete(self, ids: Sequence[int]) -> bool:
        """Whether the text of the answer `ids` is complete; all of it is decoded, as answers are short."""
        return self.format.ends(decode(self.tokenizer, ids))


NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)*")


def normalise(question: str) -> str:
    """Returns a question without case and white space, and with accents written one way, to find copies.

    Signs stay, as x + 1 is not x - 1, and so do raised digits.
    """
    return "".join(unicodedata.normalize("NFC", question).casefold().split())


def normalise_story(text: str) -> str:
    """Returns a story like a question, and with one number for all: with other numbers it is the same story."""
    return NUMBER.sub("0", normalise(text))
