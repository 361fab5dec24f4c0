"""Loads a Hugging Face folder and checks what the method assumes of its family."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as hf_logging

from softtok.config.settings import DeviceSettings
from softtok.errors import UserError
from softtok.models.decoding import Decoder
from softtok.models.devices import auto_precision, choose_device
from softtok.models.folder_checks import refuse_folder, refuse_values, refuse_weights
from softtok.models.language_model import LanguageModel, causal_mask, left_pad, logits_fp32, prefill
from softtok.models.references import located
from softtok.models.tokenizer_checks import refuse_tokenizer
from softtok.problems.prompt import eos_ids


def load(folder: Path, settings: DeviceSettings) -> LanguageModel:
    """Loads tokenizer and weights in the working precision, without dropout, and probes the family.

    Raises UserError if the folder holds no whole causal language model with its own tokenizer, or the family is not
    supported.
    """
    device = choose_device(settings)
    if settings.cuda_graphs and device.type != "cuda":
        raise UserError(f"runtime.cuda_graphs: asked for, but the device is {device}; set it to false or use a GPU")
    precision = settings.precision if settings.precision != "auto" else auto_precision(device)
    if device.type == "cuda":
        _prepare_gpu()
    lm = _read(folder, device, torch.float32 if precision == "fp32" else torch.bfloat16, settings.cuda_graphs)
    refuse_values(lm.name, lm.model)
    probe(lm)
    return lm


def outline(folder: Path) -> LanguageModel:
    """Returns a model without the values of its weights, which takes no memory and no time.

    Raises UserError as `load` does for all that tokenizer, settings, and the names, types and shapes of the weights
    tell. What the values tell is left to the first job that loads them.
    """
    lm = _read(folder, torch.device("meta"), torch.bfloat16)
    with _refusing(lm):
        _refuse_structure(lm)
    return lm


def _read(folder: Path, device: torch.device, dtype: torch.dtype, cuda_graphs: bool = False) -> LanguageModel:
    """Returns tokenizer and weights of a folder, without dropout."""
    name, files = located(folder)
    refuse_folder(name, files)
    try:
        # Its report on missing weights runs over many lines; `refuse_weights` says it in one.
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(files, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(  # its type knows no loading information
                files,
                dtype=dtype,
                attn_implementation="sdpa",
                device_map={"": device},
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # many libraries raise their own types here; in all cases the folder is at fault
        why = " ".join(str(error).split())[:200]
        raise UserError(f"model {name}: cannot be loaded by transformers ({why or type(error).__name__})") from error
    model, seen = loaded
    refuse_weights(name, model, seen)
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    if embedding is not None:  # else `probe` refuses the family
        refuse_tokenizer(name, tokenizer, model.generation_config, len(embedding))
    return LanguageModel(model.eval(), tokenizer, name, cuda_graphs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Temporarily silences transformers' warnings."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


def _prepare_gpu() -> None:
    """Turns off defaults of PyTorch that do not suit this work."""
    # cuDNN's attention, PyTorch's first choice on newer GPUs, makes a plan for every shape and keeps all plans. Hardly
    # any two CoTs have the same shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Rollout and training multiply different numbers of rows; sums rounded to bf16 in parts would differ more.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def refuse_unfaithful_copy(lm: LanguageModel, folder: Path, texts: list[str]) -> None:
    """Raises UserError if tokenizer and settings are others once they are saved in `folder` and read again.

    A training saves them beside the weights, and would fail or go wrong at its end.
    """
    generation = lm.model.generation_config
    try:
        with _quiet():
            lm.model.config.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)
            if generation is not None:
                generation.save_pretrained(folder)
                generation = GenerationConfig.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as when loading
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {lm.name}: its settings and tokenizer cannot be saved and read again"
            f" ({type(error).__name__}: {why})"
        ) from error
    ends, ends_again = eos_ids(lm.model.generation_config, lm.tokenizer), eos_ids(generation, tokenizer)
    if ends != ends_again:
        raise UserError(f"model {lm.name}: its EOS ids are {sorted(ends)}, and {sorted(ends_again)} once saved")
    if tokenizer(texts)["input_ids"] != lm.tokenizer(texts)["input_ids"]:
        raise UserError(f"model {lm.name}: its tokenizer gives other tokens once it is saved and read again")


@torch.no_grad()
def probe(lm: LanguageModel) -> None:
    """Checks on a few tokens what the method assumes; raises UserError that names the first thing that does not hold.

    1. The embedding layer returns rows of E (some families scale them), so that p E is in the space the body reads.
    2. Logits are head @ hidden (some families scale or cap them).
    3. Cached, uncached and left-padded passes agree, so that rollout and training see the same states.
    """
    with _refusing(lm):
        _refuse_structure(lm)
        _probe(lm)


@contextlib.contextmanager
def _refusing(lm: LanguageModel) -> Iterator[None]:
    """Turns whatever goes wrong in a block into a UserError about the model's family."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # families without keys and values to share fail in many ways
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {lm.name}: cannot be run on embeddings, masks and a cache of keys and values"
            f" ({type(error).__name__}: {why}); this family is not supported"
        ) from error


