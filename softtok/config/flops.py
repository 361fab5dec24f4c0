"""Counted arithmetic: the floating-point operations that a rollout and a training pass cannot do without.

A multiplication and an addition are two operations. Only matrix products are counted: those with the weights, and the
two of attention. Divided by the rate of such products they give the least time that the work can take.

Shapes: B prompts, G samples per prompt, N = B * G rows, P tokens of the longest prompt, T new tokens, D width, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The shape of a random Llama; its head is E, unless it is untied."""

    width: int
    layers: int
    heads: int
    key_heads: int
    mlp_width: int
    vocabulary: int
    tied: bool = True

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class Load:
    """How much is done with a model in one step."""

    prompt: int  # P
    new_tokens: int = 64  # T
    prompts: int = 2  # B
    samples: int = 32  # G
    common: int = 0  # tokens in front of every prompt, the same in all
    trl_batches: int = 1  # batches in which TRL's loss takes the rows: all their activations may be more than fits

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    @property
    def lengths(self) -> list[int]:
        """Prompt lengths: the longest, then a quarter less, then half, and round again."""
        return [self.prompt * (4 - b % 3) // 4 for b in range(self.prompts)]


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
