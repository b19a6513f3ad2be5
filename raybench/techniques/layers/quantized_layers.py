"""Which layers are of few bits: plain ones in weights and inputs, all others in weights alone.

Beside its weight and `weight_step`, `weight_bits` (`rounded_weights`) a plain nn.Conv2d or
nn.Linear has, in the state_dict as everywhere:

    input_step        fp32        an input is (code - zero point) * step; codes 0 … 2^bits - 1;
    input_zero_point  uint8       step 0: nothing was observed yet
    input_bits        uint8

Inputs have a zero point as they have in ONNX: unsigned codes are the fast ones on a CPU, and what
may be negative (an image, what comes out of a LayerNorm or a GELU) is shifted into them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

SAMPLES = 2048  # values of an input that a grid is fitted to, of each step that is observed

LEFT_OUT = ("recurrent", "standardized")
"""Kinds of weights that are not rounded: cuDNN reads recurrent ones as one flat piece, and what a
standardized convolution multiplies is no longer on the grid of its parameter."""


class QuantizedLayer(RoundedWeights):
    """What both kinds have. An instance is made by `quantizable`, of a plain layer."""

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
        """The rounded weight, for readers past the layer, whose input is none of the layer's."""
        return self.read_rounded("weight", *(() if self.input_step is None else (self.input_step,)))

    def on_grid(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The input and the weight that the layer multiplies."""
        if self.observing and self.training:
            self.seen = x.detach()
        if self.input_step is None:
            return x, self.read_rounded("weight")
        if not (bits := int(self.input_bits)):
            return x, self.read_rounded("weight", self.input_step)
        codes, zero = 2**bits - 1, int(self.input_zero_point)
        scale = self._gradient_scale("input_step", x[0].numel(), codes)
        x = rounded_input(x, self.input_step, -zero, codes - zero, scale)
        return x, self.read_rounded("weight")

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

    def settle_input(self) -> None:
        """Makes the input's step fp16."""
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
    """Makes every weight that is not quantizable yet so, in place; whether there was one.

    A plain convolution or linear layer has its input rounded as well. The bits are what is
    expected; they decide the learning rates of the steps alone.
    """
    new = {id(w.value): w for w in chosen(model) if not _is_rounded(w.module, w.attribute)}
    by_module: dict[nn.Module, list[Weight]] = {}
    for path, module in model.named_modules():  # every holder of a weight that several share
        for attribute, value in module._parameters.items():
            if value is not None and id(value) in new:
                own = Weight(f"{path}.{attribute}", path, module, attribute, new[id(value)].kind)
                by_module.setdefault(module, []).append(own)
    steps: dict[int, nn.Parameter] = {}
    for module, found in by_module.items():
        layer = KINDS.get(type(module))
        before: Any = type(module)
        kind = layer or rounding(before, tuple(weight.attribute for weight in found))
        for weight in found:
            value = weight.value
            round_weight(weight, kind, bits=bits)
            step = steps.setdefault(id(value), module.get_parameter(weight.attribute + STEP))
            module.register_parameter(weight.attribute + STEP, step)
        if layer:
            _add_input(module, activation_bits)
    for module in model.modules() if new else ():
        # In evaluation it would multiply by the weights and go past its layers.
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
