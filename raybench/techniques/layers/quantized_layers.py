"""Convolutions and linear layers whose weights and inputs lie on grids of few bits.

Beside `weight` they have, in the state_dict as everywhere:

    weight_step       (O,) fp32   a weight is code * step; codes -(2^(bits-1) - 1) … 2^(bits-1) - 1
    weight_bits       uint8       0: not quantized yet, the layer is the plain one
    input_step        fp32        an input is (code - zero point) * step; codes 0 … 2^bits - 1;
    input_zero_point  uint8       step 0: nothing was observed yet
    input_bits        uint8

Inputs have a zero point as they have in ONNX: unsigned codes are the fast ones on a CPU, and what
may be negative (an image, what comes out of a LayerNorm or a GELU) is shifted into them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.techniques.layers.learned_step import (
    SMALLEST_STEP,
    fit_weight_steps,
    flat,
    largest_code,
    rounded_input,
    rounded_weight,
    with_idle,
)

SAMPLES = 2048  # values of an input that a grid is fitted to, of each step that is observed


class QuantizedLayer(nn.Module):
    """What both kinds have. An instance is made by `quantizable`, of a plain layer."""

    weight: Tensor
    bias: Tensor | None
    weight_step: nn.Parameter
    weight_bits: Tensor
    input_step: nn.Parameter | None
    input_bits: Tensor
    input_zero_point: Tensor
    lr_scale: dict[str, float]
    observing: bool  # whether the next training forward leaves its input in `seen`
    seen: Tensor | None

    def on_grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input and the weight that the layer multiplies."""
        if self.observing and self.training:
            self.seen = x.detach()
        weight: Tensor = self.weight
        idle = []
        if bits := int(self.weight_bits):
            scale = self._gradient_scale("weight_step", weight[0].numel(), largest_code(bits))
            weight = rounded_weight(weight, self.weight_step, bits, scale)
        else:
            idle.append(self.weight_step)
        if self.input_step is not None:
            if bits := int(self.input_bits):
                codes, zero = 2**bits - 1, int(self.input_zero_point)
                scale = self._gradient_scale("input_step", x[0].numel(), codes)
                x = rounded_input(x, self.input_step, -zero, codes - zero, scale)
            else:
                idle.append(self.input_step)
        return x, with_idle(weight, *idle) if idle and torch.is_grad_enabled() else weight

    def _gradient_scale(self, name: str, values: int, code: int) -> float:
        # The paper's 1 / sqrt(values * code), section 2.2, keeps the step's pace beside the
        # weights' for its first step, with which few values lie beyond the grid's ends. A fitted
        # grid ends at the largest value: what is there moves the step by `code` times its gradient,
        # and that of a step which is a code-th of it. At 8 bits 3 / code² is 40 times less for a
        # layer of 144 values a channel; with the paper's the first step took it below 0.
        scale = min(1 / math.sqrt(values * code), 3 / code**2)
        # What the learning rate is multiplied by is taken off again: SGD goes this way, and Adam
        # in shares of the step.
        return scale / self.lr_scale[name]

    @torch.no_grad()
    def quantize_weight(self, bits: int) -> None:
        """Puts the weight on the grid of so many bits with the least squared error."""
        self.weight_step.copy_(fit_weight_steps(self.weight, bits))
        self.weight_bits.fill_(bits)

    @torch.no_grad()
    def quantize_input(self, bits: int) -> None:
        """Puts the input on the grid that was observed, if one was."""
        if self.input_step is not None and self.input_step > 0:
            self.input_bits.fill_(bits)

    def sample(self) -> Tensor | None:
        """`SAMPLES` values of the input that was seen last; it is forgotten."""
        seen, self.seen = self.seen, None
        if seen is None or self.input_step is None:
            return None
        row, channels = flat(seen), seen.shape[1 if seen.ndim == 4 else -1]
        stride = max(1, len(row) // SAMPLES)
        while math.gcd(stride, channels) > 1:  # or it would meet a few channels alone
            stride += 1
        places = torch.arange(SAMPLES, device=row.device).mul_(stride).remainder_(len(row))
        return row[places].float()

    def fit_to_weight(self) -> bool:
        """Makes steps anew where the weight has lost output channels; whether it had."""
        if len(self.weight_step) == len(self.weight):
            return False
        self.weight_step = nn.Parameter(self.weight_step.new_ones(len(self.weight)))
        if bits := int(self.weight_bits):
            self.quantize_weight(bits)
        return True

    @torch.no_grad()
    def settle(self) -> None:
        """Makes what is stored exact: fp16 steps and bias, and weights equal to code * step."""
        for step in (self.weight_step, self.input_step):
            if step is not None and (step > 0).all():
                step.copy_(step.clamp(min=SMALLEST_STEP).half())
        if self.bias is not None:
            self.bias.copy_(self.bias.half())
        on_grid = rounded_weight(self.weight, self.weight_step, int(self.weight_bits))
        self.weight.copy_(on_grid + 0.0)  # a code has no -0


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A Conv2d on grids."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW, weight = self.on_grid(x_BCHW)
        return self._conv_forward(x_BCHW, weight, self.bias)


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]  # bias may be None
    """A Linear on grids."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.on_grid(x)
        return F.linear(x, weight, self.bias)


KINDS: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
}


def quantizable(model: nn.Module, *, bits: int, activation_bits: int) -> None:
    """Turns plain convolutions and linear layers into those that can be quantized, in place.

    Subclasses, those of other techniques and of torch's own attention, stay what they are. The bits
    are what is expected; they decide the learning rates of the steps alone.
    """
    for module in list(model.modules()):
        if type(module) not in KINDS:
            continue
        module.__class__ = KINDS[type(module)]  # the same parameters, under the same names
        assert isinstance(module, QuantizedLayer)
        weight = module.weight
        module.observing, module.seen = False, None
        module.weight_step = nn.Parameter(weight.new_ones(len(weight)))
        module.register_buffer("weight_bits", weight.new_zeros((), dtype=torch.uint8))
        module.register_parameter("input_step", None)
        # Where the fitted steps are to be expected: the largest of many values is 4 times the mean
        # magnitude, and 5 after a norm.
        expected = 4 * float(weight.detach().abs().mean()) / largest_code(bits)
        module.lr_scale = {"weight_step": max(expected, SMALLEST_STEP)}
        if activation_bits <= 8:
            module.input_step = nn.Parameter(weight.new_zeros(()))
            for name in ("input_bits", "input_zero_point"):
                module.register_buffer(name, weight.new_zeros((), dtype=torch.uint8))
            module.lr_scale["input_step"] = 5 / (2**activation_bits - 1)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The layers that `quantizable` made, by name, in order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
