"""Language models: supported families agree with themselves however they are run, others are refused with one line.

The cache holds what it was given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.cache_utils import Cache, DynamicCache

from softtok.config.manifests import CheckpointManifest, FolderReference, HubReference, ModelManifest
from softtok.config.settings import RuntimeSettings
from softtok.config.specs import FolderSource, ModelSpec
from softtok.errors import UserError
from softtok.models.attention import Groups, RowLayer, grouped_attention, layer_states
from softtok.models.decoding import Decoder
from softtok.models.language_model import LanguageModel, causal_mask, left_pad, logits_fp32, prefill, refuse_longer
from softtok.models.loading import load, probe
from softtok.models.references import resolve, weight_stamps
from softtok.models.toy_model import bpe_tokenizer
from softtok.storage.files import write_json
from softtok.storage.integrity import file_hashes, weights_sha256
from tests.support.tiny_models import FAMILIES, tiny_model

CPU = RuntimeSettings(device="cpu")
PROMPTS = [[3, 4, 5, 6, 7, 0, 2, 9, 11], [8, 9, 10], [1]]
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
SMALL_GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": None, "eos_token_id": None}


def family(name: str, **config: Any) -> LanguageModel:
    """A random tiny model of any family that transformers knows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**config))
        for key, parameter in made.named_parameters():
            if key.endswith("bias"):
                parameter.data.normal_(std=0.1)
    return LanguageModel(made.eval(), None, name)  # type: ignore[arg-type]


# The probe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_supported_families_pass(name: str, tied: bool, dtype: torch.dtype) -> None:
    lm = tiny_model(name, tied=tied, dtype=dtype)
    probe(lm)
    assert (lm.head_VD is lm.embedding_VD) == tied


@pytest.mark.parametrize(
    ("lm", "why"),
    [
        (lambda: family("GemmaConfig", **SMALL, head_dim=8), "embedding layer does more than look up rows"),
        (lambda: family("Gemma2Config", **SMALL, head_dim=8), "embedding layer does more than look up rows"),
        (lambda: family("CohereConfig", **SMALL), "logits are not head @ hidden"),
        (lambda: family("GraniteConfig", **SMALL, logits_scaling=4.0), "logits are not head @ hidden"),
        (lambda: family("PhiConfig", **SMALL), "output head has a bias"),
        (lambda: family("GPTJConfig", **SMALL_GPT, rotary_dim=8), "output head has a bias"),
        # An explicit mask silently overrides a sliding window, and the probe's eight tokens would not show a long one.
        (lambda: family("MistralConfig", **SMALL, sliding_window=4096), "sliding window of 4096 tokens"),
        (lambda: family("MambaConfig", vocab_size=64, hidden_size=32, num_hidden_layers=2), "cannot be run"),
        (lambda: family("Lfm2Config", **SMALL, layer_types=["conv", "full_attention"]), "cannot be run"),
    ],
    ids=["Gemma", "Gemma2", "Cohere", "Granite", "Phi", "GPT-J", "Mistral", "Mamba", "LFM2"],
)
def test_other_families_are_refused_with_one_line(lm: Any, why: str) -> None:
    made = lm()
    with pytest.raises(UserError) as refusal:
        probe(made)
    assert why in str(refusal.value)
    assert made.name in str(refusal.value)
    assert "\n" not in str(refusal.value)


class SoftCapped(torch.nn.Linear):
    """A head that bends its logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * torch.tanh(super().forward(x) / 2)


class Dropping(torch.nn.Embedding):
    """An embedding layer that forgets a token."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * (ids != 7)[..., None]


@dataclasses.dataclass(frozen=True)
class NoMask(LanguageModel):
    """Looks at padding."""

    def hidden(self, embeds_NTD: Any, mask_N1TS: Any, positions_NT: Any, cache: Any) -> torch.Tensor:
        length, total = mask_N1TS.shape[-2:]
        return super().hidden(embeds_NTD, torch.ones_like(mask_N1TS).tril(total - length), positions_NT, cache)


@dataclasses.dataclass(frozen=True)
class DefaultPositions(LanguageModel):
    """Counts positions from the first column, padding or not."""

    def hidden(self, embeds_NTD: Any, mask_N1TS: Any, positions_NT: Any, cache: Any) -> torch.Tensor:
        start = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(start, start + embeds_NTD.shape[1]).expand_as(positions_NT)
        return super().hidden(embeds_NTD, mask_N1TS, positions, cache)


@dataclasses.dataclass(frozen=True)
class LatePositions(LanguageModel):
    """Puts what follows a cached prompt one position too far."""

    def hidden(self, embeds_NTD: Any, mask_N1TS: Any, positions_NT: Any, cache: Any) -> torch.Tensor:
        late = cache is not None and cache.get_seq_length() > 0
        return super().hidden(embeds_NTD, mask_N1TS, positions_NT + late, cache)