def _refuse_structure(lm: LanguageModel) -> None:
    """Raises UserError for a family that is not supported, as far as it shows without a pass through the body."""
    if lm.model.get_output_embeddings() is None or lm.model.base_model is lm.model:
        raise UserError(f"model {lm.name}: has no separate body and output head; softtok needs a causal language model")
    ids = torch.arange(8, device=lm.device) * 7 % lm.embedding_VD.shape[0]
    if lm.device.type != "meta" and not torch.equal(lm.model.get_input_embeddings()(ids), lm.embed(ids)):
        raise UserError(
            f"model {lm.name}: its embedding layer does more than look up rows of E; this family is not supported"
        )
    if getattr(lm.model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(f"model {lm.name}: its output head has a bias; this family is not supported")
    window = getattr(lm.model.config.get_text_config(), "sliding_window", None)
    if window is not None:
        raise UserError(
            f"model {lm.name}: attends to a sliding window of {window} tokens; this family is not supported"
        )


def _probe(lm: LanguageModel) -> None:
    # A real mistake is as large as the logits' spread; rounding in bf16 is a few percent of it. Differences are root
    # mean squares, because the largest of a million differences depends mostly on how many there are.
    tolerance = 1e-3 if lm.dtype == torch.float32 else 0.1
    vocabulary = lm.embedding_VD.shape[0]
    ids = torch.arange(8, device=lm.device) * 7 % vocabulary

    def check(got: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
        gap = ((got - wanted).square().mean().sqrt() / wanted.std().clamp(min=1e-6)).item()
        if not gap < tolerance:
            raise UserError(f"model {lm.name}: {what} (relative difference {gap:.1e}); this family is not supported")

    def run(prompts: list[list[int]]) -> torch.Tensor:
        prompt_ids, mask, positions = left_pad(prompts, lm.device)
        return lm.hidden(lm.embed(prompt_ids), causal_mask(mask), positions, None)

    whole = run([ids.tolist()])
    logits = logits_fp32(whole[0], lm.head_VD)
    check(logits, lm.model(input_ids=ids[None]).logits[0].float(), "logits are not head @ hidden")
    check(
        logits_fp32(run([ids.tolist(), ids[:5].tolist()])[1, -5:], lm.head_VD),
        logits[:5],
        "left padding changes the logits",
    )
    first, prompt_cache, mask, _ = prefill(lm, [ids[:5].tolist()])
    decoder = Decoder(lm, prompt_cache, mask, samples=1, length=3)
    states = [first]
    for place in range(5, 8):
        states.append(decoder.step(lm.embed(ids[place : place + 1]), torch.tensor([place], device=lm.device)))
    check(logits_fp32(torch.cat(states), lm.head_VD), logits[4:], "cached and uncached logits differ")
