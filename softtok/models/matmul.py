"""Matrix products in fp32 on a CPU, through oneDNN where MKL is slow.

PyTorch multiplies fp32 matrices on x86 with MKL, which does not use AVX-512 on AMD processors. PyTorch also contains
oneDNN, which does, and has an operator for it that its compiler emits. On an EPYC with AVX-512 it is 1.6 to 2.2 times
as fast (one thread; from 64 rows by 128 x 384 to 2,048 rows by 768 x 2,048). Everything else takes PyTorch's usual
path: GPUs, bf16, other processors, small products, PyTorch versions without the operator, and everything while
`torch.backends.mkldnn.enabled` is off.

Shapes: M rows, K summed over, N columns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

Operator = Callable[..., torch.Tensor]

MIN_MULTIPLICATIONS = 2**21  # for smaller products, oneDNN's ten microseconds a call cost more than it gains


def product(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """Returns x @ weight^T, shape (M, N), without a graph.

    x may have several dimensions in the place of M; weight may have any strides.
    """
    onednn = operator_for(x_MK, weight_NK)
    if onednn is None or x_MK.numel() * weight_NK.shape[0] < MIN_MULTIPLICATIONS:
        return F.linear(x_MK, weight_NK)
    return onednn(x_MK, weight_NK, None, "none", [], "")


def operator_for(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> Operator | None:
    """Returns oneDNN's operator, or None if products of such tensors take the usual path, however large they are."""
    if x_MK.dtype is weight_NK.dtype is torch.float32 and x_MK.is_cpu and weight_NK.is_cpu:
        return _onednn() if torch.backends.mkldnn.enabled else None
    return None


def linear(x_MK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """Returns x @ weight^T, shape (M, N), with gradients for both; x may have several dimensions in the place of M."""
    graph = torch.is_grad_enabled() and (x_MK.requires_grad or weight_NK.requires_grad)
    if not graph:
        return product(x_MK, weight_NK)
    if operator_for(x_MK, weight_NK) is None:
        return F.linear(x_MK, weight_NK)
    out: torch.Tensor = _Linear.apply(x_MK, weight_NK)  # type: ignore[no-untyped-call]
    return out


_constant_weights = False


@contextmanager
def constant_weights() -> Iterator[None]:
    """Spares the gradients of weights inside, where only those of activations are asked for.

    PyTorch's own layers see what is asked for; a Python function does not.
    """
    global _constant_weights
    _constant_weights = True
    try:
        yield
    finally:
        _constant_weights = False


class Linear(torch.nn.Linear):
    """PyTorch's linear layer, which multiplies by `linear` where that may take oneDNN."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if operator_for(input, self.weight) is None:
            return super().forward(input)  # adds the bias before it rounds to bf16
        out = linear(input, self.weight)
        return out if self.bias is None else out + self.bias


def adopt(model: torch.nn.Module) -> None:
    """Makes all plain linear layers of a model multiply by `linear`; parameters keep their names and values."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Linear


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return product(x_MK, weight_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_MN: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x_MK, weight_NK = ctx.saved_tensors
        of_x = product(upstream_MN, weight_NK.mT) if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1] and not _constant_weights:
            of_weight = product(upstream_MN.flatten(0, -2).mT, x_MK.flatten(0, -2).mT)
        return of_x, of_weight


@functools.cache
def _onednn() -> Operator | None:
    """Returns oneDNN's operator on processors where it is known to be faster, else None."""
    try:
        amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    if not amd or torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    default: Operator | None = getattr(operator, "default", None)
    return default