def test_models_broken_on_purpose_are_refused() -> None:
    """Each of the probe's checks notices the mistake that it is there for, and its message says which."""
    capped = tiny_model(tied=False)
    capped.model.get_output_embeddings().__class__ = SoftCapped
    dropping = tiny_model()
    dropping.model.get_input_embeddings().__class__ = Dropping
    bodiless = LanguageModel(tiny_model().model.base_model, None, "a body alone")  # type: ignore[arg-type]
    # Rotary positions are relative, so that a common shift does nothing; learned positions are not.
    learned = family("GPT2Config", **SMALL_GPT)
    probe(learned)
    broken = {
        "logits are not head @ hidden": capped,
        "embedding layer does more": dropping,
        "no separate body and output head": bodiless,
        "left padding changes the logits": NoMask(**vars(tiny_model())),
        "left padding changes the logits ": DefaultPositions(**vars(learned)),
        "cached and uncached logits differ": LatePositions(**vars(tiny_model())),
    }
    for why, lm in broken.items():
        with pytest.raises(UserError, match=why.strip()):
            probe(lm)


# Padding, masks, cache


@pytest.mark.parametrize("name", FAMILIES)
def test_a_padded_batch_is_its_prompts_one_by_one(name: str) -> None:
    """Compares hidden states, keys and values with the model's own forward pass on each prompt without padding."""
    lm = tiny_model(name)
    with torch.no_grad():
        hidden, cache, mask, lengths = prefill(lm, PROMPTS)
        assert lengths.tolist() == [9, 3, 1]
        assert mask.sum(1).tolist() == [9, 3, 1] and mask[:, -1].all()
        for row, prompt in enumerate(PROMPTS):
            alone = lm.model.base_model(
                input_ids=torch.tensor([prompt]), past_key_values=DynamicCache(), use_cache=True
            )
            torch.testing.assert_close(hidden[row], alone.last_hidden_state[0, -1], rtol=0, atol=2e-5)
            for ours, theirs in zip(cache.layers, alone.past_key_values.layers, strict=True):
                for got, wanted in zip(layer_states(ours), layer_states(theirs), strict=True):
                    torch.testing.assert_close(got[row, :, mask[row]], wanted[0], rtol=0, atol=2e-5)
        assert torch.isfinite(torch.cat([keys for keys, _ in map(layer_states, cache.layers)])).all(), (
            "padding leaves no NaN"
        )


def test_left_padding_marks_and_counts() -> None:
    ids, mask, positions = left_pad([[5, 0, 7], [9]], torch.device("cpu"))
    assert ids[mask].tolist() == [5, 0, 7, 9]
    assert mask.tolist() == [[True] * 3, [False, False, True]], "a real token with id 0 is no padding"
    assert positions[mask].tolist() == [0, 1, 2, 0]
    look = causal_mask(mask)[:, 0]
    assert look[0].tolist() == torch.ones(3, 3).bool().tril().tolist()
    assert look[1, 2].tolist() == [False, False, True]
    assert look.any(-1).all(), "every query, padding too, sees something: no softmax over nothing"


