"""Converts a GGUF file into a plain Hugging Face folder, once; afterwards it is loaded as any other.

The weights are saved in float32, which holds every value of a quantised type exactly. So the folder suits any working
precision, and `runtime.precision`, a machine setting, does not decide what it holds.

Settings, names and the order of rows are those of transformers' own reader, which takes minutes: it looks the names up
anew for each of hundreds of modules, and what it loads cannot be saved. It also passes over what it does not know, such
as scaled positions. Such files are refused here, as a model that is almost the right one would go unnoticed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softtok.config.gguf_files import gguf_file, refuse_without_reader
from softtok.config.specs import GgufSource
from softtok.errors import UserError
from softtok.models.folder_checks import ONE_FILE
from softtok.models.gguf_header import Header, StoredTensor, read_header
from softtok.models.gguf_tokenizer import TOKENS, make_tokenizer, refuse_vocabulary
from softtok.storage.files import file_sha256

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""The architectures that can be converted, and transformers' classes for them."""
SETTINGS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
"""The keys of an architecture that every file must have, and their names in config.json."""
DERIVED = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count")
UNUSED = ("vocab_size",)  # the vocabulary itself is in the file
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
"""The weights of a layer, and their names in transformers."""
OWN_OF_LAYER = {
    "llama": {},
    "qwen2": {f"attn_{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"},
    "qwen3": {f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in "qk"},
}
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
HEAD, HEAD_NAME = "output.weight", "lm_head.weight"
BLOCKS_AT_A_TIME = 2048


def convert(source: GgufSource, out: Path) -> None:
    """Writes weights, settings and tokenizer of a GGUF file into the folder `out`.

    Raises UserError, before anything is converted, for a file that is broken, is not what the spec says, or holds what
    would be left out.
    """
    path = gguf_file(source.file, source.package)
    refuse_without_reader()
    header = read_header(path)
    refuse_header(header)
    if source.sha256 is not None and file_sha256(path) != source.sha256:
        wanted = "its package says; install it anew" if source.package else "it was; run snakemake again"
        raise UserError(f"{path} is not what {wanted}")
    out.mkdir(parents=True, exist_ok=True)
    try:
        _save(header, out)
    except (RuntimeError, ValueError, TypeError) as error:  # sizes that do not fit each other
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be converted ({why}); copy it again") from error


def _save(header: Header, out: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(weights(header)), out / ONE_FILE, metadata={"format": "pt"})
    config_of(header).save_pretrained(out)
    generation_of(header).save_pretrained(out)
    make_tokenizer(header).save_pretrained(out)


def refuse_header(header: Header) -> None:
    """Raises UserError for a file that cannot be converted into exactly its model."""
    _refuse_settings(header)
    refuse_vocabulary(header)
    _refuse_names(header)
    _refuse_types(header)


def _refuse_settings(header: Header) -> None:
    """Raises UserError for an architecture or settings that are unknown, lacking or of the wrong type."""
    path, architecture = header.path, header.values.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(
            f"{path} holds a model of the architecture {architecture!r}; {', '.join(ARCHITECTURES)} can be converted:"
            " give the original model"
        )
    own = _own(header)
    if lacking := [key for key in SETTINGS if key not in own]:
        raise UserError(f"{path} does not say its {architecture}.{lacking[0]}; give the original model")
    if unknown := sorted(set(own) - {*SETTINGS, *DERIVED, *UNUSED}):
        raise UserError(
            f"{path} has the key {architecture}.{unknown[0]} ({str(own[unknown[0]])[:40]}), which would be left out;"
            " give the original model"
        )
    for key, value in own.items():
        whole = key not in ("rope.freq_base", "attention.layer_norm_rms_epsilon")
        if type(value) is not (int if whole else float) or not 0 < value < math.inf:
            raise UserError(f"{path} says {architecture}.{key} {str(value)[:40]}, which is not possible; copy it again")
    width = _head_width(own)
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, width) != width:
            raise UserError(
                f"{path} has heads of {width} dimensions and {architecture}.{key} {own[key]}; equal ones can be"
                " converted: give the original model"
            )


def _own(header: Header) -> dict[str, Any]:
    """Returns the values of the architecture's own keys."""
    prefix = f"{header.values['general.architecture']}."
    return {key.removeprefix(prefix): value for key, value in header.values.items() if key.startswith(prefix)}


