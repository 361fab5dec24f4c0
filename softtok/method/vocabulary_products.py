"""Products with a vocabulary-sized matrix, E or the output head, whose gradient is added up in place.

Autograd makes a new V x D matrix for the gradient of every product and then adds it to the sum so far. With a tile of
tokens at a time that is done over and over, at up to a tenth of the pass's time and, twice, the memory of E (vocabulary
of 128,256, width 512). Here the product that makes the gradient adds to the sum itself.

Shapes: M tokens, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from softtok.models.matmul import linear, operator_for, product

SLICE = 8192  # vocabulary entries whose gradient exists at a time, where it cannot be added by the product itself


class Summed:
    """A matrix (V, D) and the sum of its gradients. Matrices that are one (a tied head and E) share the sum."""

    def __init__(self, matrix_VD: torch.Tensor, gradient_VD: torch.Tensor | None):
        """Gradients are added to `gradient_VD`; None: the matrix is a constant."""
        self.matrix_VD, self.gradient_VD = matrix_VD.detach(), gradient_VD
        # What autograd sees: a leaf, for products of constants with it (rows looked up) to have a backward.
        self.leaf = self.matrix_VD.detach().requires_grad_(gradient_VD is not None)


class SlopeOnly(Summed):
    """A constant matrix whose products p @ matrix have their gradient by p, and zeros for a value.

    Where only the gradient is asked for, this spares one of two products.
    """

    def __init__(self, matrix_VD: torch.Tensor):
        super().__init__(matrix_VD, None)


def times(p_MV: torch.Tensor, matrix_VD: torch.Tensor | Summed) -> torch.Tensor:
    """p @ matrix, shape (M, D)."""
    if isinstance(matrix_VD, SlopeOnly):
        return _applied(_SlopeOfTimes, p_MV, matrix_VD.matrix_VD)
    if isinstance(matrix_VD, Summed):
        return _applied(_Times, p_MV, matrix_VD.leaf, matrix_VD.gradient_VD)
    return linear(p_MV, matrix_VD.mT)


def project(hidden_MD: torch.Tensor, matrix_VD: torch.Tensor | Summed) -> torch.Tensor:
    """hidden @ matrix^T, shape (M, V)."""
    if isinstance(matrix_VD, Summed):
        return _applied(_Project, hidden_MD, matrix_VD.leaf, matrix_VD.gradient_VD)
    return linear(hidden_MD, matrix_VD)


def look_up(ids_M: torch.Tensor, matrix_VD: torch.Tensor | Summed) -> torch.Tensor:
    """Rows of the matrix, shape (M, D)."""
    if isinstance(matrix_VD, Summed):
        return _applied(_LookUp, ids_M, matrix_VD.leaf, matrix_VD.gradient_VD)
    return F.embedding(ids_M, matrix_VD)


@dataclass(frozen=True)
class Vocabulary:
    """The output head and E where the vocabulary appears: fp32 matrices, or sums of their gradients with them."""

    head_VD: torch.Tensor | Summed
    embedding_VD: torch.Tensor | Summed
    dtype: torch.dtype = torch.float32  # of the model: what is fed is rounded to it

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Returns head @ hidden in fp32, shape (M, V)."""
        return project(hidden_MD.float(), self.head_VD)

    def frozen(self) -> Vocabulary:
        """Returns the same matrices as constants."""
        head, embedding = (m.matrix_VD if isinstance(m, Summed) else m for m in (self.head_VD, self.embedding_VD))
        return Vocabulary(head, embedding, self.dtype)

    def slope_only(self) -> Vocabulary:
        """Returns the same matrices as constants; mixtures of E have a gradient and no value (`SlopeOnly`)."""
        return replace(self.frozen(), embedding_VD=SlopeOnly(self.embedding))

    @property
    def embedding(self) -> torch.Tensor:
        """E as a plain matrix, for steps without a gradient."""
        return self.embedding_VD.matrix_VD if isinstance(self.embedding_VD, Summed) else self.embedding_VD


def _applied(function: type[torch.autograd.Function], *arguments: torch.Tensor | None) -> torch.Tensor:
    made: torch.Tensor = function.apply(*arguments)
    return made


def _add_product(sum_VD: torch.Tensor, a_MV: torch.Tensor, b_MD: torch.Tensor) -> None:
    """sum += a^T @ b, without a second matrix of the sum's size."""
    if operator_for(a_MV, b_MD) is None:
        sum_VD.addmm_(a_MV.mT, b_MD)
        return
    for start in range(0, len(sum_VD), SLICE):
        sum_VD[start : start + SLICE] += product(a_MV[:, start : start + SLICE].mT, b_MD.mT)


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p_MV: torch.Tensor, matrix_VD: torch.Tensor, gradient_VD: torch.Tensor | None) -> Any:
        ctx.save_for_backward(p_MV, matrix_VD)
        ctx.gradient_VD = gradient_VD
        return product(p_MV, matrix_VD.mT)

    @staticmethod
    def backward(ctx: Any, upstream_MD: torch.Tensor) -> Any:
        p_MV, matrix_VD = ctx.saved_tensors
        if ctx.gradient_VD is not None:
            _add_product(ctx.gradient_VD, p_MV, upstream_MD)
        return product(upstream_MD, matrix_VD) if ctx.needs_input_grad[0] else None, None, None


class _SlopeOfTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p_MV: torch.Tensor, matrix_VD: torch.Tensor) -> Any:
        ctx.save_for_backward(matrix_VD)
        return p_MV.new_zeros(len(p_MV), matrix_VD.shape[1])

    @staticmethod
    def backward(ctx: Any, upstream_MD: torch.Tensor) -> Any:
        return product(upstream_MD, ctx.saved_tensors[0]), None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: torch.Tensor, matrix_VD: torch.Tensor, gradient_VD: torch.Tensor | None) -> Any:
        ctx.save_for_backward(hidden_MD, matrix_VD)
        ctx.gradient_VD = gradient_VD
        return product(hidden_MD, matrix_VD)

    @staticmethod
    def backward(ctx: Any, upstream_MV: torch.Tensor) -> Any:
        hidden_MD, matrix_VD = ctx.saved_tensors
        if ctx.gradient_VD is not None:
            _add_product(ctx.gradient_VD, upstream_MV, hidden_MD)
        return product(upstream_MV, matrix_VD.mT) if ctx.needs_input_grad[0] else None, None, None


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids_M: torch.Tensor, matrix_VD: torch.Tensor, gradient_VD: torch.Tensor | None) -> Any:
        ctx.save_for_backward(ids_M)
        ctx.gradient_VD = gradient_VD
        return F.embedding(ids_M, matrix_VD)

    @staticmethod
    def backward(ctx: Any, upstream_MD: torch.Tensor) -> Any:
        if ctx.gradient_VD is not None:
            ctx.gradient_VD.index_add_(0, ctx.saved_tensors[0], upstream_MD)
        return None, None, None
