"""Folders whose weights are wrong are refused in one line before anything is trained; right ones hold what they say.

Each case is a saved tiny model with one thing changed. Two new processes that load an accepted folder hold equal
tensors: what transformers makes up itself differs from process to process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from softtok.__main__ import main
from softtok.config.settings import RuntimeSettings
from softtok.errors import UserError
from softtok.models import loading
from softtok.models.base_model import make_model
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.storage.files import read_json
from tests.support.model_folders import (
    EMBEDDING,
    HEAD,
    Weights,
    configure,
    drop,
    edit_weights,
    save_model,
    shard,
    write_index,
)
from tests.support.project import ROOT
from tests.support.specs import folder_model, hub_model
from tests.support.tiny_models import tiny_model

CPU = RuntimeSettings(device="cpu")
TIED, UNTIED = True, False
Edit = Callable[[Path], Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A tied and an untied model, as transformers saves them."""
    folder = tmp_path_factory.mktemp("saved")
    return {tied: save_model(folder / str(tied), tied=tied) for tied in (TIED, UNTIED)}


def renamed(prefix: str) -> Edit:
    return lambda folder: edit_weights(folder, lambda weights: {prefix + name: x for name, x in weights.items()})


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    def edit(weights: Weights) -> None:
        weights[name] = change(weights[name])

    return lambda folder: edit_weights(folder, edit)


def added(**names: torch.Tensor) -> Edit:
    return lambda folder: edit_weights(
        folder, lambda weights: weights | {k.replace("__", "."): x for k, x in names.items()}
    )


