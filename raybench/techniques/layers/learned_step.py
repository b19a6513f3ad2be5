"""Rounding to a grid whose step is learned (Esser et al. 2020, "Learned Step Size Quantization").

    v ─▶ v / step ─▶ round ─▶ clamp to the codes low … high ─▶ code · step

Rounding passes gradients straight through between the ends of the grid, and the step has one of its
own (section 2): code - v / step between the ends, and the code itself beyond them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALLEST_STEP = 2.0**-24
"""The smallest positive fp16: a stored step is fp16, and a step of 0 would divide by it."""

NARROWING = torch.logspace(-1, 0, 16, base=8).tolist()
"""Ranges to try for a grid, as shares of the values': of normal weights, 0.4 is best at 2 bits, 0.8
at 4 and all at 6 and more."""


BLOCK = 2**18
"""Values at a time on a CPU, 1 MiB in fp32: a pass finds in the cache what the last one left. A
whole layer's at a time, a training step of ResNet-20 in bf16 took 1.38 times the plain one's."""


SAMPLED = 4
"""Where a layer's input is more than a block, the first quarter of the batch stands for all of it
in the gradient of the step, a single number. With the whole, training took 1.31 times the plain."""


class _RoundedWeight(torch.autograd.Function):
    """A weight (O, …) on the grids of its output channels, whose steps are (O,); or stacked ones,
    (E, O, …) with steps (E, O)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, high: int, scale: float) -> Tensor:
        ctx.axes = step.ndim
        step = step.view(*step.shape, *(1,) * (weight.ndim - step.ndim))
        ctx.save_for_backward(weight, step)
        ctx.high, ctx.scale = high, scale
        return (weight / step).round_().clamp_(-high, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, step = ctx.saved_tensors
        scaled = weight / step
        inside = torch.ops.aten.hardtanh_backward(gradient, scaled, -ctx.high, ctx.high)
        # code · g, less v / step · g where it is inside: the two cases of the paper's equation 3.
        passed = scaled * inside
        by_value = scaled.round_().clamp_(-ctx.high, ctx.high).mul_(gradient).sub_(passed)
        return inside, by_value.flatten(ctx.axes).sum(ctx.axes).mul_(ctx.scale), None, None


class _RoundedInput(torch.autograd.Function):
    """An input on a grid of one step, in its own dtype; computed in fp32, backward as well.

    PyTorch's own kernel (`_fake_quantize_learnable_per_tensor_affine`) is not vectorized and took
    4 ns a value each way, and 12 in bf16; these take 0.6 and 0.5 (one core, AVX-512).
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
        value = value if _is_dense(value) else value.contiguous()
        ctx.save_for_backward(value, step)
        ctx.low, ctx.high, ctx.scale = low, high, scale
        result = torch.empty_like(value)
        for part, into in zip(_blocks(value), _blocks(result), strict=True):
            scaled = part.to(torch.float32, copy=True).div_(step)
            into.copy_(scaled.round_().clamp_(low, high).mul_(step))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, step = ctx.saved_tensors
        ends = (float(step) * ctx.low, float(step) * ctx.high)
        result = torch.ops.aten.hardtanh_backward(gradient, value, *ends)
        part = -(-len(value) // SAMPLED) if value.numel() > BLOCK else len(value)
        of, gradient = value[:part], gradient[:part]
        if gradient.stride() != of.stride():
            gradient = torch.empty_like(of).copy_(gradient)
        by_step = torch.zeros_like(step)
        for v, g in zip(_blocks(of), _blocks(gradient), strict=True):
            g, scaled = g.float(), v.to(torch.float32, copy=True).div_(step)
            inside = torch.ops.aten.hardtanh_backward(g, scaled, ctx.low, ctx.high)
            by_step -= torch.dot(scaled, inside)
            by_step += torch.dot(scaled.round_().clamp_(ctx.low, ctx.high), g)
        return result, by_step.mul_(ctx.scale * len(value) / part), None, None, None


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def flat(x: Tensor) -> Tensor:
    """All values in one row, in the order of the memory: no copy of what is dense."""
    return x.reshape(-1) if x.is_contiguous() or x.ndim != 4 else x.permute(0, 2, 3, 1).reshape(-1)


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    row = flat(x)
    return row.split(BLOCK if x.device.type == "cpu" else max(1, len(row)))


def rounded_weight(weight: Tensor, step: Tensor, bits: int, scale: float = 1.0) -> Tensor:
    """A weight (O, …) on its grids, of steps (O,), whose gradient is the paper's times `scale`.

    Stacked weights (E, O, …) have steps (E, O).
    """
    result: Tensor = _RoundedWeight.apply(weight, step, largest_code(bits), scale)
    return result


def rounded_input(value: Tensor, step: Tensor, low: int, high: int, scale: float = 1.0) -> Tensor:
    """A value of any shape on the grid `low · step … high · step`, likewise."""
    result: Tensor = _RoundedInput.apply(value, step, low, high, scale)
    return result


class _Idle(torch.autograd.Function):
    """A value, and gradients of zero for the parameters that wait for their part in it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *waiting: Tensor) -> Tensor:
        ctx.save_for_backward(*waiting)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def with_idle(value: Tensor, *waiting: Tensor) -> Tensor:
    """`value`, as it is. The others get a gradient, 0: DDP waits for one of every parameter, and a
    fused optimizer has moments for all of a group or for none."""
    result: Tensor = _Idle.apply(value, *waiting)
    return result


