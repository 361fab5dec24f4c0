"""Pieces are the text of their ids, whatever the tokenizer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models

from softtok.models.toy_model import bpe_tokenizer
from softtok.problems.pieces import Pieces, pieces
from softtok.problems.prompt import decode


class Plain:
    """A tokenizer without special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def decode(self, ids: list[int], **_: object) -> str:
        return str(self.tokenizer.decode(ids))


def test_characters_of_several_tokens_come_whole() -> None:
    text = "so é is 中 🙂 ok"
    tokenizer = bpe_tokenizer(["plain words"], 300)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > len(text)
    found = pieces(tokenizer, ids)
    assert "".join(found) == decode(tokenizer, ids) == text
    assert [piece for piece in found if piece and not piece.isascii()] == ["é", "中", "🙂"]


@pytest.mark.parametrize("end", [1, 2, 3])
def test_what_is_never_completed_is_shown_as_the_text_has_it(end: int) -> None:
    tokenizer = bpe_tokenizer(["plain words"], 300)
    ids = tokenizer("a🙂")["input_ids"][: 1 + end]
    assert "".join(pieces(tokenizer, ids)) == decode(tokenizer, ids)


def test_spaces_in_front_of_words_are_kept() -> None:
    """A decoder that drops the first space of a text would drop that of every token that it is given alone."""
    words = Tokenizer(models.WordLevel({"▁I": 0, "▁think": 1, "ing": 2}, unk_token="ing"))
    words.decoder = decoders.Metaspace()
    growing = Pieces(Plain(words))
    assert [growing.add(i) for i in (0, 1, 2, 1)] == ["I", " think", "ing", " think"]
    assert pieces(Plain(words), []) == []
