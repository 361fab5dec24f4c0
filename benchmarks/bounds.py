"""Counted arithmetic: the floating-point operations that a rollout and a training pass cannot do without.

A multiplication and an addition are two operations. Only matrix products are counted: those with the weights, and the
two of attention. Divided by the rate of matrix products that was measured in the same run, they give the least time
that the work can take, and so the most by which it can be ahead of a peer whose time was measured.

Shapes: B prompts, G samples per prompt, N = B * G rows, P tokens of the longest prompt, T new tokens, D width, V
vocabulary.
"""

from __future__ import annotations

from benchmarks.work import Load, Size


def body_flops(size: Size) -> int:
    """Products of one position with the weights of all layers."""
    keys = size.key_heads * size.head_width
    attention = 2 * size.width * size.width + 2 * size.width * keys
    return 2 * size.layers * (attention + 3 * size.width * size.mlp_width)


def head_flops(size: Size) -> int:
    """One product of a position with a matrix of V x D: its logits, or its mixture of embeddings."""
    return 2 * size.vocabulary * size.width


def attention_flops(size: Size, pairs: int) -> int:
    """Scores and weighted values of `pairs` (query, key) pairs, in all layers and heads."""
    return 4 * size.layers * size.width * pairs


def prefill_flops(size: Size, load: Load) -> int:
    """One pass over the prompts, each once, padded to the longest; masked pairs cost what others do."""
    positions = load.prompts * load.prompt
    return positions * body_flops(size) + attention_flops(size, positions * load.prompt)


def decode_flops(size: Size, load: Load) -> int:
    """T decode steps of N rows: the body, the logits, attention to the prompt and to the row's own positions."""
    steps = load.new_tokens
    pairs = load.rows * (steps * load.prompt + steps * (steps + 1) // 2)
    return load.rows * steps * (body_flops(size) + head_flops(size)) + attention_flops(size, pairs)


def mixture_flops(size: Size, load: Load, mode: str) -> int:
    """What the mixtures of a rollout add: soft needs p E, fuzzy looks a row up."""
    return load.rows * (load.new_tokens - 1) * head_flops(size) if mode == "soft" else 0


def pass_flops(size: Size, load: Load, mode: str) -> int:
    """The teacher-forced pass, forwards and backwards (twice as much), the prompts once and not G times.

    The vocabulary-sized products of a fuzzy CoT have no backward: where its mixture is a row of E, that row alone has a
    gradient.
    """
    fed = load.rows * load.new_tokens
    pairs = fed * (load.prompt + load.new_tokens)
    body = prefill_flops(size, load) + fed * body_flops(size) + attention_flops(size, pairs)
    thinking, answering = load.rows * (load.new_tokens - 1), load.rows
    products = {"hard": 3, "soft": 6, "fuzzy": 1}[mode]
    return 3 * body + (products * thinking + 3 * answering) * head_flops(size)


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
