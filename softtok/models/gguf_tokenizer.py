"""Makes the tokenizer that a GGUF file describes, from the vocabulary and the merges in the file.

transformers builds it, with one correction: it does not know every rule by which texts are cut before bytes are
merged, and takes GPT-2's for the others. SmolLM's rule cuts each digit off first, so that the blanks or the line break
before a number are one token and not several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from softtok.errors import UserError
from softtok.models.gguf_header import Header

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

TOKENS, MERGES, KINDS = (f"tokenizer.ggml.{part}" for part in ("tokens", "merges", "token_type"))
BYTE_PAIRS = "gpt2"
"""The one kind of tokenizer that can be converted, as files name it."""
DIGITS, GPT2, QWEN2 = "smollm", "gpt-2", "qwen2"
RULES = (DIGITS, GPT2, QWEN2)
"""The rules by which texts are cut that are known, as files name them."""
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""The special tokens, and the names that they have in files."""


def refuse_vocabulary(header: Header) -> None:
    """Raises UserError for a vocabulary that would give other tokens than the model's own tokenizer, or none."""
    values, path = header.values, header.path
    kind, rule = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre")
    if kind != BYTE_PAIRS:
        raise UserError(
            f"{path} has a tokenizer of the kind {kind!r}; {BYTE_PAIRS} (byte pairs) can be converted: give the"
            " original model"
        )
    if rule not in RULES:
        raise UserError(
            f"{path} has a tokenizer that cuts texts by the rule {rule!r}; {', '.join(RULES)} are known: give the"
            " original model"
        )
    if lacking := [key for key in (TOKENS, MERGES, KINDS) if not isinstance(values.get(key), list)]:
        raise UserError(f"{path} has no {lacking[0]}; give a file with its tokenizer")
    tokens = values[TOKENS]
    count = len(tokens)
    if len({token for token in tokens if isinstance(token, str)}) < count:
        raise UserError(f"{path} has a token twice, or one that is no text; copy it again")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None and embedding.shape[0] != count:
        raise UserError(f"{path} has {count} tokens, and an embedding of {embedding.shape[0]} rows; copy it again")
    for name in (*SPECIAL.values(), "eot", "eom"):
        place = values.get(f"tokenizer.ggml.{name}_token_id", 0)
        if not isinstance(place, int) or not 0 <= place < count:
            raise UserError(f"{path} has {count} tokens, and the {name}_token_id {place}; give the original model")


def make_tokenizer(header: Header) -> PreTrainedTokenizerFast:
    """Returns the tokenizer, with its special tokens and its chat template."""
    from transformers import PreTrainedTokenizerFast

    values = header.values
    tokens = values[TOKENS]
    special = {
        f"{name}_token": tokens[values[key]]
        for name, own in SPECIAL.items()
        if (key := f"tokenizer.ggml.{own}_token_id") in values
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=_backend(header),
        add_bos_token=bool(values.get("tokenizer.ggml.add_bos_token", False)),
        add_eos_token=bool(values.get("tokenizer.ggml.add_eos_token", False)),
        clean_up_tokenization_spaces=False,
        model_max_length=values[f"{values['general.architecture']}.context_length"],
        **special,
    )
    made.chat_template = values.get("tokenizer.chat_template")
    return made


def _backend(header: Header) -> Tokenizer:
    """Returns transformers' reading of vocabulary and merges, cut by the rule that the file names."""
    from tokenizers import normalizers, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    values = header.values
    described = {
        name: values[f"tokenizer.{key}"]
        for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items()
        if f"tokenizer.{key}" in values
    }
    try:
        backend: Tokenizer = convert_gguf_tokenizer(values["general.architecture"], described)[0]
    except Exception as error:  # the package `tokenizers` has no type of its own for a merge of unknown tokens
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{header.path} has a tokenizer that cannot be built ({why}); copy it again") from error
    rule = values.get("tokenizer.ggml.pre")
    if rule == DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if rule == QWEN2:
        backend.normalizer = normalizers.NFC()
    return backend