@pytest.mark.parametrize("name", FAMILIES)
def test_decoding_from_the_row_cache_is_the_uncached_forward(name: str) -> None:
    """Drops a row before the last of three steps; the states equal those of one pass over the whole text."""
    lm, length = tiny_model(name), 12
    steps = torch.tensor([[4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15], [16, 17, 18], [19, 20, 21]])
    with torch.no_grad():
        _, prompt_cache, mask, lengths = prefill(lm, PROMPTS)
        groups = Groups(mask, 2)
        layers = [RowLayer(*layer_states(layer), groups, length) for layer in prompt_cache.layers]
        rows = torch.arange(6)
        for step in range(3):
            if step == 2:
                kept = torch.tensor([0, 3, 4, 5])
                rows = rows[kept]
                groups.keep(kept)
                for layer in layers:
                    layer.keep(kept)
            positions = (lengths.repeat_interleave(2)[rows] + step)[:, None]
            hidden = lm.hidden(lm.embed(steps[rows, step][:, None]), None, positions, Cache(layers=list(layers)))
            for i, row in enumerate(rows.tolist()):
                text = torch.tensor([PROMPTS[row // 2] + steps[row, : step + 1].tolist()])
                wanted = lm.model.base_model(input_ids=text).last_hidden_state[0, -1]
                torch.testing.assert_close(
                    hidden[i, 0], wanted, rtol=0, atol=2e-5, msg=partial("row {}: {}".format, row)
                )


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_grouped_attention_is_attention_over_copied_prompts(key_heads: int) -> None:
    """Compares with scaled_dot_product_attention on one whole sequence per row.

    Rows are dropped at random, also all rows of a prompt. The buffers are never moved.
    """
    generator = torch.Generator().manual_seed(0)

    def states(rows: int, heads: int, length: int) -> torch.Tensor:
        return torch.randn(rows, heads, length, 8, generator=generator)

    mask = torch.tensor([[True] * 5, [False] * 2 + [True] * 3, [False] * 4 + [True]])
    keys, values = states(3, key_heads, 5), states(3, key_heads, 5)
    groups = Groups(mask, 4)
    layer = RowLayer(keys, values, groups, length=12)
    keys, values, mask = (x.repeat_interleave(4, 0) for x in (keys, values, mask))
    assert layer.keys is not None
    place = layer.keys.data_ptr()
    assert (layer.get_seq_length(), layer.get_max_length()) == (5, 17)
    for drop in ([], [], [1, 5, 6], [], [0], [3, 4], [], [0, 1]):
        if drop:
            kept = torch.tensor([row for row in range(len(keys)) if row not in drop])
            keys, values, mask = keys[kept], values[kept], mask[kept]
            groups.keep(kept)
            layer.keep(kept)
        new_keys, new_values = states(len(keys), key_heads, 1), states(len(keys), key_heads, 1)
        query = states(len(keys), 4, 1)
        assert layer.get_mask_sizes(1) == (keys.shape[2] + 1, 0)
        got, _ = grouped_attention(torch.nn.Module(), query, *layer.update(new_keys, new_values), None, 8**-0.5)
        keys, values = torch.cat([keys, new_keys], 2), torch.cat([values, new_values], 2)
        seen = torch.cat([mask, torch.ones(len(keys), keys.shape[2] - 5, dtype=torch.bool)], 1)
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=seen[:, None, None], enable_gqa=True
        )
        torch.testing.assert_close(got, wanted.transpose(1, 2), rtol=1e-5, atol=1e-6)
        assert layer.keys.data_ptr() == place
    assert layer.get_seq_length() == 13
    assert len(keys) == 4


def test_prompts_are_held_once_in_the_working_precision() -> None:
    """Keys and values of 256 prompts are tens of GB of a GPU."""
    lm = tiny_model(dtype=torch.bfloat16)
    with torch.no_grad():
        _, cache, mask, _ = prefill(lm, PROMPTS)
        count = len(cache.layers)
        decoder = Decoder(lm, cache, mask, samples=2, length=4)
    assert len(decoder.layers) == count and not cache.layers
    for layer in decoder.layers:
        assert layer.prompt_keys.dtype == layer.prompt_values.dtype == torch.bfloat16


def test_logits_are_fp32_whatever_the_model() -> None:
    lm = tiny_model(dtype=torch.bfloat16, tied=False)
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = logits_fp32(hidden, lm.head_VD)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), hidden.double() @ lm.head_VD.double().T, rtol=0, atol=1e-4)


# Loading


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny model with its tokenizer."""
    return save(tmp_path / "model", "llama")


def save(folder: Path, family: str) -> Path:
    tokenizer = bpe_tokenizer(["a b c"], 270)
    tiny_model(family, vocabulary=len(tokenizer)).model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_loads_as_it_was_saved(folder: Path) -> None:
    lm = load(folder, CPU)
    assert lm.dtype == torch.float32 and not lm.model.training, "fp32 on a CPU, and no dropout"
    assert load(folder, CPU.model_copy(update={"precision": "bf16"})).dtype == torch.bfloat16
    assert torch.equal(lm.embedding_VD, tiny_model(vocabulary=len(lm.tokenizer)).embedding_VD)
    assert lm.tokenizer.decode(lm.tokenizer.encode("a b")) == "a b"


def without(folder: Path, *patterns: str) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: without(folder, "*"),
        lambda folder: without(folder, "*.safetensors"),
        lambda folder: without(folder, "tokenizer*"),
        lambda folder: without(folder, "config.json"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut short"),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "nobody-knows"})),
        lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "vit"})),
        lambda folder: (folder / "config.json").write_text(
            json.dumps({"model_type": "llama", "hidden_size": 6, "num_attention_heads": 4})
        ),
    ],
    ids=[
        "empty",
        "weights",
        "tokenizer",
        "config",
        "cut",
        "broken config",
        "unknown",
        "no language model",
        "impossible",
    ],
)
def test_what_is_no_model_is_refused_with_one_line(folder: Path, damage: Any) -> None:
    damage(folder)
    with pytest.raises(UserError) as refusal:
        load(folder, CPU)
    message = str(refusal.value)
    assert str(folder) in message and "\n" not in message
    assert len(message) < 350


def test_a_made_up_tokenizer_is_refused(tmp_path: Path) -> None:
    """Where a Qwen folder holds no vocabulary, transformers gives an empty tokenizer."""
    folder = save(tmp_path / "qwen", "qwen2")
    without(folder, "tokenizer*")
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"are its files there|cannot be loaded by transformers"):
        load(folder, CPU)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        load(tmp_path / "missing", CPU)


def test_what_is_longer_than_a_model_is_refused() -> None:
    """Learned positions end in the middle of a job: on a GPU with an assertion that ends the process."""
    lm = family("GPT2Config", **SMALL_GPT, n_positions=40)
    refuse_longer(lm, 40, "test set x")
    with pytest.raises(UserError, match=r"holds 40 positions, and the longest text of test set x needs 41"):
        refuse_longer(lm, 41, "test set x")


def model_manifest(reference: HubReference | FolderReference) -> dict[str, Any]:
    """Returns the model.json of a model that is not copied."""
    files = file_hashes(Path(reference.path)) if isinstance(reference, FolderReference) else {}
    spec = ModelSpec(source=FolderSource(path="theirs"), prompt="{question}", version=1)
    manifest = ModelManifest(
        spec=spec, reference=reference, sha256=weights_sha256(files), files=files, facts={}, provenance={}
    )
    return manifest.model_dump(mode="json")


def user_folder(path: Path) -> FolderReference:
    """Returns a reference to a user's own folder."""
    return FolderReference(path=str(path), weights=weight_stamps(path))


