"""Measures in half a minute, with random weights, how fast this machine does what takes time: nothing is downloaded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from softtok.config.flops import Size, body_flops, head_flops
from softtok.config.rates import DEVICES, Rates
from softtok.models.decoding import Decoder
from softtok.models.devices import auto_precision, device_name
from softtok.models.language_model import LanguageModel, prefill
from softtok.models.matmul import product
from softtok.storage.machine import free_bytes

LAYERS = 2  # of the body that is probed; the others take as long
STEPS, ROWS, PROMPT = 20, 64, 64
SMALL = Size(64, 8, 2, 2, 64, 64)  # whose layers compute next to nothing
BUSY = 0.7  # of the time of a decode step; sampling, and rows that have finished, take the rest
LARGE_ROWS = 1024
COPIED, WRITTEN, SPARE = 2**28, 2 * 10**9, 2 * 10**9  # bytes
CHUNK = 2**24
CALLS, PATIENCE_S = 5, 3.0


@torch.no_grad()
def measure(size: Size, device: torch.device, folder: Path) -> tuple[Rates, list[str]]:
    """Returns the rates of a device with the layers of a model of this shape, and a line for each probe.

    On a CPU they are those of one thread, which PyTorch keeps.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
    dtype = torch.float32 if auto_precision(device) == "fp32" else torch.bfloat16
    lm = random_model(replace(size, layers=LAYERS), device, dtype)
    layer_s = decode_s(random_model(SMALL, device, dtype), 1) / SMALL.layers
    step_s, one_s = decode_s(lm, ROWS), decode_s(lm, 1)
    head_s = least_s(lambda: product(_random(ROWS, lm.head_VD), lm.head_VD), device)
    pass_s = least_s(lambda: _layer_products(lm, LARGE_ROWS), device)
    copied = _copy_rate(device)
    written = write_rate(folder)
    body = body_flops(replace(size, layers=LAYERS))
    busy_s = max(step_s - LAYERS * layer_s, 0.1 * step_s) + head_s
    read = sum(weight.numel() * weight.element_size() for weight in _weights(lm))
    rates = Rates(
        device=device_name(str(device)),
        gpu=device.type != "cpu",
        large=LARGE_ROWS * body / pass_s,
        decode=BUSY * ROWS * (body + head_flops(size)) / busy_s,
        memory=read / max(one_s - LAYERS * layer_s, 0.1 * one_s),
        layer_s=layer_s,
        written=written or DEVICES["cpu"].written,
        start_s=DEVICES["H100" if device.type != "cpu" else "cpu"].start_s,
        spread=DEVICES["H100" if device.type != "cpu" else "cpu"].spread,
        measured=True,
    )
    return rates, [
        f"{STEPS} decode steps of {ROWS} rows, {LAYERS} of {size.layers} layers: {STEPS * step_s * 1e3:.0f} ms"
        f" ({rates.decode / 1e12:.3g} TFLOP/s, {layer_s * 1e3:.2g} ms a layer at least)",
        f"product of {ROWS} rows with {size.vocabulary} x {size.width}: {head_s * 1e3:.3g} ms",
        f"products of {LARGE_ROWS} rows: {rates.large / 1e12:.3g} TFLOP/s",
        f"copy to the host: {copied / 1e9:.3g} GB/s",
        f"write of {WRITTEN // 10**9} GB: {written / 1e9:.2g} GB/s" if written else "write of 2 GB: left out, no room",
    ]


def random_model(size: Size, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Returns a Llama of this shape with random weights, and without a tokenizer."""
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        intermediate_size=size.mlp_width,
        tie_word_embeddings=True,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: Any = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    tokenizer: Any = None
    return LanguageModel(model.eval(), tokenizer, "random weights")


def decode_s(lm: LanguageModel, rows: int) -> float:
    """Returns the seconds of a decode step of so many rows, without the head."""
    prompt = prefill(lm, [[1] * PROMPT])
    decoder = Decoder(lm, prompt.cache, prompt.mask_BP, rows, CALLS * STEPS)
    x_ND = lm.embed(torch.ones(rows, dtype=torch.long, device=lm.device))
    places = iter(range(PROMPT, PROMPT + CALLS * STEPS))

    def steps() -> None:
        for _ in range(STEPS):
            decoder.step(x_ND, torch.full((rows,), next(places), device=lm.device))

    return least_s(steps, lm.device) / STEPS


def least_s(once: Callable[[], object], device: torch.device) -> float:
    """Returns the least seconds of some calls: the first one also prepares, and others may be disturbed.

    On a CPU they are those that the call computed, so that other programs on the machine do not count.
    """
    clock, taken = time.perf_counter if device.type != "cpu" else time.process_time, list[float]()
    while len(taken) < 2 or (len(taken) < CALLS and sum(taken) < PATIENCE_S):
        start = clock()
        once()
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        taken.append(clock() - start)
    return min(taken)


def _random(rows: int, weight: torch.Tensor) -> torch.Tensor:
    return torch.ones(rows, weight.shape[1], device=weight.device, dtype=weight.dtype)


def _weights(lm: LanguageModel) -> list[torch.Tensor]:
    """Returns the matrices of the layers."""
    head = lm.model.get_output_embeddings()
    return [one.weight for one in lm.model.modules() if isinstance(one, torch.nn.Linear) and one is not head]


def _layer_products(lm: LanguageModel, rows: int) -> None:
    """Multiplies with all weights of the layers."""
    for weight in _weights(lm):
        product(_random(rows, weight), weight)


def _copy_rate(device: torch.device) -> float:
    """Returns the bytes a second at which tensors reach the host's memory."""
    tensor = torch.ones(COPIED // 4, device=device)
    return COPIED / least_s(lambda: tensor.to("cpu", copy=True), device)


def write_rate(folder: Path) -> float | None:
    """Returns the bytes a second at which files reach the disk of a folder; None if it has too little room."""
    if free_bytes(folder) < WRITTEN + SPARE:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path, chunk = folder / f".doctor-{os.getpid()}", os.urandom(CHUNK)
    start = time.perf_counter()
    try:
        with open(path, "wb") as file:
            for _ in range(WRITTEN // CHUNK):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        return WRITTEN / (time.perf_counter() - start)
    finally:
        path.unlink(missing_ok=True)
