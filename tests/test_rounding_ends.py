"""Rounding at the ends of a grid: what lies beyond is the outermost code, on both sides."""

from __future__ import annotations

import pytest
import torch

from raybench.techniques.layers.learned_step import largest_code, rounded_input, rounded_weight

BITS = 3
HIGH = largest_code(BITS)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_weight_beyond_the_grid_is_its_end(sign):
    step = torch.tensor([0.5], requires_grad=True)
    weight = torch.tensor([[sign * 100.0, sign * 0.5 * HIGH, 0.0]], requires_grad=True)
    result = rounded_weight(weight, step, BITS)
    assert result.tolist() == [[sign * 0.5 * HIGH, sign * 0.5 * HIGH, 0.0]]
    result[0, 0].backward()
    assert weight.grad.tolist() == [[0.0, 0.0, 0.0]], "beyond the ends nothing passes"
    assert step.grad.item() == sign * HIGH, "there the step's gradient is the code"


@pytest.mark.parametrize(("value", "code"), [(100.0, 7), (-100.0, -2)])
def test_an_input_beyond_the_grid_is_its_end(value, code):
    step = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([value], requires_grad=True)
    result = rounded_input(x, step, -2, 7)
    assert result.item() == 0.5 * code
    result.backward()
    assert x.grad.item() == 0.0
    assert step.grad.item() == code
