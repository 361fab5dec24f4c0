"""Checks that a tokenizer belongs to its model, and that prompts begin and end as they should.

A prompt holds the tokenizer's BOS once at most, and never ends in an EOS: after one, a model has nothing more to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from softtok.errors import UserError
from softtok.problems.prompt import PREFILL_AFTER_CUT, PROMPT, decode, eos_ids, render

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from softtok.models.language_model import LanguageModel

QUESTION = "What is 1 + 1?"
TEXTS = ("Tom's  1,234.5 dollars\n\n\tare $x^{2}$;", "caf\u00e9 \u4e2d\u6587 \U0001f600 I'LL", " The final answer is 7")
"""Spaces, digits, signs, accents and other scripts, which tokenizers cut in different ways."""


def refuse_tokenizer(
    name: str, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None, rows: int
) -> None:
    """Raises UserError if a tokenizer is not one for a model with so many rows of E.

    `generation` is the model's generation config, whose EOS ids end a text too.
    """
    # For some families transformers creates an empty tokenizer if the folder holds none.
    words = decode(tokenizer, tokenizer.encode(PREFILL_AFTER_CUT, add_special_tokens=False))
    if words.strip() != PREFILL_AFTER_CUT.strip():
        raise UserError(f"model {name}: its tokenizer writes {words!r} for {PREFILL_AFTER_CUT!r}; are its files there?")
    if beyond := sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows):
        raise UserError(
            f"model {name}: {len(beyond)} of its tokenizer's tokens, from {beyond[0][1]!r} (id {beyond[0][0]}) on, have"
            f" no row in the embedding of {rows} rows; give the model's own tokenizer, or add rows and train them"
        )
    ends = _ends(name, tokenizer, generation)
    if outside := sorted(i for i in ends if not 0 <= i < rows):
        raise UserError(
            f"model {name}: its EOS id {outside[0]} has no row in the embedding of {rows} rows; mend eos_token_id in"
            " generation_config.json"
        )
    if getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None):
        raise UserError(
            f"model {name}: tokenizer.json has a dropout, so that a text is other tokens each time; set it to null"
        )
    refuse_additions(name, tokenizer)


def _ends(name: str, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> set[int]:
    named = getattr(generation, "eos_token_id", None)
    for i in named if isinstance(named, list | tuple) else [named]:
        if i is not None and type(i) is not int:  # a bool is an int, too
            raise UserError(
                f"model {name}: eos_token_id in generation_config.json is {named!r}; it must be an id, or a list of ids"
            )
    return eos_ids(generation, tokenizer)


def refuse_additions(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError if a tokenizer appends tokens to a text, or begins it with BOS twice."""
    text = render(PROMPT, QUESTION)
    plain: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids: list[int] = tokenizer(text)["input_ids"]
    added = len(ids) - len(plain)
    before = next((start for start in range(added, -1, -1) if ids[start : start + len(plain)] == plain), added)
    if before < added:
        raise UserError(
            f"model {name}: its tokenizer appends {decode(tokenizer, ids[before + len(plain) :])!r} to every text, so"
            " that prompts would end there; set add_eos_token to false in tokenizer_config.json, or take it out of"
            " tokenizer.json's post_processor"
        )
    if tokenizer.bos_token_id is not None and ids[:before].count(tokenizer.bos_token_id) > 1:
        raise UserError(
            f"model {name}: its tokenizer begins every text with {tokenizer.bos_token} twice; set add_bos_token to"
            " false in tokenizer_config.json, or take one out of tokenizer.json's post_processor"
        )


def refuse_other_reading(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError if transformers makes another tokenizer of a folder's tokenizer.json than the file says.

    It rebuilds some by the class that tokenizer_config.json names, and adds an EOS that the file does not know.
    """
    from tokenizers import Tokenizer

    path = Path(tokenizer.name_or_path) / "tokenizer.json"
    if not path.exists():
        return
    bare = Tokenizer.from_file(str(path))
    bare.no_truncation()
    bare.no_padding()
    for text in (render(PROMPT, QUESTION), *TEXTS):
        if bare.encode(text, add_special_tokens=False).ids != tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise UserError(
                f"model {name}: transformers makes a {type(tokenizer).__name__} of it, which gives other tokens than"
                f" tokenizer.json for {_short(text)}; set tokenizer_class to PreTrainedTokenizerFast in"
                " tokenizer_config.json"
            )
    if tokenizer.eos_token is not None and bare.token_to_id(tokenizer.eos_token) != tokenizer.eos_token_id:
        raise UserError(
            f"model {name}: tokenizer_config.json names the EOS {tokenizer.eos_token!r}, which tokenizer.json does not"
            " hold, so that the model never says it; name the right one"
        )


def encode(lm: LanguageModel, texts: Sequence[str], chat: bool = False) -> list[list[int]]:
    """Returns the ids of prompts, with the tokenizer's own BOS if it has one; a chat template writes it itself.

    Raises UserError if one of them holds BOS twice or ends in EOS.
    """
    return encode_prompts(lm.name, lm.tokenizer, eos_ids(lm.model.generation_config, lm.tokenizer), texts, chat)


def encode_prompts(
    name: str, tokenizer: PreTrainedTokenizerBase, ends: set[int], texts: Sequence[str], chat: bool = False
) -> list[list[int]]:
    """Does what `encode` does, for a model that is not loaded; `ends` are its EOS ids."""
    prompts: list[list[int]] = tokenizer(list(texts), add_special_tokens=not chat)["input_ids"] if texts else []
    bos = tokenizer.bos_token_id
    # Some models use one token for BOS and EOS, or for BOS and the start of each message. Such tokenizers do not begin
    # texts with it, and a chat's prompt may hold many.
    once = bos not in ends and (tokenizer("")["input_ids"] or [None])[0] == bos
    for prompt, text in zip(prompts, texts, strict=True):
        if prompt[:2] == [bos, bos] or (once and prompt.count(bos) > 1):
            writer = "the chat template" if chat else "the tokenizer"
            why = f"{writer} begins every text with it, so take it out" if once else "take one out"
            raise UserError(
                f"model {name}: the prompt {_short(text)} holds {tokenizer.bos_token} twice; {why} of `prompt:` or the"
                " question"
            )
        if prompt and prompt[-1] in ends:
            raise UserError(
                f"model {name}: the prompt {_short(text)} ends in {decode(tokenizer, prompt[-1:])}, after which a model"
                " has nothing to say; take it out of `prompt:` or the question"
            )
    return prompts


def _short(text: str, length: int = 100) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= length else f"{line[: length // 2]} ... {line[-length // 2 :]}")
