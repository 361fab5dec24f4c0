"""Checks a model's folder before anything is loaded, and what transformers says after loading its weights.

transformers makes up weights that a folder lacks, and leaves out those that it does not know; both it only logs. Here
each is an error of one line, which names the weights and says what kind of mistake it looks like.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from softtok.errors import UserError
from softtok.storage.files import WEIGHTS, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
"""Files that a tokenizer can be made from; folders that transformers saves have the first."""
FLOATS = {"F64", "F32", "F16", "BF16"}
"""The types of weights that can be trained, as safetensors names them."""
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")
LFS_POINTER = b"version https://git-lfs"
SIGNS = {
    "lora_": "an adapter that was not merged into the weights",
    "base_layer": "an adapter that was not merged into the weights",
    **dict.fromkeys(("qweight", "qzeros", "weight_scale", "weight_packed", "absmax"), "quantised weights"),
}
"""Parts of names by which weights show that they are no plain ones."""
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def refuse_folder(name: str, folder: Path) -> None:
    """Raises UserError if a folder cannot be a causal language model with its tokenizer.

    Looks at the names of files and at the headers of weight files only, so that it takes no time.
    """
    for path in sorted(folder.glob("*")):
        if path.suffix in {".safetensors", ".json", ".model"} and _start(name, path, len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"model {name}: {path.name} is a pointer of Git LFS, not the file; run `git lfs pull`")
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"model {name}: adapter_config.json: an adapter (LoRA) would be left out; merge it into the weights first"
        )
    files = weight_files(name, folder)
    if not (folder / "config.json").exists():
        raise UserError(f"model {name}: no config.json in {folder}")
    if not any((folder / file).exists() for file in TOKENIZERS) and not any(folder.glob("*.tiktoken")):
        raise UserError(f"model {name}: no tokenizer.json in {folder}; copy the tokenizer's files there")
    for file in SETTINGS:
        settings = _settings(name, folder / file)
        if file == "config.json":
            _refuse_quantised(name, settings)
    _refuse_headers(name, files)


def weight_files(name: str, folder: Path) -> list[Path]:
    """Returns the files that transformers reads the weights from. Raises UserError if there are none, or two sets."""
    one, index = folder / ONE_FILE, folder / INDEX
    if one.exists() and index.exists():
        raise UserError(
            f"model {name}: holds both {ONE_FILE} and {INDEX}; only the first would be read: remove what is not meant"
        )
    if one.exists():
        return [one]
    found = sorted(path.name for path in folder.glob(WEIGHTS))
    if not index.exists():
        held = f"{found[0]}, but neither {ONE_FILE} nor {INDEX}" if found else f"no {WEIGHTS} file"
        raise UserError(f"model {name}: {folder} holds {held}; give a Hugging Face folder with safetensors weights")
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model {name}: {INDEX} cannot be read ({type(error).__name__}: {error})") from error
    if missing := [shard for shard in shards if shard not in found]:
        raise UserError(f"model {name}: {INDEX} names {_some(missing)}, which the folder does not hold")
    return [folder / shard for shard in shards]


def _start(name: str, path: Path, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:  # no permission, a folder, a link to nothing
        raise UserError(f"model {name}: {path.name} cannot be read ({error.strerror})") from error


def _settings(name: str, path: Path) -> dict[str, Any]:
    """Returns a file's JSON object, {} if there is no file; transformers passes over some that cannot be read."""
    if not path.exists():
        return {}
    try:
        settings = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"model {name}: {path.name} cannot be read ({error})") from error
    if not isinstance(settings, dict):
        raise UserError(f"model {name}: {path.name} holds no JSON object")
    return settings


def _refuse_quantised(name: str, config: dict[str, Any]) -> None:
    """Raises UserError for quantised weights: they cannot be trained, and most kinds need libraries of their own."""
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"model {name}: config.json has a quantization_config ({method}); quantised weights cannot be trained:"
            " give the original model"
        )


