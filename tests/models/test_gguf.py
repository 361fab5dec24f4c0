"""GGUF files become plain folders: the weights, the settings and the tokenizer of the model that was written.

The files are small ones, written here as llama.cpp's converter writes them. What transformers would read as another
model, or pass over, is refused in one line, and so is every file that is cut short.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM

from softtok.config.gguf_files import gguf_sha256
from softtok.config.manifests import ModelManifest, read
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import GgufSource, ModelSpec
from softtok.errors import UserError
from softtok.models.base_model import make_model
from softtok.models.gguf_header import Header, read_header
from softtok.models.gguf_model import refuse_header
from softtok.models.gguf_tokenizer import KINDS, MERGES, TOKENS, make_tokenizer
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.models.real_tokenizers import real_tokenizer
from softtok.problems.prompt import eos_ids
from softtok.storage.files import read_json
from softtok.storage.integrity import file_hashes
from tests.support.damage import times
from tests.support.gguf_files import (
    CHAT,
    CONTROL,
    SPECIAL,
    Draft,
    install,
    shape_of,
    smollm_like,
    vocabulary,
    weights_of,
    write,
)
from tests.support.tiny_models import tiny_model

pytest.importorskip("gguf", reason="GGUF files: the package gguf is not installed")

CPU = RuntimeSettings(device="cpu")
F64, UNKNOWN = 28, 999
Edit = Callable[[Draft], object]
TEXTS = [
    "", " ", "How many apples?", "  12 and\n\n17.  1,234.50\t\t8", "\r\n\r\n3", "'tis I'LL don't",
    "caf\u00e9 \u4e2d\u6587 \U0001f600 e\u0301", "The final answer is 12.", "\x00\x7f\u200b\ufeff",
    "<|im_start|>user\nHi<|im_end|>\n", "a<|im_end|>b <|endoftext|>", "\u0661\u0662 \u00bd x\u00b2  \u2167",
    "it 's 3 . 5 , is n't it ? Yes !",
]  # fmt: skip


@dataclass
class Original:
    """A model and its tokenizer, before they are written into a file."""

    lm: LanguageModel
    tokenizer: Tokenizer

    def draft(self) -> Draft:
        return Draft(shape_of(self.lm) | vocabulary(self.tokenizer), weights_of(self.lm))


def original(family: str = "llama", *, tied: bool = True) -> Original:
    tokenizer = smollm_like()
    lm = tiny_model(family, vocabulary=tokenizer.get_vocab_size(), width=64, tied=tied)
    lm.model.config.max_position_embeddings = 512
    lm.model.config.rms_norm_eps = 1e-5
    modules: list[Any] = list(lm.model.modules())
    for module in modules:
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-5
    return Original(lm, tokenizer)


def spec_of(path: Path, sha256: str | None = None) -> ModelSpec:
    source = GgufSource(file=str(path), package=None, sha256=sha256 or gguf_sha256(str(path), None))
    return ModelSpec(source=source, prompt="{question}", version=1)


def made(path: Path, out: Path) -> LanguageModel:
    """Converts a file, and loads what came out, as the jobs after `softtok model` do."""
    make_model(spec_of(path), CPU, out, None)
    return load(out, CPU)


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", True)])
def test_the_folder_is_the_model_that_was_written(tmp_path: Path, family: str, tied: bool) -> None:
    first = original(family, tied=tied)
    lm = made(write(tmp_path / "tiny.gguf", first.draft()), tmp_path / "out")

    wanted, got = dict(first.lm.model.named_parameters()), dict(lm.model.named_parameters())
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    ids = torch.arange(40)[None] * 7 % len(first.lm.embedding_VD)
    assert torch.equal(lm.model(input_ids=ids).logits, first.lm.model(input_ids=ids).logits)
    assert lm.dtype == torch.float32

    config, asked = lm.model.config, first.lm.model.config
    for key in (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "vocab_size", "tie_word_embeddings",
    ):  # fmt: skip
        assert getattr(config, key) == getattr(asked, key), key
    assert config.rope_parameters["rope_theta"] == asked.rope_parameters["rope_theta"]
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] == tied


def test_weights_begin_where_the_file_aligns_them(tmp_path: Path) -> None:
    draft = original().draft()
    draft.values["general.alignment"] = 4096
    lm = made(write(tmp_path / "tiny.gguf", draft), tmp_path / "out")
    assert torch.equal(lm.embedding_VD, torch.from_numpy(draft.weights["token_embd.weight"]))


def test_heads_may_be_wider_than_their_share_of_the_width(tmp_path: Path) -> None:
    """As in Qwen 3: the file says how wide they are."""
    draft, chance = original("qwen3").draft(), np.random.default_rng(0)
    sizes = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    draft.values |= {f"qwen3.{key}": 32 for key in sizes}
    shapes = {"q": (128, 64), "k": (64, 64), "v": (64, 64), "output": (64, 128), "q_norm": (32,), "k_norm": (32,)}
    for name in [f"blk.{layer}.attn_{part}.weight" for layer in range(2) for part in shapes]:
        shape = shapes[name.split(".")[2].removeprefix("attn_")]
        draft.weights[name] = chance.normal(size=shape, scale=0.3).astype(np.float32)
    lm = made(write(tmp_path / "tiny.gguf", draft), tmp_path / "out")
    assert lm.model.config.head_dim == 32
    assert torch.equal(
        dict(lm.model.named_parameters())["model.layers.1.self_attn.q_proj.weight"],
        torch.from_numpy(draft.weights["blk.1.attn_q.weight"]),
    )


def test_another_rope_and_another_epsilon_are_those_of_the_file(tmp_path: Path) -> None:
    """transformers' defaults for them are those of the published models of the family."""
    draft = original().draft()
    draft.values |= {"llama.rope.freq_base": 123_456.0, "llama.attention.layer_norm_rms_epsilon": 3e-4}
    config = made(write(tmp_path / "tiny.gguf", draft), tmp_path / "out").model.config
    assert config.rope_parameters["rope_theta"] == 123_456.0
    assert config.rms_norm_eps == 3e-4


