"""Writes small GGUF files as llama.cpp's converter does, and packages that hold some."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from softtok.models.language_model import LanguageModel

LIKE_TEXT = ("How many 1,234 apples\n\n17 more?  'tis Tom's caf\u00e9 \u4e2d\u6587", "The final answer is 12. " * 3)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty_output>")
CHAT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
NORMAL, CONTROL = 1, 3
"""What a GGUF file calls ordinary and special tokens."""


def smollm_like() -> Tokenizer:
    """Returns a tokenizer of SmolLM's kind, which cuts off each digit before it merges bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*LIKE_TEXT] * 2, trainer)
    return tokenizer


def vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what a GGUF file holds of a tokenizer."""
    described = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in SPECIAL else NORMAL for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in described["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT,
    }


def shape_of(lm: LanguageModel) -> dict[str, Any]:
    """Returns what a GGUF file holds of a model's configuration."""
    config = lm.model.config
    family = config.model_type
    return {
        "general.architecture": family,
        "general.name": "a tiny one",
        f"{family}.block_count": config.num_hidden_layers,
        f"{family}.context_length": config.max_position_embeddings,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.feed_forward_length": config.intermediate_size,
        f"{family}.attention.head_count": config.num_attention_heads,
        f"{family}.attention.head_count_kv": config.num_key_value_heads,
        f"{family}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{family}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{family}.rope.dimension_count": config.head_dim,
    }


NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def stored_name(name: str) -> str:
    """Returns the name that a weight has in GGUF files."""
    part, _, kind = name.rpartition(".")
    if part.startswith("model.layers."):
        _, _, layer, part = part.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return f"{NAMES[part]}.{kind}"


def stored_order(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns the rows of Llama's q or k in the order of GGUF files: both halves of a head's dimensions in turns."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def weights_of(lm: LanguageModel) -> dict[str, np.ndarray]:
    """Returns a model's weights by their names in GGUF files, with a head only if it is not E."""
    config, weights = lm.model.config, {}
    for name, value in lm.model.named_parameters():
        rows = value.detach()
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            rows = stored_order(rows, heads)
        weights[stored_name(name)] = np.ascontiguousarray(rows.numpy())
    return weights


@dataclass
class Draft:
    """What a file is to hold, for tests to change: values by key, weights by name, and a type for matrices."""

    values: dict[str, Any]
    weights: dict[str, np.ndarray]
    kind: str = "F32"
    kinds: dict[str, int] = field(default_factory=dict)  # numbers of types that the file is to claim for tensors


def write(path: Path, draft: Draft) -> Path:
    """Writes a file; vectors stay in F32, and so do matrices whose rows are no whole blocks."""
    gguf = pytest.importorskip("gguf", reason="GGUF files: the package gguf is not installed")
    writer = gguf.GGUFWriter(path, draft.values["general.architecture"])
    kind = gguf.GGMLQuantizationType[draft.kind]
    for key, value in draft.values.items():
        if key == "general.alignment":
            writer.data_alignment = value
        if key != "general.architecture":
            _add(writer, key, value)
    for name, weight in draft.weights.items():
        whole = weight.ndim > 1 and weight.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        stored = gguf.quantize(weight, kind) if whole and draft.kind != "F32" else weight
        raw = kind if whole and draft.kind != "F32" else None
        writer.add_tensor(name, stored, raw_dtype=raw)
    for name, number in draft.kinds.items():
        writer.tensors[0][name].dtype = number
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    adders: Mapping[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    adders[type(value)](key, value)


def install(site: Path, name: str, files: Mapping[str, bytes], *, recorded: bool = True) -> None:
    """Puts a package into a folder of packages; to import it would fail, and its list of files may lack hashes."""
    folder, info = site / name.replace("-", "_"), site / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    info.mkdir()
    lines = [f"{info.name}/METADATA,,", f"{folder.name}/__init__.py,,"]
    (folder / "__init__.py").write_text("raise AssertionError('this package must not be imported')\n")
    for file, content in files.items():
        (folder / file).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{folder.name}/{file},{f'sha256={digest},{len(content)}' if recorded else ','}")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("\n".join(lines) + "\n")
