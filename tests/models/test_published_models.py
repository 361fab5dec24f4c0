"""Small bodies with the settings of the paper's three models, as the hub has them, loaded, saved and loaded again.

Their config.json is of transformers 4: the rope's scaling and base stand apart. Transformers 5 writes them together.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from softtok.config.settings import RuntimeSettings
from softtok.method.stopping import TextRules
from softtok.models.base_model import make_model
from softtok.models.language_model import LanguageModel
from softtok.models.loading import load
from softtok.models.real_tokenizers import real_tokenizer
from softtok.problems.prompt import PROMPT, eos_ids
from softtok.training.checkpoint import write_weights
from tests.support.specs import folder_model

CPU = RuntimeSettings(device="cpu")
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128_000,
    "eos_token_id": [128_001, 128_008, 128_009], "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 131_072, "mlp_bias": False, "model_type": "llama", "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500_000.0, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128_256,
}  # fmt: skip
SCALING = {
    "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama 3.2 3B Instruct": {
        **LLAMA, "head_dim": 128, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_scaling": {"factor": 32.0, **SCALING},
        "tie_word_embeddings": True, "transformers_version": "4.45.0.dev0",
    },
    "Llama 3.1 8B Instruct": {
        **LLAMA, "hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rope_scaling": {"factor": 8.0, **SCALING}, "tie_word_embeddings": False,
        "transformers_version": "4.42.3",
    },
    "Qwen 2.5 3B Instruct": {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643,
        "eos_token_id": 151_645, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 11_008, "max_position_embeddings": 32_768, "max_window_layers": 70, "model_type": "qwen2",
        "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1_000_000.0, "sliding_window": 32_768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False, "vocab_size": 151_936,
    },
}  # fmt: skip
GENERATION = {
    "llama": {"bos_token_id": 128_000, "do_sample": True, "eos_token_id": [128_001, 128_008, 128_009],
              "temperature": 0.6, "top_p": 0.9, "transformers_version": "4.42.3"},
    "qwen2": {"bos_token_id": 151_643, "pad_token_id": 151_643, "do_sample": True, "eos_token_id": [151_645, 151_643],
              "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
              "transformers_version": "4.37.0"},
}  # fmt: skip
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
HEAD_WIDTH = 128
"""Of all three models; the rope's frequencies depend on it."""
TOKENIZERS = {"llama": "llama-3", "qwen2": "qwen-2.5"}
TEXT = list(range(1000, 1040))


def published(name: str, folder: Path) -> Path:
    """A folder as on the hub: the published settings but for the sizes, random weights, and the tokenizer."""
    config = CONFIGS[name]
    assert config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]) == HEAD_WIDTH
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | SMALL | {"head_dim": HEAD_WIDTH}))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION[config["model_type"]]))
    real_tokenizer(TOKENIZERS[config["model_type"]], 131_072).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        weights = {key: 0.1 * torch.randn_like(x).bfloat16() for key, x in empty.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def frequencies(config: dict[str, Any]) -> torch.Tensor:
    """The rope's frequencies as Meta's and Qwen's own code compute them, in fp64."""
    plain: torch.Tensor = config["rope_theta"] ** -(torch.arange(0, HEAD_WIDTH, 2).double() / HEAD_WIDTH)
    scaling = config.get("rope_scaling")
    if scaling is None:
        return plain
    scaled = []
    for frequency in plain.tolist():
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        if turns < low:
            frequency /= scaling["factor"]
        elif turns <= high:
            smooth = (turns - low) / (high - low)
            frequency = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
        scaled.append(frequency)
    return torch.tensor(scaled, dtype=torch.float64)


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model's name, as it was loaded from its hub folder, and from a copy that training saves."""
    root = tmp_path_factory.mktemp("published")
    folder = published(request.param, root / "hub")
    make_model(folder_model(folder).model_copy(update={"prompt": PROMPT}), CPU, root / "made", None)
    lm = load(root / "made", CPU)
    write_weights(root / "copy", lm)
    return {"name": request.param, "models": [lm, load(root / "copy", CPU)], "copy": root / "copy"}


def test_the_rope_is_the_published_one_also_when_saved(loaded: dict[str, Any]) -> None:
    config = CONFIGS[loaded["name"]]
    wanted = frequencies(config)
    assert (wanted.min() < frequencies(config | {"rope_scaling": None}).min()) == ("rope_scaling" in config)
    for lm in loaded["models"]:
        rope = lm.model.base_model.rotary_emb
        torch.testing.assert_close(rope.inv_freq.double(), wanted, rtol=1e-5, atol=0)
        assert rope.attention_scaling == 1.0


def test_all_published_ends_end_a_text_also_when_saved(loaded: dict[str, Any]) -> None:
    model_type = CONFIGS[loaded["name"]]["model_type"]
    wanted = set(GENERATION[model_type]["eos_token_id"])  # type: ignore[call-overload]
    for lm in loaded["models"]:
        assert eos_ids(lm.model.generation_config, lm.tokenizer) == wanted
    rules = TextRules(lm)
    for end in wanted:
        assert rules.may_stop[end] and rules.stop(np.array([5, end])) == "eos" and rules.answer_ends([5, end])


def test_a_saved_copy_is_the_model(loaded: dict[str, Any]) -> None:
    """Weights, prompts and logits, to the bit; the head is tied where the published one is."""
    first = loaded["models"][0]
    for lm in loaded["models"]:
        assert (lm.head_VD is lm.embedding_VD) == CONFIGS[loaded["name"]]["tie_word_embeddings"]
        assert getattr(lm.model.config, "sliding_window", None) is None
        assert lm.model.config.max_position_embeddings == CONFIGS[loaded["name"]]["max_position_embeddings"]
        assert lm.tokenizer(PROMPT)["input_ids"] == first.tokenizer(PROMPT)["input_ids"]
        assert torch.equal(logits(lm), logits(first))


@torch.no_grad()
def logits(lm: LanguageModel) -> torch.Tensor:
    found: torch.Tensor = lm.model(input_ids=torch.tensor([TEXT])).logits
    return found


def test_a_saved_copy_says_what_older_versions_do_not_read(loaded: dict[str, Any]) -> None:
    """The README names the version that a saved checkpoint needs: this is why."""
    config = json.loads((loaded["copy"] / "config.json").read_text())
    scaling = CONFIGS[loaded["name"]].get("rope_scaling", {})
    assert config["rope_parameters"].items() >= {"rope_theta": CONFIGS[loaded["name"]]["rope_theta"], **scaling}.items()
    assert "rope_theta" not in config and "rope_scaling" not in config
    assert int(config["transformers_version"].split(".")[0]) >= 5