def test_the_tokenizer_gives_the_ids_of_the_one_that_was_written(tmp_path: Path) -> None:
    first = original()
    lm = made(write(tmp_path / "tiny.gguf", first.draft()), tmp_path / "out")
    for text in TEXTS:
        ids = lm.tokenizer(text)["input_ids"]
        assert ids == first.tokenizer.encode(text).ids, text
        assert lm.tokenizer.decode(ids) == text
    assert lm.tokenizer("\n\n17")["input_ids"] == [first.tokenizer.token_to_id(t) for t in ("\u010a\u010a", "1", "7")]


def test_merges_keep_their_order(tmp_path: Path) -> None:
    """In whole words any order gives the same tokens; here more than one merge is possible at a time."""
    first = original()
    tokenizer = make_tokenizer(read_header(write(tmp_path / "tiny.gguf", first.draft())))
    chance = random.Random(0)
    for _ in range(300):
        text = "".join(chance.choice("theansweriflom \u00e9") for _ in range(30))
        assert tokenizer(text)["input_ids"] == first.tokenizer.encode(text).ids, text


def test_each_digit_stays_alone_though_the_vocabulary_has_both(tmp_path: Path) -> None:
    draft = original().draft()
    draft.values[TOKENS][-1] = "17"
    draft.values[MERGES] = [
        *(pair for pair in draft.values[MERGES] if pair.replace(" ", "") in draft.values[TOKENS]),
        "1 7",
    ]
    tokens = {}
    for rule in ("smollm", "gpt-2"):
        draft.values["tokenizer.ggml.pre"] = rule
        tokenizer = make_tokenizer(read_header(write(tmp_path / f"{rule}.gguf", draft)))
        tokens[rule] = tokenizer.convert_ids_to_tokens(tokenizer("17")["input_ids"])
    assert tokens == {"smollm": ["1", "7"], "gpt-2": ["17"]}


