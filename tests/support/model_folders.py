"""Edits of a saved model's folder: its weights, its settings, its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from softtok.models.toy_model import bpe_tokenizer
from tests.support.tiny_models import tiny_model

Weights = dict[str, Tensor]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def save_model(folder: Path, family: str = "llama", *, tied: bool = True, rows: int | None = None) -> Path:
    """Saves a tiny random model with a tokenizer of 270 tokens at most; `rows` of E, by default one for each token."""
    tokenizer = bpe_tokenizer(["a b c"], 270)
    lm = tiny_model(family, vocabulary=rows or len(tokenizer), tied=tied)
    lm.model.generation_config.eos_token_id = tokenizer.eos_token_id
    lm.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_weights(folder: Path, change: Callable[[Weights], Weights | None], file: str = "model.safetensors") -> None:
    """Writes the weights anew after `change`, which edits or replaces them."""
    weights = load_file(folder / file)
    changed = change(weights)
    save_file(weights if changed is None else changed, folder / file, metadata={"format": "pt"})


def drop(folder: Path, part: str) -> None:
    """Removes the weights whose name has this part; there is at least one."""

    def without(weights: Weights) -> Weights:
        kept = {name: weight for name, weight in weights.items() if part not in name}
        assert len(kept) < len(weights)
        return kept

    edit_weights(folder, without)


def edit_json(folder: Path, file: str, **values: Any) -> None:
    """Sets keys of a JSON file."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def configure(folder: Path, **values: Any) -> None:
    """Sets keys of config.json."""
    edit_json(folder, "config.json", **values)


def shard(folder: Path) -> dict[str, str]:
    """Spreads the weights over two files, layer 1 in the second, with their index; returns its map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + ('layers.1' in name)}-of-00002.safetensors" for name in weights}
    for file in set(files.values()):
        part = {name: weight for name, weight in weights.items() if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    write_index(folder, files)
    return files


def write_index(folder: Path, files: dict[str, str]) -> None:
    """Writes the index of weights in several files."""
    text = json.dumps({"metadata": {}, "weight_map": files})
    (folder / "model.safetensors.index.json").write_text(text)