def with_value(name: str, value: float) -> Edit:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight.view(-1)[len(weight) // 2] = value
        return weight

    return replaced(name, change)


def unmerged(weights: Weights) -> Weights:
    """A LoRA on one matrix, as PEFT names it."""
    name = "model.layers.0.self_attn.q_proj"
    rest = {f"base_model.model.{key}": weight for key, weight in weights.items() if not key.startswith(name)}
    return rest | {
        f"base_model.model.{name}.base_layer.weight": weights[f"{name}.weight"],
        f"base_model.model.{name}.lora_A.default.weight": torch.ones(2, 32),
        f"base_model.model.{name}.lora_B.default.weight": torch.ones(32, 2),
    }


def lost_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def unindexed(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").unlink()


def forgotten_shard(folder: Path) -> None:
    files = shard(folder)
    write_index(folder, {name: file for name, file in files.items() if "00001" in file})


def overlapping(folder: Path) -> None:
    shard(folder)
    one, two = sorted(folder.glob("*.safetensors"))
    weights = load_file(two) | {EMBEDDING: load_file(one)[EMBEDDING] + 1}
    save_file(weights, two, metadata={"format": "pt"})


def twice(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)


def no_map(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text("[]")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pointer(name: str) -> Edit:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    return lambda folder: (folder / name).write_text(text)


LAYER_0 = "model.layers.0."
REFUSED: dict[str, tuple[bool, Edit, str]] = {
    "untied, no head": (
        TIED,
        lambda folder: configure(folder, tie_word_embeddings=False),
        "do not hold lm_head.weight; config.json says tie_word_embeddings: false; set it to true if the head is E",
    ),
    "untied, head lost": (
        UNTIED,
        lambda folder: drop(folder, HEAD),
        "do not hold lm_head.weight; config.json says tie",
    ),
    "tied, no E": (TIED, lambda folder: drop(folder, EMBEDDING), f"{EMBEDDING}; the save was not complete"),
    "untied, no E": (
        UNTIED,
        lambda folder: drop(folder, EMBEDDING),
        f"not hold {EMBEDDING}; the save was not complete",
    ),
    "no last layer": (
        TIED,
        lambda folder: drop(folder, "layers.1."),
        "model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight,"
        " model.layers.1.mlp.gate_proj.weight and 6 more; the files hold 1 layers, and config.json asks for 2",
    ),
    "no first layer": (TIED, lambda folder: drop(folder, "layers.0."), "and 6 more; the save was not complete"),
    "no matrix": (
        TIED,
        lambda folder: drop(folder, "layers.1.mlp.up_proj"),
        "not hold model.layers.1.mlp.up_proj.weight; the save was not complete",
    ),
    "no last norm": (TIED, lambda folder: drop(folder, "model.norm"), "not hold model.norm.weight; the save was not"),
    "a layer too many": (
        TIED,
        lambda folder: configure(folder, num_hidden_layers=1, layer_types=None),
        "and 6 more, which would be left out; the files hold 2 layers, and config.json asks for 1",
    ),
    "a layer too few": (
        TIED,
        lambda folder: configure(folder, num_hidden_layers=3, layer_types=None),
        "and 6 more; the files hold 2 layers, and config.json asks for 3",
    ),
    "biases that config.json denies": (
        TIED,
        added(model__layers__0__self_attn__q_proj__bias=torch.ones(32)),
        "hold model.layers.0.self_attn.q_proj.bias, which would be left out; config.json is that of another model",
    ),
    "another family": (TIED, lambda folder: configure(folder, model_type="qwen2"), "k_proj.bias, "),
    "another family's norms": (TIED, lambda folder: configure(folder, model_type="qwen3"), "self_attn.k_norm.weight, "),
    "wrapped by DDP": (TIED, renamed("module."), "begin with 'module.'; save the model without what was wrapped"),
    "wrapped by compile": (UNTIED, renamed("_orig_mod."), "the names in the files begin with '_orig_mod.'"),
    "wrapped by a tower": (UNTIED, renamed("language_model."), "the names in the files begin with 'language_model.'"),
    "LoRA not merged": (TIED, lambda folder: edit_weights(folder, unmerged), "an adapter that was not merged"),
    "LoRA beside": (
        TIED,
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "adapter_config.json: an adapter (LoRA) would be left out; merge it",
    ),
    "quantised": (
        TIED,
        lambda folder: configure(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantization_config (gptq); quantised weights cannot be trained",
    ),
    "quantised, not said": (
        TIED,
        replaced(f"{LAYER_0}mlp.up_proj.weight", lambda weight: (100 * weight).to(torch.int8)),
        f"{LAYER_0}mlp.up_proj.weight is of type I8; quantised weights",
    ),
    "float8": (
        TIED,
        replaced(f"{LAYER_0}mlp.up_proj.weight", lambda weight: weight.to(torch.float8_e4m3fn)),
        f"{LAYER_0}mlp.up_proj.weight is of type F8_E4M3; quantised weights",
    ),
    "quantised, scales beside": (
        TIED,
        added(model__layers__0__mlp__up_proj__weight_scale=torch.ones(1)),
        "up_proj.weight_scale, which would be left out; they look like quantised weights",
    ),
    "a value head": (TIED, added(v_head__summary__weight=torch.ones(1, 32)), "v_head.summary.weight, which would be"),
    "vocab_size too large": (
        TIED,
        lambda folder: configure(folder, vocab_size=300),
        "config.json says vocab_size: 300,",
    ),
    "vocab_size too small": (
        TIED,
        lambda folder: configure(folder, vocab_size=200),
        "config.json says vocab_size: 200,",
    ),
    "another width of the MLP": (
        TIED,
        lambda folder: configure(folder, intermediate_size=96),
        f"{LAYER_0}mlp.down_proj.weight has the shape 32x64, and config.json asks for 32x96 (so with {LAYER_0}mlp.gate",
    ),
    "vocab_size of E and head": (
        UNTIED,
        lambda folder: configure(folder, vocab_size=300),
        f"asks for 300x32 (so with {EMBEDDING}); config.json says vocab_size: 300, and the files have 260 rows",
    ),
    "other heads": (TIED, lambda folder: configure(folder, num_key_value_heads=4), "k_proj.weight has the shape 16x32"),
    "empty weights": (
        TIED,
        replaced(f"{LAYER_0}mlp.up_proj.weight", lambda weight: torch.zeros(0)),
        "has the shape 0, and config.json asks for 64x32; a training in shards leaves empty weights",
    ),
    "NaN": (TIED, with_value(f"{LAYER_0}mlp.up_proj.weight", float("nan")), "up_proj.weight holds NaN or infinity"),
    "infinity": (TIED, with_value(EMBEDDING, float("inf")), f"{EMBEDDING} holds NaN or infinity"),
    "NaN in a norm": (UNTIED, with_value("model.norm.weight", float("nan")), "model.norm.weight holds NaN or infinity"),
    "-infinity in a head": (UNTIED, with_value(HEAD, float("-inf")), f"{HEAD} holds NaN or infinity"),
    "zeros": (
        TIED,
        replaced(f"{LAYER_0}mlp.up_proj.weight", torch.zeros_like),
        "up_proj.weight is zero throughout; the",
    ),
    "tied, another head stored": (
        UNTIED,
        lambda folder: configure(folder, tie_word_embeddings=True),
        "tie_word_embeddings: true, but the files hold a head that differs from E; set it to false if",
    ),
    "a shard lost": (
        TIED,
        lost_shard,
        "model.safetensors.index.json names model-00002-of-00002.safetensors, which the folder does not hold",
    ),
    "a shard not named": (TIED, forgotten_shard, "and 6 more; the files hold 1 layers, and config.json asks for 2"),
    "shards without index": (TIED, unindexed, "model-00001-of-00002.safetensors, but neither model.safetensors nor"),
    "an index without map": (TIED, no_map, "model.safetensors.index.json cannot be read (TypeError"),
    "two shards with one name": (
        TIED,
        overlapping,
        f"{EMBEDDING} is in model-00001-of-00002.safetensors and in model-0",
    ),
    "a file and shards": (TIED, twice, "holds both model.safetensors and model.safetensors.index.json"),
    "cut short": (TIED, cut, "model.safetensors is damaged or cut short ("),
    "a pointer": (TIED, pointer("model.safetensors"), "model.safetensors is a pointer of Git LFS, not the file; run"),
    "a pointer for the tokenizer": (TIED, pointer("tokenizer.json"), "tokenizer.json is a pointer of Git LFS"),
    "no weights": (TIED, lambda folder: (folder / "model.safetensors").unlink(), "holds no *.safetensors file; give a"),
    "no config": (TIED, lambda folder: (folder / "config.json").unlink(), "no config.json in /"),
    "a list for a config": (
        TIED,
        lambda folder: (folder / "config.json").write_text("[]"),
        "config.json holds no JSON",
    ),
    "end tokens cut short": (
        TIED,
        lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": [1, '),
        "generation_config.json cannot be read (",
    ),
    "a link to nothing": (
        TIED,
        lambda folder: (folder / "more.safetensors").symlink_to("nowhere"),
        "more.safetensors cannot be read (No such file or directory)",
    ),
    "code of its own": (
        TIED,
        lambda folder: configure(folder, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.M"}),
        "cannot be loaded by transformers (",
    ),
}


def copied(folder: Path, into: Path, edit: Edit) -> Path:
    shutil.copytree(folder, into)
    edit(into)
    return into


class Collected(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What transformers logs, at the level that is set."""
    handler, logger = Collected(), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_model_is_refused_in_one_line(
    case: str, saved: dict[bool, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], logged: list[str]
) -> None:
    """By `softtok model`, which leaves nothing, and by every later job; transformers' table of keys is not printed."""
    tied, edit, words = REFUSED[case]
    folder = copied(saved[tied], tmp_path / "model", edit)
    with pytest.raises(UserError) as refusal:
        make_model(folder_model(folder), CPU, tmp_path / "out/made", None)
    message = str(refusal.value)
    assert message.startswith(f"model {folder}: ") and "\n" not in message and len(message) < 450
    assert words in message
    assert not list(tmp_path.glob("out/*"))
    with pytest.raises(UserError) as later:
        load(folder, CPU)
    assert str(later.value) == message
    printed = capfd.readouterr()
    assert not printed.out and not printed.err and not logged


OF_VALUES = {"NaN", "infinity", "NaN in a norm", "-infinity in a head", "zeros", "tied, another head stored"}


@pytest.mark.parametrize("case", [case for case in REFUSED if case != "a link to nothing"])
def test_a_wrong_model_of_the_hub_is_refused_without_its_body(
    case: str,
    saved: dict[bool, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    logged: list[str],
) -> None:
    """In the same line as by a job that loads it; what only values tell is left to that job."""
    tied, edit, words = REFUSED[case]
    folder = copied(saved[tied], tmp_path / "snapshots" / ("0" * 40), edit)
    for place in ("softtok.models.base_model", "softtok.models.references"):
        monkeypatch.setattr(f"{place}.locked", lambda name, commit: folder)
    monkeypatch.setattr("softtok.models.base_model.fetch", lambda name, revision: folder)
    spec = hub_model("org/model")
    if case in OF_VALUES:
        make_model(spec, CPU, tmp_path / "out/made", None)
        with pytest.raises(UserError) as refusal:
            load(tmp_path / "out/made", CPU)
    else:
        monkeypatch.setattr(loading, "load", pytest.fail)
        with pytest.raises(UserError) as refusal:
            make_model(spec, CPU, tmp_path / "out/made", None)
        assert not list(tmp_path.glob("out/*"))
    message = str(refusal.value)
    assert message.startswith("model org/model: ") and "\n" not in message and len(message) < 450
    assert words in message
    printed = capfd.readouterr()
    assert not printed.out and not printed.err and not logged


def test_the_command_prints_one_line_and_fails(
    saved: dict[bool, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copied(saved[TIED], tmp_path / "model", lambda folder: configure(folder, tie_word_embeddings=False))
    spec, runtime = folder_model(folder).as_json(), CPU.model_dump_json()
    assert main(["model", "--spec", spec, "--runtime", runtime, "--out", str(tmp_path / "made")]) == 1
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"softtok: error: model {folder}: its files do not hold lm_head.weight; ")


def only_head(folder: Path) -> None:
    """E under the head's name: tied, so that either gives both."""
    edit_weights(folder, lambda weights: {HEAD if name == EMBEDDING else name: x for name, x in weights.items()})


def both_stored(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights | {HEAD: weights[EMBEDDING].clone()})


def body_only(folder: Path) -> None:
    """As the body alone saves itself."""
    edit_weights(folder, lambda weights: {name.removeprefix("model."): weight for name, weight in weights.items()})


def stored_as(dtype: torch.dtype) -> Edit:
    return lambda folder: edit_weights(folder, lambda weights: {name: x.to(dtype) for name, x in weights.items()})


ACCEPTED: dict[str, tuple[bool, Edit]] = {
    "tied, as it was saved": (TIED, lambda folder: None),
    "untied, as it was saved": (UNTIED, lambda folder: None),
    "tied, the head stored too": (TIED, both_stored),
    "tied, the head stored alone": (TIED, only_head),
    "untied, the head equals E": (UNTIED, both_stored),
    "two shards": (UNTIED, shard),
    "no prefix": (TIED, body_only),
    "old buffers": (TIED, added(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))),
    "fp16": (UNTIED, stored_as(torch.float16)),
    "bf16": (TIED, stored_as(torch.bfloat16)),
    "fp64": (TIED, stored_as(torch.float64)),
    "weights of PyTorch beside": (TIED, lambda folder: (folder / "pytorch_model.bin").write_bytes(b"other")),
    "no generation config": (TIED, lambda folder: (folder / "generation_config.json").unlink()),
}


@pytest.fixture(scope="module")
def accepted(saved: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each accepted case, and one with more rows than tokens."""
    root = tmp_path_factory.mktemp("accepted")
    folders = {
        name: copied(saved[tied], root / str(place), edit)
        for place, (name, (tied, edit)) in enumerate(ACCEPTED.items())
    }
    return folders | {"V beyond the tokenizer": save_model(root / "larger", rows=320)}


@pytest.mark.parametrize("case", [*ACCEPTED, "V beyond the tokenizer"])
def test_a_right_model_holds_what_was_saved(case: str, accepted: dict[str, Path], tmp_path: Path) -> None:
    """The identity stays the hash of the weight files."""
    folder = accepted[case]
    make_model(folder_model(folder), CPU, tmp_path / "made", None)
    lm = load(tmp_path / "made", CPU)
    tied = ACCEPTED[case][0] if case in ACCEPTED else TIED
    wanted = tiny_model(vocabulary=320 if case not in ACCEPTED else len(lm.tokenizer), tied=tied)
    exact = 1e-2 if case in ("fp16", "bf16") else 0
    expected = dict(wanted.model.named_parameters())
    if case == "untied, the head equals E":
        expected[HEAD] = expected[EMBEDDING]
    for name, parameter in lm.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=exact, atol=exact)
    assert (lm.head_VD is lm.embedding_VD) == tied
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    text = json.dumps(digests, sort_keys=True, separators=(",", ":"))
    assert read_json(tmp_path / "made/model.json")["sha256"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("case", [*ACCEPTED, "V beyond the tokenizer"])
def test_a_right_model_of_the_hub_is_accepted_without_its_body(
    case: str, accepted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = accepted[case]
    for place in ("softtok.models.base_model", "softtok.models.references"):
        monkeypatch.setattr(f"{place}.locked", lambda name, commit: folder)
    monkeypatch.setattr("softtok.models.base_model.fetch", lambda name, revision: folder)
    outlined = loading.outline
    devices: set[str] = set()

    def watched(folder: Path) -> LanguageModel:
        lm = outlined(folder)
        devices.update(parameter.device.type for parameter in lm.model.parameters())
        return lm

    monkeypatch.setattr(loading, "outline", watched)
    if case == "V beyond the tokenizer":
        window = copied(folder, tmp_path / "window", lambda folder: configure(folder, sliding_window=4096))
        with pytest.raises(UserError, match="sliding window of 4096 tokens; this family is not supported"):
            outlined(window)
    make_model(hub_model("org/model"), CPU, tmp_path / "made", None)
    assert devices == {"meta"}, "no weight takes memory"
    assert load(tmp_path / "made", CPU).name == "org/model"


LOADS = """
import hashlib, sys
from pathlib import Path
from softtok.config.settings import RuntimeSettings
from softtok.models.loading import load
for folder in sys.argv[1:]:
    lm = load(Path(folder), RuntimeSettings(device="cpu"))
    digest = hashlib.sha256()
    for name, tensor in sorted([*lm.model.state_dict().items(), *lm.model.named_buffers()]):
        digest.update(name.encode() + tensor.detach().numpy().tobytes())
    digest.update(lm.head_VD.detach().numpy().tobytes())
    print(digest.hexdigest(), lm.tokenizer("a b c")["input_ids"])
"""


def test_two_processes_that_load_a_folder_hold_equal_tensors(accepted: dict[str, Path]) -> None:
    def printed() -> Iterator[str]:
        command = [sys.executable, "-c", LOADS, *map(str, accepted.values())]
        for _ in range(2):
            yield subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, timeout=300).stdout

    first, second = printed()
    assert len(first.splitlines()) == len(accepted) and first == second
    digests = dict(zip(accepted, (line.split()[0] for line in first.splitlines()), strict=True))
    assert digests["tied, as it was saved"] == digests["tied, the head stored too"] == digests["no prefix"]
    assert digests["tied, as it was saved"] != digests["untied, as it was saved"] == digests["two shards"]