def test_texts_are_cut_by_the_rule_that_the_file_names(tmp_path: Path) -> None:
    """GPT-2's rule takes the blank before a number with it, so that of several blanks the last is no part of them."""
    first = original()
    draft = first.draft()
    draft.values["tokenizer.ggml.pre"] = "gpt-2"
    tokenizer = make_tokenizer(read_header(write(tmp_path / "tiny.gguf", draft)))
    first.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [first.tokenizer.encode(text).ids for text in TEXTS]
    newline = first.tokenizer.token_to_id("\u010a")
    assert tokenizer("\n\n17")["input_ids"][:2] == [newline, newline]


@pytest.mark.thorough
def test_qwens_vocabulary_gives_the_ids_of_its_published_tokenizer(tmp_path: Path) -> None:
    try:
        published = real_tokenizer("qwen-2.5", 512)
    except UserError as error:
        pytest.skip(str(error))
    values = vocabulary(published.backend_tokenizer) | {
        "general.architecture": "qwen2",
        "qwen2.context_length": 512,
        "tokenizer.ggml.pre": "qwen2",
    }
    special = {token.content: i for i, token in published.added_tokens_decoder.items()}
    values[TOKENS] += [token for token, i in sorted(special.items(), key=lambda pair: pair[1])]
    values[KINDS] += [CONTROL] * len(special)
    values["tokenizer.ggml.eos_token_id"] = special["<|im_end|>"]
    del values["tokenizer.ggml.bos_token_id"], values["tokenizer.ggml.unknown_token_id"]
    tokenizer = make_tokenizer(Header(tmp_path, values, {}, 0))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == published(text)["input_ids"], text


def test_special_tokens_and_the_chat_template_survive(tmp_path: Path) -> None:
    first = original()
    lm = made(write(tmp_path / "tiny.gguf", first.draft()), tmp_path / "out")
    tokenizer, generation = lm.tokenizer, lm.model.generation_config
    assert generation is not None
    assert tokenizer.chat_template == CHAT
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token) == (
        *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>"),
    )
    assert eos_ids(generation, tokenizer) == {2}
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    assert (lm.model.config.bos_token_id, lm.model.config.eos_token_id, lm.model.config.pad_token_id) == (1, 2, 2)
    assert all(len(tokenizer.encode(token)) == 1 for token in SPECIAL)
    assert tokenizer.decode(tokenizer.encode("a<|im_end|><empty_output>"), skip_special_tokens=True) == "a"
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "3"}], tokenize=False)
    assert turn == "<|im_start|>user\n3<|im_end|>\n"


def test_begin_and_end_of_turn_are_read(tmp_path: Path) -> None:
    draft = original().draft()
    draft.values |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.eot_token_id": 0}
    lm = made(write(tmp_path / "tiny.gguf", draft), tmp_path / "out")
    assert lm.tokenizer("a")["input_ids"][0] == 1
    assert lm.model.generation_config is not None
    assert eos_ids(lm.model.generation_config, lm.tokenizer) == {0, 2}


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_dequantised_weights_are_those_that_transformers_reads(tmp_path: Path, kind: str) -> None:
    first = original(tied=False)
    draft = first.draft()
    draft.kind = kind
    path = write(tmp_path / "tiny.gguf", draft)
    lm = made(path, tmp_path / "out")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    wanted, written = dict(whole.named_parameters()), dict(first.lm.model.named_parameters())
    for name, weight in lm.model.named_parameters():
        assert torch.equal(weight, wanted[name]), name
        gap = (weight - written[name]).square().mean().sqrt() / written[name].square().mean().sqrt()
        assert (gap > 0) == (weight.ndim > 1), name
        assert gap < 0.15, name