def _refuse_headers(name: str, files: Iterable[Path]) -> None:
    """Raises UserError if a weight file is damaged, holds what is no float, or holds a weight that another has too."""
    where: dict[str, str] = {}
    for path in files:
        try:
            with safe_open(path, framework="np") as file:
                types = {key: str(file.get_slice(key).get_dtype()) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            why = str(error).splitlines()[0]
            raise UserError(f"model {name}: {path.name} is damaged or cut short ({why}); copy it again") from error
        for key, kind in types.items():
            if key.endswith("weight") and kind not in FLOATS:
                raise UserError(
                    f"model {name}: {key} is of type {kind}; quantised weights cannot be trained: give the original"
                    " model"
                )
            if key in where:
                raise UserError(
                    f"model {name}: {key} is in {where[key]} and in {path.name}; {INDEX} is that of another save"
                )
            where[key] = path.name


def refuse_weights(name: str, model: PreTrainedModel, seen: Mapping[str, Any]) -> None:
    """Raises UserError if a model's weights are not exactly those that its config.json asks for, by name and shape.

    `seen` is transformers' loading information. A head that is absent because it is E is not among its missing keys.
    """
    missing, unexpected = sorted(seen["missing_keys"]), sorted(seen["unexpected_keys"])
    if missing:
        looks = _looks_like(missing, unexpected, model)
        raise UserError(f"model {name}: its files do not hold {_some(missing)}; {looks}")
    if mismatched := sorted(seen["mismatched_keys"]):
        (key, held, asked), *others = mismatched
        likewise = f" (so with {_some([other for other, *_ in others])})" if others else ""
        raise UserError(
            f"model {name}: {key} has the shape {_shape(held)}, and config.json asks for {_shape(asked)}{likewise};"
            f" {_looks_resized(key, tuple(held), tuple(asked))}"
        )
    if unexpected:
        looks = _looks_like(missing, unexpected, model)
        raise UserError(f"model {name}: its files hold {_some(unexpected)}, which would be left out; {looks}")


def refuse_values(name: str, model: PreTrainedModel) -> None:
    """Raises UserError if the values of a model's weights cannot be right."""
    if model.config.get_text_config().tie_word_embeddings and _has_own_head(model):
        raise UserError(
            f"model {name}: config.json says tie_word_embeddings: true, but the files hold a head that differs from E;"
            " set it to false if the head is right, or remove the head from the files"
        )
    for key, parameter in model.named_parameters():
        low, high = map(float, parameter.detach().aminmax())  # one pass, and NaN goes through it
        if not math.isfinite(low) or not math.isfinite(high):
            raise UserError(f"model {name}: {key} holds NaN or infinity; the file is damaged, or its training diverged")
        if low == high == 0 and parameter.ndim > 1:  # a bias may be zero; interrupted downloads leave zeros behind
            raise UserError(f"model {name}: {key} is zero throughout; the file is not complete: copy it again")


def _has_own_head(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and getattr(head, "weight", None) is not getattr(model.get_input_embeddings(), "weight", 0)


def _some(names: Sequence[str]) -> str:
    """Names the first three of many."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shape(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))


def _looks_like(missing: list[str], unexpected: list[str], model: PreTrainedModel) -> str:
    """Says what kind of mistake missing and unexpected weights look like, and what to do."""
    if signs := [what for sign, what in SIGNS.items() if any(sign in key for key in unexpected)]:
        return f"they look like {signs[0]}"
    if (prefix := _prefix(missing, unexpected)) is not None:
        return f"the names in the files begin with {prefix!r}; save the model without what was wrapped around it"
    asked = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if (held := _layers(missing, unexpected, [key for key, _ in model.named_parameters()])) is not None:
        return f"the files hold {held} layers, and config.json asks for {asked}"
    if unexpected:
        return "config.json is that of another model; give the one that was saved with the weights"
    if all("lm_head" in key or "embed_out" in key for key in missing):
        return (
            "config.json says tie_word_embeddings: false; set it to true if the head is E, or save the model with its"
            " head"
        )
    return "the save was not complete, or config.json is that of another model; save or copy the model again"


def _prefix(missing: list[str], unexpected: list[str]) -> str | None:
    """Returns what stands before the names of the missing weights in the files, if it is one prefix."""
    found = {key.removesuffix(name) for name in missing for key in unexpected if key.endswith(f".{name}")}
    return found.pop() if len(found) == 1 else None


def _layers(missing: list[str], unexpected: list[str], known: list[str]) -> int | None:
    """Returns how many layers the files hold, if all that is wrong are whole layers at the end."""
    absent = set(missing)
    held = {int(place[1]) for key in known if key not in absent and (place := LAYER.search(key))}
    asked = {int(place[1]) for key in known if (place := LAYER.search(key))}
    wrong = [LAYER.search(key) for key in (*missing, *unexpected)]
    places = {int(place[1]) for place in wrong if place}
    if not all(wrong) or places & held or (missing and unexpected) or held != set(range(len(held))):
        return None
    return max(places) + 1 if unexpected and held == asked else len(held)


def _looks_resized(key: str, held: tuple[int, ...], asked: tuple[int, ...]) -> str:
    if 0 in held:
        return "a training in shards leaves empty weights like this; gather them before saving"
    if held[1:] == asked[1:] and any(part in key for part in ("embed", "lm_head", "wte")):
        return f"config.json says vocab_size: {asked[0]}, and the files have {held[0]} rows"
    return "config.json is that of another model; give the one that was saved with the weights"
