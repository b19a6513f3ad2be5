"""Monarch matrices: the product written out block by block, and the nearest one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_monarch import assert_close, matrix, slow
from torch import Tensor, nn

from raybench.techniques.layers.monarch_linear import MonarchLinear, multiply_out, project
from raybench.techniques.low_rank import LowRankLinear


def gradients(y: Tensor, direction: Tensor, x: Tensor, layer: nn.Module) -> dict[str, Tensor]:
    names = ["x", *(name for name, _ in layer.named_parameters())]
    actual = torch.autograd.grad(y, [x, *layer.parameters()], direction.to(y.dtype))
    return dict(zip(names, actual, strict=True))


LAYOUTS = {  # a tensor of the shape, as a view of one that lies otherwise
    "contiguous": lambda shape: (torch.randn(shape), lambda x: x),
    "last dimension first": lambda shape: (
        torch.randn(shape[-1:] + shape[:-1]),
        lambda x: x.movedim(0, -1),
    ),
    "every second column": lambda shape: (
        torch.randn(*shape[:-1], 2 * shape[-1]),
        lambda x: x[..., ::2],
    ),
    "one token for all": lambda shape: (torch.randn(shape[-1:]), lambda x: x.expand(shape)),
}


@st.composite
def layers(draw: st.DrawFn) -> MonarchLinear:
    blocks = draw(st.integers(2, 8))
    inputs, outputs = (blocks * draw(st.integers(1, 30)) for _ in range(2))
    torch.manual_seed(draw(st.integers(0, 99)))
    return MonarchLinear(nn.Linear(inputs, outputs, bias=draw(st.booleans())), blocks)


class TestAgainstTheReference:
    @settings(max_examples=60)
    @given(
        layers(),
        st.lists(st.integers(1, 4), max_size=3),
        st.sampled_from(sorted(LAYOUTS)),
        st.booleans(),
    )
    def test_forward_and_every_gradient(self, layer, tokens, layout, even):
        """In double precision: what is left is no rounding."""
        layer.double()
        inputs = layer.blocks * layer.factor1.shape[2]
        stored, view = LAYOUTS[layout]((*tokens, inputs))
        stored = stored.double().requires_grad_()
        x = view(stored)
        assert x.shape == (*tokens, inputs)
        y, wanted = layer(x), slow(layer, x)
        assert y.dtype == torch.float64
        assert_close(y, wanted, 1e-12)
        # A sum's gradient is one number seen everywhere: all strides are 0.
        direction = torch.ones((), dtype=y.dtype) if even else torch.randn_like(y)
        direction = direction.expand_as(y)
        actual = gradients(y, direction, stored, layer)
        for name, gradient in gradients(wanted, direction, stored, layer).items():
            assert_close(actual[name], gradient, 1e-11, name)

    @settings(max_examples=15)
    @given(layers())
    def test_fp32_is_as_close_as_fp32_can_be(self, layer):
        x = torch.randn(3, 5, layer.blocks * layer.factor1.shape[2], requires_grad=True)
        y, wanted = layer(x), slow(layer, x)
        assert y.dtype == torch.float32
        assert_close(y, wanted, 1e-5)
        actual = gradients(y, torch.ones_like(y), x, layer)
        for name, gradient in gradients(wanted, torch.ones_like(y), x, layer).items():
            assert_close(actual[name], gradient, 1e-5, name)

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(("inputs", "outputs", "blocks"), [(64, 192, 4), (96, 24, 2)])
    def test_bf16_is_close_to_fp32(self, inputs, outputs, blocks, bias):
        layer = MonarchLinear(nn.Linear(inputs, outputs, bias=bias), blocks)
        x = torch.randn(3, 17, inputs, requires_grad=True)
        exact = layer(x)
        direction = torch.randn_like(exact)
        wanted = gradients(exact, direction, x, layer)
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
            again = layer(x.bfloat16())  # as the layer before it gives it
        assert y.dtype == again.dtype == torch.bfloat16
        assert torch.equal(y, again)
        assert not torch.equal(y.float(), exact)
        assert_close(y.float(), exact, 0.03)
        for name, gradient in gradients(y, direction, x, layer).items():
            assert gradient.dtype == torch.float32
            assert_close(gradient, wanted[name], 0.03, name)

    def test_a_factor_of_zeros_leaves_the_bias(self):
        layer = MonarchLinear(nn.Linear(8, 12), 2)
        layer.factor1.data.zero_()
        assert torch.equal(layer(torch.randn(2, 3, 8)), layer.bias.expand(2, 3, 12))


# --- To a dense layer, and back -----------------------------------------------------------------


class TestMultiplyOut:
    @settings(max_examples=25)
    @given(layers())
    def test_equals_the_layer(self, layer):
        dense = multiply_out(layer)
        assert type(dense) is nn.Linear
        assert_close(dense.weight, matrix(layer), 1e-5)
        x = torch.randn(4, dense.in_features)
        assert_close(dense(x), layer(x), 1e-5)
        assert (dense.bias is None) == (layer.bias is None)
        assert all(parameter.requires_grad for parameter in dense.parameters())

    def test_shares_nothing_with_the_layer(self):
        layer = MonarchLinear(nn.Linear(8, 12), 2).double()
        dense = multiply_out(layer)
        before = copy.deepcopy(dense.state_dict())
        assert dense.weight.dtype == torch.float64
        for parameter in layer.parameters():
            parameter.data.zero_()
        assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


class TestProject:
    @pytest.mark.parametrize(
        ("inputs", "outputs", "blocks"),
        [(48, 48, 4), (192, 48, 4), (48, 192, 4), (30, 45, 3), (64, 16, 8), (6, 10, 2)],
    )
    def test_its_error_is_that_of_the_truncated_svds(self, inputs, outputs, blocks):
        dense = nn.Linear(inputs, outputs)
        layer = project(dense, blocks)
        rank = layer.factor1.shape[1] // blocks
        weight, tail = dense.weight.detach().double(), 0.0
        for row in weight.chunk(blocks, dim=0):
            for block in row.chunk(blocks, dim=1):
                tail += float(torch.linalg.svdvals(block)[rank:].square().sum())
        assert tail > 0.01 * float(weight.square().sum())  # else nothing would be left out
        error = float((matrix(layer.double()).detach() - weight).norm())
        assert error == pytest.approx(math.sqrt(tail), rel=1e-5)
        assert torch.equal(layer.bias, dense.bias.double())

    @settings(max_examples=25)
    @given(layers())
    def test_is_exact_where_the_dense_matrix_is_a_monarch(self, layer):
        dense = multiply_out(layer)
        dense.weight.data = matrix(layer).detach()
        back = project(dense, layer.blocks)
        assert back.factor1.shape == layer.factor1.shape
        assert back.factor2.shape == layer.factor2.shape
        assert (back.bias is None) == (layer.bias is None)
        x = torch.randn(4, dense.in_features)
        assert_close(back(x), layer(x), 1e-4)

    def test_both_factors_of_a_block_have_the_same_size(self):
        layer = project(nn.Linear(48, 96), 4)
        rank = layer.factor1.shape[1] // 4
        for c in range(4):
            for b in range(4):
                outer = float(layer.factor2[c][:, b * rank : (b + 1) * rank].detach().norm())
                inner = float(layer.factor1[b][c * rank : (c + 1) * rank].detach().norm())
                assert outer == pytest.approx(inner, rel=1e-4)

    def test_does_not_touch_the_dense_layer(self):
        dense = nn.Linear(16, 32)
        before = copy.deepcopy(dense.state_dict())
        for parameter in project(dense, 2).parameters():
            parameter.data.zero_()
        assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("kind", ["monarch", "low_rank"])
def test_a_weight_that_is_read_past_the_layer_trains_the_factors(kind):
    """As BEiT reads its qkv: `F.linear(x, self.qkv.weight, bias)`."""
    torch.manual_seed(0)
    dense = nn.Linear(12, 20)
    layer = (MonarchLinear(dense, 2) if kind == "monarch" else LowRankLinear(dense, 3)).double()
    assert (layer.in_features, layer.out_features) == (12, 20)
    x = torch.randn(3, 5, 12, dtype=torch.float64, requires_grad=True)
    y, wanted = F.linear(x, layer.weight, layer.bias), layer(x)
    assert_close(y, wanted, 1e-12)
    direction = torch.randn_like(y)
    actual = gradients(y, direction, x, layer)
    for name, gradient in gradients(wanted, direction, x, layer).items():
        assert_close(actual[name], gradient, 1e-11, name)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)])
def test_a_batch_of_nothing_gives_nothing_and_gradients_of_zero(shape):
    layer = MonarchLinear(nn.Linear(8, 12), 2)
    x = torch.randn(shape, requires_grad=True)
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer(x)
        assert y.shape == (*shape[:-1], 12)
        layer.zero_grad()
        y.float().sum().backward()
        assert x.grad.shape == shape
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
