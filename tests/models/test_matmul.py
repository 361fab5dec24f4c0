"""Products through oneDNN: the same as torch's, wherever they are taken; skipped where oneDNN is not taken at all."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from softtok.method.vocabulary_products import Summed, project, times
from softtok.models import matmul
from softtok.models.matmul import Linear, adopt, linear, product
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's, on switching oneDNN off and on
needs_onednn = pytest.mark.skipif(
    matmul._onednn() is None, reason="oneDNN is taken on AMD processors with AVX-512 alone; this is none"
)


@pytest.fixture
def always(monkeypatch):
    """Small products go through oneDNN too; returns the list of those that went."""
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 1)
    taken, operator = [], matmul._onednn()

    def counted(x, weight, *rest):
        taken.append((tuple(x.shape), tuple(weight.shape)))
        return operator(x, weight, *rest)

    monkeypatch.setattr(matmul, "_onednn", lambda: None if operator is None else counted)
    return taken


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 1, 5), (0, 5)])
def test_equals_torch_forwards_and_backwards(always, shape):
    x, weight = random(*shape).requires_grad_(), random(6, 5).requires_grad_()
    upstream = random(*shape[:-1], 6)
    wanted = torch.autograd.grad(F.linear(x, weight), (x, weight), upstream)
    out = linear(x, weight)
    close(out, F.linear(x, weight))
    for got, of_torch in zip(torch.autograd.grad(out, (x, weight), upstream), wanted, strict=True):
        close(got, of_torch)


@needs_onednn
def test_strides_do_not_matter(always):
    x, weight = random(9, 8), random(6, 8)
    close(product(x.mT.contiguous().mT, weight), x @ weight.mT)
    close(product(x, weight.mT.contiguous().mT), x @ weight.mT)
    close(product(x[::2], weight[:, ::2].repeat_interleave(2, 1)), x[::2] @ weight[:, ::2].repeat_interleave(2, 1).mT)
    close(product(x[:, 1:5], weight[:, 2:6]), x[:, 1:5] @ weight[:, 2:6].mT)
    assert len(always) == 4


@needs_onednn
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_factor_costs_nothing(always, frozen):
    factors = [random(4, 5), random(6, 5)]
    free = factors[1 - frozen].requires_grad_()
    linear(*factors).sum().backward()
    close(free.grad, factors[frozen].sum(0).expand_as(free))
    assert factors[frozen].grad is None
    assert len(always) == 2  # forwards, and backwards for the other


@needs_onednn
def test_only_big_fp32_products_on_a_cpu_go_through_onednn(always, monkeypatch):
    x, weight = random(4, 5), random(6, 5)
    product(x, weight)
    assert len(always) == 1
    product(x.double(), weight.double())
    product(x.bfloat16(), weight.bfloat16())
    with torch.backends.mkldnn.flags(enabled=False):
        product(x, weight)
        assert linear(x, weight.requires_grad_()).grad_fn.name() != "_LinearBackward"
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 4 * 5 * 6 + 1)
    product(x, weight)
    assert len(always) == 1
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 4 * 5 * 6)
    product(x, weight)
    assert len(always) == 2


@needs_onednn
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
def test_a_model_is_the_same_model(always, family):
    model = tiny_model(family).model
    ids = torch.arange(6)[None]

    def run():
        model.zero_grad()
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        return out.logits, {name: parameter.grad for name, parameter in model.named_parameters()}

    with torch.backends.mkldnn.flags(enabled=False):
        logits, gradients = run()
    assert not always
    got_logits, got_gradients = run()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(always) == 3 * len(layers)  # forwards, and backwards for states and weights
    close(got_logits, logits)
    assert gradients.keys() == got_gradients.keys()
    for name, gradient in gradients.items():
        close(got_gradients[name], gradient)


def test_adopting_changes_neither_weights_nor_outputs():
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


@needs_onednn
def test_gradients_add_up_slice_by_slice(always, monkeypatch):
    """V is no multiple of the slice; the sum keeps what it held."""
    monkeypatch.setattr("softtok.method.vocabulary_products.SLICE", 4)
    matrix, held = random(11, 5), random(11, 5)
    hidden, p = random(3, 5).requires_grad_(), random(3, 11).requires_grad_()
    summed = Summed(matrix, held.clone())
    (project(hidden, summed).square().sum() + times(p, summed).square().sum()).backward()
    free = matrix.clone().requires_grad_()
    mine = hidden.detach().clone().requires_grad_(), p.detach().clone().requires_grad_()
    ((mine[0] @ free.mT).square().sum() + (mine[1] @ free).square().sum()).backward()
    close(summed.gradient_VD, held + free.grad)
    close(hidden.grad, mine[0].grad)
    close(p.grad, mine[1].grad)