def test_what_was_made_is_recorded_and_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", original().draft())
    make_model(spec_of(path), CPU, tmp_path / "out", None)
    manifest = read(ModelManifest, tmp_path / "out" / "model.json")
    assert manifest.reference is None
    assert manifest.files == file_hashes(tmp_path / "out")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(manifest.files)
    assert manifest.spec == spec_of(path)
    assert not [left for left in tmp_path.iterdir() if left.name.startswith(".")]
    path.unlink()
    load(tmp_path / "out", CPU)  # the file is not needed any more
    content = bytearray((tmp_path / "out" / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "out" / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load(tmp_path / "out", CPU)


def value(key: str, given: Any) -> Edit:
    return lambda draft: draft.values.update({key: given})


def without(key: str) -> Edit:
    return lambda draft: (draft.values if key in draft.values else draft.weights).pop(key)


def tensor(name: str, rows: int = 4) -> Edit:
    return lambda draft: draft.weights.update({name: np.ones(rows, dtype=np.float32)})


def claimed(name: str, number: int) -> Edit:
    return lambda draft: draft.kinds.update({name: number})


def one_token_less(draft: Draft) -> None:
    for key in TOKENS, KINDS:
        draft.values[key] = draft.values[key][:-1]


def nan(draft: Draft) -> None:
    draft.weights["blk.1.ffn_up.weight"][0, 0] = np.nan


WRONG: dict[str, tuple[Edit, str]] = {
    "other family": (value("general.architecture", "gemma3"), "architecture 'gemma3'; llama, qwen2, qwen3 can be"),
    "scaled positions": (
        value("llama.rope.scaling.type", "linear"),
        r"key llama\.rope\.scaling\.type \(linear\), which would be left out",
    ),
    "scaled frequencies": (tensor("rope_freqs.weight"), r"holds rope_freqs\.weight, which would be left out"),
    "a window": (value("llama.attention.sliding_window", 64), r"key llama\.attention\.sliding_window \(64\)"),
    "experts": (value("llama.expert_count", 8), r"key llama\.expert_count \(8\)"),
    "part of a head turned": (
        value("llama.rope.dimension_count", 8),
        "heads of 16 dimensions and .*_count 8",
    ),
    "a bias of Llama": (tensor("blk.0.attn_q.bias"), r"holds blk\.0\.attn_q\.bias, which would be left out"),
    "a layer too many": (tensor("blk.2.attn_norm.weight"), r"holds blk\.2\.attn_norm\.weight, which would be"),
    "a weight missing": (without("blk.1.ffn_up.weight"), r"does not hold blk\.1\.ffn_up\.weight; it is not complete"),
    "heads that do not fit": (value("llama.attention.head_count_kv", 3), r"cannot be converted \(shape"),
    "a width of another model": (
        value("llama.feed_forward_length", 96),
        r"tiny\.gguf: model\.layers\.0\.mlp\.\w+_proj\.weight has the shape",
    ),
    "no layers": (without("llama.block_count"), r"does not say its llama\.block_count"),
    "no base of the rope": (without("llama.rope.freq_base"), r"does not say its llama\.rope\.freq_base"),
    "a type without a reader": (
        claimed("blk.0.attn_q.weight", F64),
        r"attn_q\.weight is of the type F64, which",
    ),
    "a type that nobody knows": (claimed("blk.0.attn_q.weight", UNKNOWN), r"is of the unknown type 999, which cannot"),
    "NaN": (nan, r"tiny\.gguf: model\.layers\.1\.mlp\.up_proj\.weight holds NaN"),
    "no tokenizer": (without(TOKENS), r"has no tokenizer\.ggml\.tokens"),
    "no merges": (without(MERGES), r"has no tokenizer\.ggml\.merges"),
    "sentence pieces": (value("tokenizer.ggml.model", "llama"), "tokenizer of the kind 'llama'"),
    "unknown cuts": (value("tokenizer.ggml.pre", "dbrx"), "cuts texts by the rule 'dbrx'"),
    "no cuts": (without("tokenizer.ggml.pre"), "cuts texts by the rule None"),
    "a token too few": (one_token_less, r"has \d+ tokens, and an embedding of \d+ rows"),
    "a merge of unknown tokens": (value(MERGES, ["q\u0120 zz"]), r"tokenizer that cannot be built \(.*q\u0120"),
    "a token twice": (lambda draft: draft.values[TOKENS].__setitem__(9, "a"), "has a token twice"),
    "EOS beyond": (value("tokenizer.ggml.eos_token_id", 5000), "eos_token_id 5000"),
    "EOS added": (value("tokenizer.ggml.add_eos_token", True), r"tiny\.gguf: its tokenizer appends '<\|im_end\|>'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_be_another_model_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    edit, told = WRONG[name]
    draft = original().draft()
    edit(draft)
    if name == "other family":
        draft.values |= {"gemma3.block_count": 2}
    path = write(tmp_path / "tiny.gguf", draft)
    with pytest.raises(UserError, match=told) as error:
        make_model(spec_of(path), CPU, tmp_path / "out", None)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", original().draft())
    content = whole.read_bytes()
    header = read_header(whole)
    chance = random.Random(0)
    places = [0, 3, 4, 8, 23, 24, header.data - 1, header.data, len(content) - 40]
    places += [chance.randrange(header.data) for _ in range(times(60))]
    places += [chance.randrange(header.data, len(content) - 32) for _ in range(times(10))]
    for place in places:
        path = tmp_path / "part.gguf"
        path.write_bytes(content[:place])
        with pytest.raises(UserError, match=r"cut short|is no GGUF file") as error:
            make_model(spec_of(path, "0" * 64), CPU, tmp_path / "out", None)
        assert "\n" not in str(error.value), place


def test_a_damaged_header_never_ends_in_a_traceback(tmp_path: Path) -> None:
    """A flipped bit may give another number or text that is possible; else it is one line."""
    whole = write(tmp_path / "whole.gguf", original().draft())
    content, end = whole.read_bytes(), read_header(whole).data
    chance = random.Random(1)
    refused = 0
    for _ in range(times(400)):
        place, bit = chance.randrange(end), chance.randrange(8)
        path = tmp_path / "bit.gguf"
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        told = problem(path)
        assert told is None or "\n" not in told
        refused += told is not None
    assert refused > times(400) // 20


def problem(path: Path) -> str | None:
    """Returns what is wrong with a file's header, None if nothing is."""
    try:
        refuse_header(read_header(path))
    except UserError as error:
        return str(error)
    return None


def test_a_file_that_has_changed_since_the_configuration_was_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf", original().draft())
    with pytest.raises(UserError, match="is not what it was; run snakemake again"):
        make_model(spec_of(path, "0" * 64), CPU, tmp_path / "out", None)


def test_a_model_in_a_package_is_converted_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tiny.gguf", original().draft())
    install(tmp_path / "site", "llm-tiny", {"tiny.gguf": path.read_bytes()})
    monkeypatch.syspath_prepend(tmp_path / "site")
    source = GgufSource(file=None, package="llm-tiny", sha256=gguf_sha256(None, "llm-tiny"))
    assert source.sha256 == gguf_sha256(str(path), None)
    make_model(ModelSpec(source=source, prompt="{question}", version=1), CPU, tmp_path / "out", None)
    made_of_file = tmp_path / "of_file"
    make_model(spec_of(path), CPU, made_of_file, None)
    assert file_hashes(tmp_path / "out") == file_hashes(made_of_file)
    shutil.copy(path, tmp_path / "site" / "llm_tiny" / "tiny.gguf")
    with open(tmp_path / "site" / "llm_tiny" / "tiny.gguf", "ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="is not what its package says; install it anew"):
        make_model(ModelSpec(source=source, prompt="{question}", version=1), CPU, tmp_path / "again", None)