def largest_code(bits: int) -> int:
    """Codes of weights are -this … this: symmetric, so that 0 is one of them."""
    return int(2 ** (bits - 1) - 1)


@torch.no_grad()
def fit_weight_steps(weight: Tensor, bits: int, stacked: int = 0) -> Tensor:
    """The step of each output channel, of `NARROWING`, with the smallest squared error: (O,).

    With `stacked` = 1 the weight is (E, O, …), and the steps are (E, O).
    """
    channels = weight.shape[: 1 + stacked]
    rows, code = weight.detach().float().reshape(channels.numel(), -1), largest_code(bits)
    widest = rows.abs().amax(1, keepdim=True).div_(code).clamp_(min=SMALLEST_STEP)
    best = widest
    least = torch.full_like(widest, torch.inf)
    for share in reversed(NARROWING):
        step = (widest * share).clamp_(min=SMALLEST_STEP)
        error = (rows / step).round_().clamp_(-code, code).mul_(step).sub_(rows).square_()
        error = error.sum(1, keepdim=True)
        best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best.view(channels)


@torch.no_grad()
def fit_input_grids(samples: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Lowest value and step of grids of 2^bits codes for some layers' inputs: (L, S), (L,) -> (L,).

    Least squared error over the samples, first of the upper end, then of the lower: they differ
    after a GELU. What is never negative, as after a ReLU, has 0 for the lowest value.
    """
    codes = (2**bits - 1)[:, None].to(samples.device)
    low = samples.amin(1, keepdim=True).clamp_(max=0)
    high = samples.amax(1, keepdim=True).clamp_(min=0)

    def error(low: Tensor, high: Tensor) -> Tensor:
        step = ((high - low) / codes).clamp_(min=SMALLEST_STEP)
        zero = (-low / step).round_()
        code = (samples / step).round_().clamp_(-zero, codes - zero)
        return code.mul_(step).sub_(samples).square_().sum(1, keepdim=True)

    highs = torch.stack([error(low, high * share) for share in NARROWING])
    high = high * torch.tensor(NARROWING, device=high.device)[highs.argmin(0)]
    lows = torch.stack([error(low * share, high) for share in NARROWING])
    low = low * torch.tensor(NARROWING, device=low.device)[lows.argmin(0)]
    return low.flatten(), ((high - low) / codes).clamp_(min=SMALLEST_STEP).flatten()
