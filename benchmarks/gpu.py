"""Times decode steps and whole steps on a GPU.

A decode step, eager and as a CUDA graph, is set against the least time that its memory allows, and a whole soft step
against a hard one.

python -m benchmarks.gpu                          a random Llama of the shape of Llama 3.2 3B, bf16
python -m benchmarks.gpu --device cpu --size S --new-tokens 16      to see that it works
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.work import SIZES, Ours
from softtok.config.flops import Load

REPEATS = 5


def median_s(work: Ours, once: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of `once` after a warm-up, in seconds."""
    once()
    times = []
    for _ in range(repeats):
        started = work.clocks()
        once()
        times.append(float((work.clocks() - started)[0]))
    return statistics.median(times)


def bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy on the device reads and writes."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        for _ in range(10):
            target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    copy()
    started = time.perf_counter()
    copy()
    return 20 * len(source) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description="Decode steps and whole steps on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="3B")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[128, 512])
    options = parser.parse_args()
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: PyTorch sees no GPU here; to try the command without one: --device cpu --size S")
    name = torch.cuda.get_device_name(options.device) if options.device != "cpu" else "cpu"
    print(f"{name}, {dtype}, size {options.size}, P={options.prompt}, B=2, G=32, torch {torch.__version__}\n")
    print(
        "| T | mode | steps are | decode step | floor: bytes / bandwidth | rollout | whole step | over hard | memory |"
    )
    print("|---:|---|---|---:|---:|---:|---:|---:|---:|")
    for new_tokens in options.new_tokens:
        work = Ours(
            SIZES[options.size], Load(options.prompt, new_tokens), dtype, options.device, micro_batch_tokens=4096
        )  # as config.yaml has it for such a model
        device = work.lm.device
        weights = sum(p.numel() * p.element_size() for p in work.lm.model.parameters())
        floor = weights / bandwidth(device)
        prefill = median_s(work, work.prefill)
        for replayed in (False, True) if device.type == "cuda" else (False,):
            work.lm, hard = dataclasses.replace(work.lm, cuda_graphs=replayed), 0.0
            for mode in ("hard", "soft", "fuzzy"):
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                rolled = median_s(work, partial(work.rollout, mode))
                whole = median_s(work, partial(work.step, mode))
                hard = hard or whole
                peak = f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else "—"
                print(
                    f"| {new_tokens} | {mode} | {'graphs' if replayed else 'eager'}"
                    f" | {1e3 * (rolled - prefill) / new_tokens:.2f} ms | {1e3 * floor:.2f} ms"
                    f" | {rolled:.2f} s | {whole:.2f} s | {whole / hard:.2f} | {peak} |",
                    flush=True,
                )
        del work


if __name__ == "__main__":
    main()