def _head_width(own: dict[str, Any]) -> int:
    return int(own.get("attention.key_length") or own["embedding_length"] // own["attention.head_count"])


def _names(header: Header) -> dict[str, str]:
    """Returns transformers' name of each tensor that the file must hold."""
    own = _own(header)
    parts = LAYER | OWN_OF_LAYER[header.values["general.architecture"]]
    names = OUTSIDE | ({HEAD: HEAD_NAME} if HEAD in header.tensors else {})
    for layer in range(own["block_count"]):
        names |= {f"blk.{layer}.{part}": f"model.layers.{layer}.{name}" for part, name in parts.items()}
    return names


def _refuse_names(header: Header) -> None:
    """Raises UserError for tensors that are unknown, or that the file lacks."""
    if len(header.tensors) < _own(header)["block_count"]:  # an absurd number would take forever
        raise UserError(f"{header.path} holds {len(header.tensors)} tensors, fewer than layers; copy it again")
    names = _names(header)
    if unknown := sorted(set(header.tensors) - set(names)):
        raise UserError(f"{header.path} holds {unknown[0]}, which would be left out; give the original model")
    if missing := sorted(set(names) - set(header.tensors)):
        raise UserError(f"{header.path} does not hold {missing[0]}; it is not complete: copy it again")


def _refuse_types(header: Header) -> None:
    """Raises UserError for tensors of a type that cannot be read, and for those that are not whole in the file."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = header.path.stat().st_size
    known = {kind.value: kind for kind in GGMLQuantizationType}
    readable = {number for number, kind in known.items() if _readable(kind)}
    for name, tensor in header.tensors.items():
        if tensor.kind not in readable:
            which = f"type {known[tensor.kind].name}" if tensor.kind in known else f"unknown type {tensor.kind}"
            raise UserError(
                f"{header.path}: {name} is of the {which}, which cannot be read; give a file of another quantisation,"
                " such as Q8_0"
            )
        values, bytes_each = GGML_QUANT_SIZES[known[tensor.kind]]
        if not tensor.shape or 0 in tensor.shape or tensor.shape[-1] % values:
            raise UserError(f"{header.path} is damaged: {name} has the shape {tensor.shape}; copy it again")
        if header.data + tensor.offset + math.prod(tensor.shape) // values * bytes_each > size:
            raise UserError(f"{header.path} is cut short: it ends before the end of {name}; copy it again")


def _readable(kind: Any) -> bool:
    """Whether the package `gguf` turns a type into floats."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, dequantize

    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def config_of(header: Header) -> PreTrainedConfig:
    """Returns the settings of the model, with the special tokens' ids."""
    import numpy as np
    from transformers import AutoConfig

    own, architecture = _own(header), header.values["general.architecture"]
    settings = {name: own[key] for key, name in SETTINGS.items()}
    # A file has 1e-5 as the float32 that is nearest; config.json has the shortest number that is the same float32.
    settings["rms_norm_eps"] = float(str(np.float32(settings["rms_norm_eps"])))
    base = float(str(np.float32(settings.pop("rope_theta"))))
    return AutoConfig.for_model(
        architecture,
        architectures=[ARCHITECTURES[architecture]],
        vocab_size=len(header.values[TOKENS]),
        num_key_value_heads=own.get("attention.head_count_kv", own["attention.head_count"]),
        head_dim=_head_width(own),
        rope_parameters={"rope_type": "default", "rope_theta": base},
        tie_word_embeddings=HEAD not in header.tensors,
        dtype="float32",
        **settings,
        **_special_ids(header),
    )


def _special_ids(header: Header) -> dict[str, int | None]:
    keys = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {f"{name}_token_id": header.values.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}


def generation_of(header: Header) -> GenerationConfig:
    """Returns the ids that begin, end and fill a text; some models also have tokens for the end of a turn."""
    from transformers import GenerationConfig

    ends = [header.values.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    known = [i for i in dict.fromkeys(ends) if i is not None]
    ids: dict[str, Any] = _special_ids(header)
    return GenerationConfig(**ids | ({"eos_token_id": known} if len(known) > 1 else {}))


def weights(header: Header) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the float32 weights with their names in transformers."""
    import numpy as np
    import torch

    own, names = _own(header), _names(header)
    heads = {"attn_q": own["attention.head_count"]}
    heads["attn_k"] = own.get("attention.head_count_kv", heads["attn_q"])
    content = np.memmap(header.path, mode="r", dtype=np.uint8)
    for name, tensor in header.tensors.items():
        values = torch.from_numpy(np.array(_dequantised(content, header.data, tensor), dtype=np.float32))
        part = name.split(".")[-2]
        if header.values["general.architecture"] == "llama" and part in heads:
            values = _in_halves(values, heads[part])
        yield names[name], values


def _dequantised(content: Any, start: int, tensor: StoredTensor) -> Any:
    """Returns a tensor's values as a float32 array.

    `gguf` handles sixteen rows at a time, which are given many blocks each: it takes a tenth of the time so.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(tensor.kind)
    values, bytes_each = GGML_QUANT_SIZES[kind]
    blocks = math.prod(tensor.shape) // values
    raw = content[start + tensor.offset :][: blocks * bytes_each]
    wide = raw.reshape(-1, math.gcd(blocks, BLOCKS_AT_A_TIME) * bytes_each)
    return dequantize(wide, kind).reshape(tensor.shape)


def _in_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Returns Llama's rows of q or k as transformers has them, the two halves of a head one after the other.

    Files have them in turns, as llama.cpp turns neighbours by the rope.
    """
    turns = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return turns.swapaxes(1, 2).reshape(rows.shape).contiguous()
