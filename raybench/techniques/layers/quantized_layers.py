"""Quantized layers: plain layers round weights and inputs, all others round only weights.

Beside its weight, `weight_step` and `weight_bits` (`rounded_weights`), a plain nn.Conv2d or
nn.Linear has these parameters and buffers:

    input_step        fp32        an input is (code - zero point) * step; codes 0 … 2^bits - 1;
    input_zero_point  uint8       a step of 0 means that nothing was observed yet
    input_bits        uint8

Inputs have a zero point, as in ONNX: unsigned codes are the fast ones on a CPU, and inputs that may
be negative (an image, the output of a LayerNorm or a GELU) are shifted into their range.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybench.techniques.layers.host_numbers import number, read
from raybench.techniques.layers.learned_step import flat, rounded_input
from raybench.techniques.layers.rounded_weights import (
    BITS,
    STEP,
    RoundedWeights,
    round_weight,
    rounding,
    settle_step,
)
from raybench.techniques.layers.weights import Weight, weights

SAMPLES = 2048  # values of an input, in each observed step, that a grid is fitted to

LEFT_OUT = ("recurrent", "standardized")
"""Kinds of weights that are not rounded: cuDNN reads recurrent weights as one flat tensor, and the
applied weight of a standardized convolution is not on the grid of its parameter."""


class QuantizedLayer(RoundedWeights):
    """The common part of both kinds. `quantizable` makes an instance from a plain layer."""

    rounded_attributes = ("weight",)
    bias: Tensor | None
    weight_step: nn.Parameter
    weight_bits: Tensor
    input_step: nn.Parameter | None
    input_bits: Tensor
    input_zero_point: Tensor
    observing: bool  # whether the next training forward leaves its input in `seen`
    seen: Tensor | None

    @property
    def weight(self) -> Tensor:
        """The rounded weight, for code that reads it directly instead of calling the layer."""
        return self.read_rounded("weight", *(() if self.input_step is None else (self.input_step,)))

    def on_grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input and the weight that the layer multiplies."""
        if self.observing and self.training:
            self.seen = x.detach()
        if self.input_step is None:
            return x, self.read_rounded("weight")
        if not (bits := number(self.input_bits)):
            return x, self.read_rounded("weight", self.input_step)
        codes, zero = 2**bits - 1, number(self.input_zero_point)
        scale = self._gradient_scale("input_step", x[0].numel(), codes)
        x = rounded_input(x, self.input_step, -zero, codes - zero, scale)
        return x, self.read_rounded("weight")

    @torch.no_grad()
    def take_grid(self, count: Tensor, low: Tensor, step: Tensor) -> None:
        """Takes the mean of the observed grids, from their number and their sums.

        With a number of 0 the grid stays as it is; the device decides, because the host would wait.
        """
        if self.input_step is not None:
            zero_point, before = (-low / step).round(), self.input_zero_point.float()
            self.input_step.copy_(torch.where(count > 0, step / count, self.input_step))
            self.input_zero_point.copy_(torch.where(count > 0, zero_point, before))

    @torch.no_grad()
    def quantize_input(self, bits: int) -> None:
        """Puts the input on its observed grid, if there is one."""
        if self.input_step is not None and read(self.input_step) > 0:
            self.input_bits.fill_(bits)

    def sample(self) -> Tensor | None:
        """`SAMPLES` values of the last input, which is then dropped."""
        seen, self.seen = self.seen, None
        if seen is None or self.input_step is None:
            return None
        row, channels = flat(seen), seen.shape[1 if seen.ndim == 4 else -1]
        stride = max(1, len(row) // SAMPLES)
        while math.gcd(stride, channels) > 1:  # otherwise it would sample only a few channels
            stride += 1
        places = torch.arange(SAMPLES, device=row.device).mul_(stride).remainder_(len(row))
        return row[places].float()

    def settle_input(self) -> None:
        """Rounds the input's step to fp16."""
        if self.input_step is not None:
            settle_step(self.input_step)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[override]  # of weight
    """A Conv2d on grids."""

    class_before = nn.Conv2d

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW, weight = self.on_grid(x_BCHW)
        return self._conv_forward(x_BCHW, weight, self.bias)


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[override,misc]  # of weight, bias
    """A Linear on grids."""

    class_before = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.on_grid(x)
        return F.linear(x, weight, self.bias)


KINDS: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
}


def chosen(model: nn.Module) -> list[Weight]:
    """The weights that can be quantized."""
    return [weight for weight in weights(model) if weight.kind not in LEFT_OUT]


def quantizable(model: nn.Module, *, bits: int, activation_bits: int) -> bool:
    """Makes every weight quantizable, in place; returns whether any was not yet.

    Plain convolutions and linear layers also get a rounded input. The bits are the expected ones;
    they only affect the learning rates of the steps.
    """
    new = {id(w.value): w for w in chosen(model) if not _is_rounded(w.module, w.attribute)}
    by_module: dict[nn.Module, list[Weight]] = {}
    for path, module in model.named_modules():  # every holder, also of a shared weight
        for attribute, value in module._parameters.items():
            if value is not None and id(value) in new:
                held = Weight(f"{path}.{attribute}", path, module, attribute, new[id(value)].kind)
                by_module.setdefault(module, []).append(held)
    steps: dict[int, nn.Parameter] = {}
    for module, of_module in by_module.items():
        layer = KINDS.get(type(module))
        before: Any = type(module)
        kind = layer or rounding(before, tuple(weight.attribute for weight in of_module))
        for weight in of_module:
            value = weight.value
            round_weight(weight, kind, bits=bits)
            step = steps.setdefault(id(value), module.get_parameter(weight.attribute + STEP))
            module.register_parameter(weight.attribute + STEP, step)
        if layer:
            _add_input(module, activation_bits)
    for module in model.modules() if new else ():
        # Its fast path in evaluation would read the weights and skip the layers.
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
    return bool(new)


def _is_rounded(module: nn.Module, attribute: str) -> bool:
    return attribute + BITS in module._buffers


def _add_input(module: nn.Module, activation_bits: int) -> None:
    assert isinstance(module, QuantizedLayer)
    module.observing, module.seen = False, None
    module.register_parameter("input_step", None)
    if activation_bits <= 8:
        value = module.raw_weight("weight")
        module.input_step = nn.Parameter(value.new_zeros(()))
        for name in ("input_bits", "input_zero_point"):
            module.register_buffer(name, value.new_zeros((), dtype=torch.uint8))
        module.lr_scale["input_step"] = 5 / (2**activation_bits - 1)


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """The layers with rounded inputs, by name, in order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
