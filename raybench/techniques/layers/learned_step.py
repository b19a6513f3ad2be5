"""Rounding to a grid with a learned step (Esser et al. 2020, "Learned Step Size Quantization").

    v ─▶ v / step ─▶ round ─▶ clamp to the codes low … high ─▶ code · step

Between the ends of the grid, rounding passes gradients straight through. The step's own gradient
(section 2) is code - v / step between the ends, and the code itself beyond them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALLEST_STEP = 2.0**-24
"""The smallest positive fp16 number. Stored steps are fp16, and values are divided by them."""

NARROWING = torch.logspace(-1, 0, 16, base=8).tolist()
"""Ranges to try for a grid, as shares of the values' range: for normal weights, 0.4 is best at 2
bits, 0.8 at 4, and 1 at 6 and more."""


BLOCK = 2**18
"""Values per block on a CPU, 1 MiB in fp32, so that each pass finds its data in the cache. With a
whole layer at a time, a training step of ResNet-20 in bf16 took 1.38 times the plain time."""


SAMPLED = 4
"""If a layer's input is larger than a block, the step's gradient, a single number, is estimated on
the first quarter of the batch. With the whole batch, training took 1.31 times the plain time."""


class _RoundedWeight(torch.autograd.Function):
    """A weight (O, …) on the grids of its output channels with steps (O,); or stacked weights
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
        # code · g, minus v / step · g inside the grid: the two cases of the paper's equation 3.
        passed = scaled * inside
        by_value = scaled.round_().clamp_(-ctx.high, ctx.high).mul_(gradient).sub_(passed)
        return inside, by_value.flatten(ctx.axes).sum(ctx.axes).mul_(ctx.scale), None, None


class _RoundedInput(torch.autograd.Function):
    """An input on a grid with one step, in its own dtype; forward and backward compute in fp32.

    PyTorch's own kernel (`_fake_quantize_learnable_per_tensor_affine`) is not vectorized and took
    4 ns per value in each direction, 12 in bf16; this takes 0.6 and 0.5 (one core, AVX-512).
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
        result = _between(gradient, value, step, ctx.low, ctx.high)
        part = -(-len(value) // SAMPLED) if value.numel() > BLOCK else len(value)
        sample, gradient = value[:part], gradient[:part]
        if gradient.stride() != sample.stride():
            gradient = torch.empty_like(sample).copy_(gradient)
        by_step = torch.zeros_like(step)
        for v, g in zip(_blocks(sample), _blocks(gradient), strict=True):
            g, scaled = g.float(), v.to(torch.float32, copy=True).div_(step)
            inside = torch.ops.aten.hardtanh_backward(g, scaled, ctx.low, ctx.high)
            by_step -= torch.dot(scaled, inside)
            by_step += torch.dot(scaled.round_().clamp_(ctx.low, ctx.high), g)
        return result, by_step.mul_(ctx.scale * len(value) / part), None, None, None


def _between(gradient: Tensor, value: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """The gradient where the value is between the grid's ends, else 0."""
    if value.is_cuda:  # the kernel takes the ends as numbers, for which the host would wait
        inside = (value > step * low) & (value < step * high)
        return gradient * inside
    ends = (float(step) * low, float(step) * high)
    return torch.ops.aten.hardtanh_backward(gradient, value, *ends)


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def flat(x: Tensor) -> Tensor:
    """All values in one row, in memory order; a dense tensor is not copied."""
    return x.reshape(-1) if x.is_contiguous() or x.ndim != 4 else x.permute(0, 2, 3, 1).reshape(-1)


def _blocks(x: Tensor) -> tuple[Tensor, ...]:
    row = flat(x)
    return row.split(BLOCK if x.device.type == "cpu" else max(1, len(row)))


def rounded_weight(weight: Tensor, step: Tensor, bits: int, scale: float = 1.0) -> Tensor:
    """A weight (O, …) on its grids with steps (O,); their gradient is the paper's times `scale`.

    Stacked weights (E, O, …) have steps (E, O).
    """
    result: Tensor = _RoundedWeight.apply(weight, step, largest_code(bits), scale)
    return result


def rounded_input(value: Tensor, step: Tensor, low: int, high: int, scale: float = 1.0) -> Tensor:
    """A value of any shape on the grid `low · step … high · step`, with the same gradients."""
    result: Tensor = _RoundedInput.apply(value, step, low, high, scale)
    return result


class _Idle(torch.autograd.Function):
    """Passes a value through, and gives the unused parameters gradients of zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *waiting: Tensor) -> Tensor:
        ctx.save_for_backward(*waiting)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def with_idle(value: Tensor, *waiting: Tensor) -> Tensor:
    """`value`, unchanged. The other parameters get a gradient of 0, because DDP waits for a
    gradient of every parameter, and a fused optimizer needs moments for a whole group or none."""
    result: Tensor = _Idle.apply(value, *waiting)
    return result


def largest_code(bits: int) -> int:
    """The largest code of a weight; codes are symmetric around 0, so that 0 is one of them."""
    return int(2 ** (bits - 1) - 1)


@torch.no_grad()
def fit_weight_steps(weight: Tensor, bits: int, stacked: int = 0) -> Tensor:
    """The step of each output channel, (O,), with the smallest squared error over `NARROWING`.

    With `stacked` = 1 the weight is (E, O, …) and the steps are (E, O).
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

    Minimizes the squared error over the samples, first for the upper end, then for the lower one,
    because they differ after a GELU. The lowest value of an input that is never negative, as after
    a ReLU, is 0.
    """
    codes = (2**bits - 1)[:, None].to(samples.device, non_blocking=True)
    low = samples.amin(1, keepdim=True).clamp_(max=0)
    high = samples.amax(1, keepdim=True).clamp_(min=0)

    shares = torch.tensor(NARROWING).to(samples.device, non_blocking=True)

    def error(low: Tensor, high: Tensor) -> Tensor:
        step = ((high - low) / codes).clamp_(min=SMALLEST_STEP)
        zero = (-low / step).round_()
        code = (samples / step).round_().clamp_(-zero, codes - zero)
        return code.mul_(step).sub_(samples).square_().sum(1, keepdim=True)

    highs = torch.stack([error(low, high * share) for share in NARROWING])
    high = high * shares[highs.argmin(0)]
    lows = torch.stack([error(low * share, high) for share in NARROWING])
    low = low * shares[lows.argmin(0)]
    return low.flatten(), ((high - low) / codes).clamp_(min=SMALLEST_STEP).flatten()
