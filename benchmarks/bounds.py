"""The least times of rollouts and steps, and the most by which they can be ahead of a peer whose time was measured.

They follow from counted operations (`softtok/config/flops.py`) and the rate of products measured in the same run.
"""

from __future__ import annotations

from softtok.config.flops import (
    Load,
    Size,
    attention_flops,
    body_flops,
    decode_flops,
    head_flops,
    mixture_flops,
    pass_flops,
    prefill_flops,
)


def least_rollout_s(size: Size, load: Load, mode: str, decode_rate: float, large_rate: float) -> float:
    """Returns the least time of a rollout, in seconds.

    Decode steps take the rate (operations per second) of products of N rows, the prompts that of large products.
    """
    decode = decode_flops(size, load) + mixture_flops(size, load, mode)
    return decode / decode_rate + prefill_flops(size, load) / large_rate


def least_step_s(size: Size, load: Load, mode: str, decode_rate: float, large_rate: float) -> float:
    """The least time of a whole step, in seconds."""
    rollout_s = least_rollout_s(size, load, mode, decode_rate, large_rate)
    return rollout_s + pass_flops(size, load, mode) / large_rate


def generate_flops(size: Size, load: Load) -> int:
    """What generate() does: each prompt once for every row, then T - 1 decode steps, with T logits of N rows."""
    rows, steps = load.rows, load.new_tokens - 1
    pairs = load.prompt * load.prompt + steps * load.prompt + steps * (steps + 1) // 2
    body = rows * (load.prompt + steps) * body_flops(size) + attention_flops(size, rows * pairs)
    return body + rows * load.new_tokens * head_flops(size)


def trl_flops(size: Size, load: Load) -> int:
    """What a step of TRL does: generate(), and two passes over every row with its prompt, one of them with gradients.

    Both take the logits of all positions, and the second takes them twice.
    """
    width = load.prompt + load.new_tokens
    body = load.rows * width * body_flops(size) + attention_flops(size, load.rows * width * width)
    return generate_flops(size, load) + 4 * body + 5 * load.rows * (width - 1) * head_flops(size)


def rollout_advantage(size: Size, load: Load) -> float:
    """Returns what a hard rollout is ahead of generate() if all operations take the same time."""
    return generate_flops(size, load) / (prefill_flops(size, load) + decode_flops(size, load))


def step_advantage(size: Size, load: Load, mode: str) -> float:
    """Returns what a step in this mode is ahead of TRL's if all operations take the same time."""
    rollout = prefill_flops(size, load) + decode_flops(size, load) + mixture_flops(size, load, mode)
    return trl_flops(size, load) / (rollout + pass_flops(size, load, mode))


def decode_product_flops(size: Size, load: Load) -> int:
    """Those of `Ours.decode_products`: T steps, the weights alone."""
    return load.rows * load.new_tokens * (body_flops(size) + head_flops(size))


def large_product_flops(size: Size, rows: int) -> int:
    """Those of `Ours.large_products`."""
    return rows * body_flops(size)
