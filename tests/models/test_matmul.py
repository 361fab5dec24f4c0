"""Products through oneDNN equal products in double precision, on every machine.

Each test runs by several routes: as this machine chooses; through PyTorch's oneDNN operator wherever PyTorch has it,
whatever the processor; through a stand-in for it, made of NumPy, so that all of the module runs on machines without
the operator; and without any operator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from softtok.method.vocabulary_products import Summed, project, times
from softtok.models import matmul
from softtok.models.matmul import Linear, adopt, linear, product
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # PyTorch's, when oneDNN is switched off and on

Taken = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""Shapes of the two factors of each product that an operator made."""


def stand_in(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    """The operator's product, computed by NumPy in double precision."""
    return torch.from_numpy(exact(x, weight).astype(np.float32))


def operator_of(route: str) -> Callable[..., torch.Tensor] | None:
    """What a route takes in the place of `matmul._onednn()`."""
    if route == "machine":
        return matmul._onednn()
    if route == "operator":
        return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return stand_in if route == "stand-in" else None


@pytest.fixture(params=["machine", "operator", "stand-in", "none"])
def taken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Taken | None:
    """Sends small products by a route too; lists those that its operator made, or is None on a route without one."""
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 1)
    operator = operator_of(request.param)
    if operator is None:
        if request.param == "operator":
            pytest.skip("this PyTorch has no such operator")
        monkeypatch.setattr(matmul, "_onednn", lambda: None)
        return None
    products: Taken = []

    def counted(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        products.append((tuple(x.shape), tuple(weight.shape)))
        return operator(x, weight, *rest)

    monkeypatch.setattr(matmul, "_onednn", lambda: counted)
    return products


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def exact(x: torch.Tensor, weight: torch.Tensor) -> NDArray[np.float64]:
    """x @ weight^T in double precision, by NumPy."""
    left, right = (factor.detach().numpy().astype(np.float64) for factor in (x, weight))
    return np.asarray(left @ right.T)


def close(got: torch.Tensor | None, wanted: NDArray[np.float64] | torch.Tensor) -> None:
    assert got is not None
    torch.testing.assert_close(got.detach().double(), torch.as_tensor(wanted).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 1, 5), (0, 5)])
def test_equals_the_product_in_double_precision(taken: Taken | None, shape: tuple[int, ...]) -> None:
    x, weight = random(*shape).requires_grad_(), random(6, 5).requires_grad_()
    upstream = random(*shape[:-1], 6)
    out = linear(x, weight)
    close(out, exact(x, weight))
    of_x, of_weight = torch.autograd.grad(out, (x, weight), upstream)
    close(of_x, exact(upstream, weight.mT))
    close(of_weight, exact(upstream.flatten(0, -2).mT, x.flatten(0, -2).mT))
    assert taken is None or len(taken) == (3 if x.numel() else 0)


def test_a_large_product_is_right_as_this_machine_makes_it() -> None:
    """Large enough for oneDNN where it is on."""
    x, weight = random(96, 256), random(192, 256)
    assert x.numel() * len(weight) > matmul.MIN_MULTIPLICATIONS
    torch.testing.assert_close(product(x, weight).double(), torch.from_numpy(exact(x, weight)), rtol=1e-5, atol=1e-4)


def test_strides_do_not_matter(taken: Taken | None) -> None:
    x, weight = random(9, 8), random(6, 8)
    pairs = [
        (x.mT.contiguous().mT, weight),
        (x, weight.mT.contiguous().mT),
        (x[::2], weight[:, ::2].repeat_interleave(2, 1)),
        (x[:, 1:5], weight[:, 2:6]),
    ]
    for left, right in pairs:
        close(product(left, right), exact(left, right))
    assert taken is None or len(taken) == len(pairs)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_factor_costs_nothing(taken: Taken | None, frozen: int) -> None:
    factors = [random(4, 5), random(6, 5)]
    free = factors[1 - frozen].requires_grad_()
    linear(factors[0], factors[1]).sum().backward()
    close(free.grad, factors[frozen].sum(0).expand_as(free))
    assert factors[frozen].grad is None
    assert taken is None or len(taken) == 2  # forwards, and backwards for the other factor


def test_only_large_fp32_products_on_a_cpu_take_the_operator(
    taken: Taken | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = random(4, 5), random(6, 5)
    made = taken if taken is not None else []
    step = int(taken is not None)
    product(x, weight)
    assert len(made) == step
    product(x.double(), weight.double())
    product(x.bfloat16(), weight.bfloat16())
    with torch.backends.mkldnn.flags(enabled=False):
        product(x, weight)
        node = linear(x, weight.requires_grad_()).grad_fn
        assert node is not None and node.name() != "_LinearBackward"
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 4 * 5 * 6 + 1)
    product(x, weight)
    assert len(made) == step
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 4 * 5 * 6)
    product(x, weight)
    assert len(made) == 2 * step


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
def test_a_model_equals_itself_in_double_precision(taken: Taken | None, family: str) -> None:
    model = tiny_model(family).model
    ids = torch.arange(6)[None]

    def run(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        return out.logits, {name: parameter.grad for name, parameter in model.named_parameters()}

    logits, gradients = run(copy.deepcopy(model).double())
    assert not taken
    got_logits, got_gradients = run(model)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert taken is None or len(taken) == 3 * len(layers)  # forwards, and backwards for states and weights
    torch.testing.assert_close(got_logits.double(), logits, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == got_gradients.keys()
    for name, gradient in gradients.items():
        got = got_gradients[name]
        assert gradient is not None and got is not None
        torch.testing.assert_close(got.double(), gradient, rtol=1e-4, atol=1e-4)


def test_adopting_changes_neither_weights_nor_outputs() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    before, x = dict(model.named_parameters()), random(5, 3)
    halves = copy.deepcopy(model).bfloat16()
    wanted, wanted_of_halves = model(x), halves(x.bfloat16())
    adopt(model)
    adopt(halves)
    assert torch.equal(model(x), wanted)
    assert torch.equal(halves(x.bfloat16()), wanted_of_halves)
    assert [type(layer) for layer in model] == [Linear, torch.nn.LayerNorm, Linear]
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_gradients_add_up_slice_by_slice(taken: Taken | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """V is not a multiple of the slice; the sum keeps what it held."""
    monkeypatch.setattr("softtok.method.vocabulary_products.SLICE", 4)
    matrix, held = random(11, 5), random(11, 5)
    hidden, p = random(3, 5).requires_grad_(), random(3, 11).requires_grad_()
    summed = Summed(matrix, held.clone())
    (project(hidden, summed).square().sum() + times(p, summed).square().sum()).backward()
    free, of_hidden, of_p = (tensor.detach().double().requires_grad_() for tensor in (matrix, hidden, p))
    ((of_hidden @ free.mT).square().sum() + (of_p @ free).square().sum()).backward()
    assert free.grad is not None and of_hidden.grad is not None and of_p.grad is not None
    assert hidden.grad is not None and p.grad is not None and summed.gradient_VD is not None
    torch.testing.assert_close(summed.gradient_VD.double(), held + free.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(hidden.grad.double(), of_hidden.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(p.grad.double(), of_p.grad, rtol=1e-5, atol=1e-4)
