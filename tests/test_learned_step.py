"""The learned step: its gradients are the LSQ paper's, and grids that fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raybench.techniques.layers.bit_widths import BITS
from raybench.techniques.layers.learned_step import (
    fit_input_grids,
    fit_weight_steps,
    largest_code,
    rounded_input,
    rounded_weight,
)

bit_widths = st.integers(2, 8)
seeds = st.integers(0, 2**20)


def paper(v: float, s: float, low: int, high: int) -> tuple[float, float, float]:
    """Value, and gradients by v and by s, of one number: equations 1, 3 and 5 of the LSQ paper."""
    if v / s <= low:
        return low * s, 0.0, float(low)
    if v / s >= high:
        return high * s, 0.0, float(high)
    return round(v / s) * s, 1.0, round(v / s) - v / s


def by_the_paper(
    values: Tensor, gradient: Tensor, step: float, low: int, high: int
) -> tuple[list[float], list[float], float]:
    rows = [paper(v, step, low, high) for v in values.flatten().tolist()]
    g = gradient.flatten().tolist()
    by_value = [d * x for (_, d, _), x in zip(rows, g, strict=True)]
    return (
        [r for r, _, _ in rows],
        by_value,
        sum(d * x for (_, _, d), x in zip(rows, g, strict=True)),
    )


class TestLearnedStep:
    @settings(max_examples=40)
    @given(seed=seeds, bits=bit_widths, channels=st.integers(1, 4), step=st.floats(0.01, 2))
    def test_a_weights_gradients_are_the_papers(self, seed, bits, channels, step):
        torch.manual_seed(seed)
        weight = torch.randn(channels, 2, 3, 3, requires_grad=True)
        steps = (torch.rand(channels) * step + 0.01).requires_grad_()
        gradient = torch.randn(weight.shape)
        result = rounded_weight(weight, steps, bits, scale=0.5)
        result.backward(gradient)
        code = largest_code(bits)
        for c in range(channels):
            value, by_weight, by_step = by_the_paper(
                weight[c], gradient[c], float(steps[c].detach()), -code, code
            )
            assert result[c].flatten().tolist() == pytest.approx(value, rel=1e-5, abs=1e-6)
            assert weight.grad[c].flatten().tolist() == pytest.approx(by_weight)
            assert float(steps.grad[c]) == pytest.approx(0.5 * by_step, rel=1e-4, abs=1e-4)

    @settings(max_examples=40)
    @given(seed=seeds, bits=bit_widths, zero=st.floats(0, 1), turned=st.booleans())
    def test_an_inputs_gradients_are_the_papers(self, seed, bits, zero, turned):
        torch.manual_seed(seed)
        codes = 2**bits - 1
        low = -round(zero * codes)
        value = torch.randn(2, 3, 4, 5)
        gradient = torch.randn(value.shape)
        if turned:  # the order in the memory is another, that of the gradient as it was
            value = value.to(memory_format=torch.channels_last)
        value.requires_grad_()
        step = torch.tensor(3 / codes, requires_grad=True)
        result = rounded_input(value, step, low, low + codes, scale=2.0)
        result.backward(gradient)
        expected, by_value, by_step = by_the_paper(
            value, gradient, float(step.detach()), low, low + codes
        )
        assert result.flatten().tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert value.grad.flatten().tolist() == pytest.approx(by_value)
        assert float(step.grad) == pytest.approx(2 * by_step, rel=1e-3, abs=1e-3)

    def test_a_quarter_of_a_large_batch_stands_for_all_of_it_in_the_steps_gradient(self):
        value = torch.rand(10, 40_000, requires_grad=True)
        step = torch.tensor(0.05, requires_grad=True)
        gradient = torch.randn(value.shape)
        result = rounded_input(value, step, 0, 15)
        result.backward(gradient)
        scaled = value.detach() / 0.05
        inside = scaled < 15
        error = torch.where(inside, scaled.round() - scaled, torch.tensor(15.0))
        assert torch.allclose(result, scaled.round().clamp(0, 15) * 0.05)
        assert torch.allclose(value.grad, gradient * inside)
        expected = (error * gradient)[:3].sum() * 10 / 3
        assert float(step.grad) == pytest.approx(float(expected), rel=1e-3)

    def test_bf16_is_computed_in_fp32(self):
        value = torch.rand(64, 64).bfloat16()
        result = rounded_input(value, torch.tensor(1 / 255), 0, 255)
        exact = rounded_input(value.float(), torch.tensor(1 / 255), 0, 255)
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, exact.bfloat16())

    @given(seed=seeds, bits=bit_widths, sparsity=st.floats(0, 1))
    def test_codes_are_in_range_and_zero_stays_zero(self, seed, bits, sparsity):
        torch.manual_seed(seed)
        weight = torch.randn(3, 17) * (torch.rand(3, 17) >= sparsity)
        steps = fit_weight_steps(weight, bits)
        on_grid = rounded_weight(weight, steps, bits)
        codes = on_grid / steps[:, None]
        assert (steps > 0).all()
        assert torch.allclose(codes, codes.round(), atol=1e-4)
        assert codes.abs().max() <= largest_code(bits) + 1e-4
        assert not on_grid[weight == 0].any()
        assert torch.equal(rounded_weight(on_grid, steps, bits), on_grid)


class TestFit:
    @settings(max_examples=30)
    @given(seed=seeds, bits=bit_widths)
    def test_a_weights_steps_are_near_the_best_of_a_fine_search(self, seed, bits):
        torch.manual_seed(seed)
        weight = torch.randn(2, 40)

        def error(steps: Tensor) -> Tensor:
            return (rounded_weight(weight, steps, bits) - weight).square().sum(1)

        widest = weight.abs().amax(1) / largest_code(bits)
        best = torch.stack([error(widest * k / 200) for k in range(20, 201)]).amin(0)
        actual = error(fit_weight_steps(weight, bits))
        assert (actual <= error(widest)).all()
        assert (actual <= 1.6 * best + 1e-9).all()

    def test_ranges_get_narrower_with_fewer_bits(self):
        weight = torch.randn(1, 20_000)
        widths = [float(fit_weight_steps(weight, b)) * largest_code(b) for b in BITS]
        assert widths == sorted(widths)
        assert widths[0] < 0.5 * widths[-1]

    def test_grids_of_inputs_are_unsigned_after_a_relu_and_shifted_elsewhere(self):
        relu, image = torch.randn(2048).relu(), torch.randn(2048)
        gelu = F.gelu(torch.randn(2048) * 2)
        low, step = fit_input_grids(torch.stack([relu, image, gelu]), torch.tensor([8, 8, 4]))
        zeros = (-low / step).round().tolist()
        assert zeros[0] == 0
        assert 110 <= zeros[1] <= 145
        assert 0 <= zeros[2] <= 2
        for row, lowest, width, bits in zip((relu, image, gelu), low, step, (8, 8, 4), strict=True):
            zero = round(float(-lowest / width))
            on_grid = rounded_input(row, width, -zero, 2**bits - 1 - zero)
            assert (on_grid - row).square().mean() < (0.02 if bits == 4 else 2e-4)
