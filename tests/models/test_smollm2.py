"""SmolLM2-135M-Instruct from its package: converted in half a minute, it is the model that the file holds.

The file has 49,152 tokens, 48,900 merges and 4-bit weights (Q4_1); E is in 8 bits (Q8_0) and also the head.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from softtok.config.gguf_files import gguf_file
from softtok.config.manifests import ModelManifest, read
from softtok.config.settings import RuntimeSettings
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.problems.prompt import eos_ids
from softtok.storage.files import read_json
from tests.support.pretrained import PACKAGE, WITH_SMOLLM2
from tests.support.project import ROOT

CPU = RuntimeSettings(device="cpu")
MOST_SECONDS = 30.0
TEXT_CHARACTERS = 400_000
pytestmark = WITH_SMOLLM2


@pytest.fixture(scope="module")
def lm(smollm2: tuple[Path, float]) -> LanguageModel:
    return load(smollm2[0], CPU)


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    """transformers' own reading of the tokenizer, as `AutoTokenizer.from_pretrained(gguf_file=)` makes it."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

    architecture, described, settings = get_gguf_tokenizer(str(gguf_file(None, PACKAGE)))
    backend, _ = convert_gguf_tokenizer(architecture, described)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def test_it_takes_half_a_minute(smollm2: tuple[Path, float]) -> None:
    assert smollm2[1] < MOST_SECONDS


def test_settings_are_those_of_the_published_model(smollm2: tuple[Path, float], lm: LanguageModel) -> None:
    """As in the config.json of HuggingFaceTB/SmolLM2-135M-Instruct."""
    published = {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "attention_bias": False, "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
        "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 9,
        "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05, "tie_word_embeddings": True,
        "vocab_size": 49152,
    }  # fmt: skip
    config = read_json(smollm2[0] / "config.json")
    assert {key: config[key] for key in published} == published
    assert config["rope_parameters"]["rope_theta"] == 100_000.0
    assert lm.model.generation_config is not None
    assert eos_ids(lm.model.generation_config, lm.tokenizer) == {2}
    assert read(ModelManifest, smollm2[0] / "model.json").reference is None


def texts() -> list[str]:
    """Returns lines of this project, random Unicode, chats, and numbers behind blanks, with the special tokens."""
    chance = random.Random(0)
    modules = sorted((ROOT / "softtok").rglob("*.py"))
    lines = "".join(path.read_text(encoding="utf-8") for path in modules)[:TEXT_CHARACTERS]
    chats = [f"<|im_start|>user\n{line}<|im_end|>\n<|im_start|>assistant\n" for line in lines.splitlines()[::200]]
    planes = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x700), (0x900, 0xE00), (0x4E00, 0x5000), (0x1F300, 0x1F650)]
    strange = ["".join(chr(chance.randrange(*chance.choice(planes))) for _ in range(60)) for _ in range(500)]
    blanks = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2003"]
    parts = [*blanks, "12", "3.5", "\u0663", "x\u00b2", "word", "'s", "I'LL", "<|endoftext|>"]
    spaced = ["".join(chance.choice(parts) for _ in range(20)) for _ in range(500)]
    return [*lines.split("\n\n"), *chats, *strange, *spaced]


def without_digit_rule(tokenizer: PreTrainedTokenizerFast) -> bool:
    return "Digits" not in tokenizer.backend_tokenizer.to_str()


def test_the_tokenizer_is_transformers_own_but_for_blanks_before_digits(
    lm: LanguageModel, theirs: PreTrainedTokenizerFast
) -> None:
    """transformers takes GPT-2's rule, and the file names SmolLM's: nothing else differs, on any text."""
    sample = texts()
    ours: Any = lm.tokenizer
    assert without_digit_rule(theirs) and not without_digit_rule(ours)
    before = [theirs(text)["input_ids"] for text in sample]
    got = [ours(text)["input_ids"] for text in sample]
    differing = [text for text, own, other in zip(sample, got, before, strict=True) if own != other]
    assert 0 < len(differing) < len(sample) // 2
    assert all(any(character.isnumeric() for character in text) for text in differing)
    theirs.backend_tokenizer.pre_tokenizer = ours.backend_tokenizer.pre_tokenizer
    assert got == [theirs(text)["input_ids"] for text in sample]
    assert [ours.decode(ids) for ids in got] == sample


def test_tokens_are_those_of_the_published_tokenizer(lm: LanguageModel) -> None:
    """A line break before a number is one token with the others, and each digit is one; chat markers stay whole."""
    tokenizer: Any = lm.tokenizer

    def tokens(text: str) -> list[str]:
        return [str(token) for token in tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])]

    assert tokens("\n\n17") == ["\u010a\u010a", "1", "7"]
    assert tokens("is  12,345") == ["is", "\u0120\u0120", "1", "2", ",", "3", "4", "5"]
    assert tokens("<|im_start|>user") == ["<|im_start|>", "user"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        *("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"),
    )
    turns = [{"role": "user", "content": "Hi"}]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_weights_are_the_files(lm: LanguageModel) -> None:
    """Every tensor, by the package that wrote the format; q and k in the order of Hugging Face."""
    from gguf import GGMLQuantizationType, dequantize

    from softtok.models.gguf_header import read_header
    from tests.support.gguf_files import stored_name, stored_order

    header = read_header(gguf_file(None, PACKAGE))
    content = np.memmap(header.path, mode="r")
    config = lm.model.config
    seen = set()
    for name, weight in lm.model.named_parameters():
        stored = header.tensors[stored_name(name)]
        seen.add(stored_name(name))
        kind = GGMLQuantizationType(stored.kind)
        raw = content[header.data + stored.offset :][: size(stored.shape, kind)]
        wanted = torch.from_numpy(np.copy(dequantize(raw, kind))).reshape(stored.shape)
        got = weight.detach()
        if "q_proj" in name or "k_proj" in name:
            got = stored_order(got, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        assert torch.equal(got, wanted), name
    assert seen == set(header.tensors)


def size(shape: tuple[int, ...], kind: Any) -> int:
    from gguf import GGML_QUANT_SIZES

    values, bytes_each = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // values * bytes_each


@torch.no_grad()
def test_it_knows_what_a_language_model_knows(lm: LanguageModel) -> None:
    """Weights in a wrong order would load as well."""
    tokenizer: Any = lm.tokenizer
    model: Any = lm.model
    start = time.monotonic()
    for text, end in (("The capital of France is", " Paris"), ("One, two, three,", " four"), ("1, 2, 3, 4,", " 5")):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        out = model.generate(ids, max_new_tokens=3, do_sample=False)
        assert tokenizer.decode(out[0, ids.shape[1] :]).startswith(end)
    assert time.monotonic() - start < 120