def test_a_folder_whose_weights_have_changed_is_refused(tmp_path: Path) -> None:
    """Else results of the old weights and of the new ones would stand in one row of a table."""
    weights = tmp_path / "mine/model.safetensors"
    weights.parent.mkdir()
    weights.write_text("weights")
    manifest = tmp_path / "made/model.json"
    manifest.parent.mkdir()
    write_json(manifest, model_manifest(user_folder(weights.parent)))
    os.utime(weights, (1, 1))
    assert resolve(manifest.parent) == (str(weights.parent), None), "the same weights at another time, as in a copy"
    weights.write_text("changed")  # as long as before
    with pytest.raises(UserError, match=r"mine: its weights have changed since first use"):
        resolve(manifest.parent)
    weights.write_text("weights")
    (weights.parent / "more.safetensors").write_text("")
    with pytest.raises(UserError, match="its weights have changed"):
        resolve(manifest.parent)


def test_references_lead_to_the_weights(tmp_path: Path) -> None:
    """run/checkpoint -> model folder -> hub id with its revision, or a user's folder, or the folder itself."""

    def write(name: str, value: dict[str, Any]) -> Path:
        write_json(tmp_path / name, value)
        return (tmp_path / name).parent

    def checkpoint(reference: FolderReference | None) -> dict[str, Any]:
        made = CheckpointManifest(
            reference=reference,
            sha256=weights_sha256({}),
            embedding_rms=None,
            state_rms={},
            prompt="{question}",
            seed=0,
        )
        return made.model_dump(mode="json")

    hub_reference = HubReference(hub="someone/model", revision="abc")
    hub = write("hub/model.json", model_manifest(hub_reference))
    assert resolve(hub) == ("someone/model", "abc")
    base = write("run/checkpoint/checkpoint.json", checkpoint(FolderReference(path=str(tmp_path / "toy"))))
    assert resolve(base) == (str(tmp_path / "toy"), None)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/model.safetensors").write_text("weights")
    (tmp_path / "theirs/model.json").write_text("a file of the user's with this name")
    theirs = write("of-theirs/model.json", model_manifest(user_folder(tmp_path / "theirs")))
    assert resolve(theirs) == (str(tmp_path / "theirs"), None)
    trained = write("trained/checkpoint/checkpoint.json", checkpoint(None))
    assert resolve(trained) == (str(trained), None)
    assert resolve(tmp_path) == (str(tmp_path), None)


def test_a_gpu_gets_no_plans_per_shape_and_no_sums_in_bf16(tiny_toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the process: they can be looked at without a GPU, on which the loading itself then fails."""
    monkeypatch.setattr("softtok.models.loading.choose_device", lambda runtime: torch.device("cuda"))
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.cudnn_sdp_enabled()
    sums_before = matmul.allow_bf16_reduced_precision_reduction
    assert before and sums_before, "PyTorch's defaults"
    try:
        with contextlib.suppress(UserError):
            load(tiny_toy, RuntimeSettings())
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not matmul.allow_bf16_reduced_precision_reduction
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
        matmul.allow_bf16_reduced_precision_reduction = sums_before
