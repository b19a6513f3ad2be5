"""Modules whose weights are rounded to their grids whenever they are read.

    module._parameters["weight"]   the raw weight: trained, stored, pruned     ─┐ round to codes,
    module.weight_step             one step per channel: (O,), stacked (E, O)  ─┤ times steps
    module.weight_bits             uint8; 0: not quantized yet                 ─┘
    module.weight                  the rounded weight, with a gradient to the first two

Reading goes through a property of the module's class. So a layer's forward pass and code that reads
the weight directly, such as `F.linear(x, self.qkv.weight)`, see the same values. The state_dict,
`named_parameters` and DDP see the raw weight under its plain name. A weight that several modules
share has one step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raybench.techniques.layers.host_numbers import number, read
from raybench.techniques.layers.learned_step import (
    SMALLEST_STEP,
    fit_weight_steps,
    largest_code,
    rounded_weight,
    with_idle,
)
from raybench.techniques.layers.weights import Weight

STEP, BITS = "_step", "_bits"  # suffixes of the weight's name


class RoundedWeights(nn.Module):
    """The common part of these modules. `round_weight` makes an instance from a plain module."""

    # Long names, because the class is combined with others that may have their own `step`.
    rounded_attributes: ClassVar[tuple[str, ...]]
    """Names of its rounded weights."""
    class_before: ClassVar[type[nn.Module]]
    end_attributes: tuple[str, ...]
    """Names of its rounded weights that are the model's first or last."""
    lr_scale: dict[str, float]

    def read_rounded(self, attribute: str, *idle: Tensor) -> Tensor:
        """The rounded weight; the raw one before it is quantized.

        `idle` are parameters that this pass does not use otherwise: they get a gradient of 0.
        """
        weight, step = self.raw_weight(attribute), self.step_of(attribute)
        fits = step.shape == weight.shape[: step.ndim]  # False while channels are being cut
        if fits and (bits := number(self.get_buffer(attribute + BITS))):
            values, code = weight.numel() // step.numel(), largest_code(bits)
            scale = self._gradient_scale(attribute + STEP, values, code)
            read = rounded_weight(weight, step, bits, scale)
        else:
            read, idle = weight, (step, *idle)
        return with_idle(read, *idle) if idle and torch.is_grad_enabled() else read

    def raw_weight(self, attribute: str) -> nn.Parameter:
        parameter = self._parameters[attribute]
        assert parameter is not None
        return parameter

    def step_of(self, attribute: str) -> nn.Parameter:
        return self.raw_weight(attribute + STEP)

    def _gradient_scale(self, name: str, values: int, code: int) -> float:
        # The paper's 1 / sqrt(values * code), section 2.2, balances the changes of step and weights
        # for the paper's first step, with which few values are beyond the grid's ends. The grid
        # fitted here ends at the largest value. Values there move the step by `code` times their
        # gradient, while the step is only a code-th of these values. At 8 bits 3 / code² is 40
        # times less for a layer of 144 values per channel; with the paper's scale the first update
        # made the step negative.
        scale = min(1 / math.sqrt(values * code), 3 / code**2)
        # Divided by the factor of the learning rate: this cancels it for SGD, while Adam moves in
        # shares of the step.
        return scale / self.lr_scale[name]


@dataclass(frozen=True)
class RoundedWeight:
    """One rounded weight of a model, with all modules that hold it."""

    name: str
    """Name of the raw parameter, as in `named_parameters()`."""
    holders: tuple[tuple[RoundedWeights, str], ...]
    """Each module with the attribute under which it has the weight."""

    @property
    def raw(self) -> nn.Parameter:
        module, attribute = self.holders[0]
        return module.raw_weight(attribute)

    @property
    def step(self) -> nn.Parameter:
        module, attribute = self.holders[0]
        return module.step_of(attribute)

    @property
    def stacked(self) -> int:
        """Leading axes that number separate matrices: 1 for experts and Monarch factors."""
        return self.step.ndim - 1

    @property
    def bits(self) -> int:
        """Its bits; 0 before it is quantized."""
        module, attribute = self.holders[0]
        return number(module.get_buffer(attribute + BITS))

    @property
    def end(self) -> bool:
        """Whether it is the model's first or last weight."""
        return any(attribute in module.end_attributes for module, attribute in self.holders)

    @torch.no_grad()
    def quantize(self, bits: int) -> None:
        """Puts the weight on the grids of `bits` bits with the smallest squared error."""
        self.step.copy_(fit_weight_steps(self.raw, bits, self.stacked))
        for module, attribute in self.holders:
            module.get_buffer(attribute + BITS).fill_(bits)

    def fit(self) -> bool:
        """Makes new steps if the weight has lost output channels; returns whether it had."""
        shape = self.raw.shape[: self.step.ndim]
        if self.step.shape == shape:
            return False
        step = nn.Parameter(self.step.new_ones(shape))
        for module, attribute in self.holders:
            module.register_parameter(attribute + STEP, step)
        if self.bits:
            self.quantize(self.bits)
        return True

    @torch.no_grad()
    def settle(self) -> None:
        """Makes stored values exact: fp16 steps and biases, and weights equal to code * step."""
        settle_step(self.step)
        self.raw.copy_(rounded_weight(self.raw, self.step, self.bits) + 0.0)  # codes have no -0
        for module, _ in self.holders:
            for name, parameter in module.named_parameters(recurse=False):
                if "bias" in name:
                    parameter.copy_(parameter.half())


@torch.no_grad()
def settle_step(step: Tensor) -> None:
    """Rounds a step to fp16, unless it was never fitted."""
    if read((step > 0).all()):
        step.copy_(step.clamp(min=SMALLEST_STEP).half())


def round_weight(weight: Weight, kind: type[RoundedWeights], *, bits: int) -> None:
    """Gives the weight a step and bits, and its module the class `kind`, in place.

    The bits are the expected ones; they only affect the learning rate of the step.
    """
    module, attribute, value = weight.module, weight.attribute, weight.value
    if not isinstance(module, RoundedWeights):
        module.__class__ = kind  # parameters and their names stay
        assert isinstance(module, RoundedWeights)
        module.end_attributes = ()
        module.lr_scale = dict(getattr(module, "lr_scale", {}))
    steps = value.new_ones(value.shape[: 1 + weight.stacked])
    module.register_parameter(attribute + STEP, nn.Parameter(steps))
    module.register_buffer(attribute + BITS, value.new_zeros((), dtype=torch.uint8))
    # The expected size of the fitted steps: the largest of many values is 4 times the mean
    # magnitude, 5 times after a norm.
    expected = 4 * float(value.detach().abs().mean()) / largest_code(bits)
    module.lr_scale[attribute + STEP] = max(expected, SMALLEST_STEP)


@functools.cache  # one class for all layers of a type
def rounding(kind: type[Any], attributes: tuple[str, ...]) -> type[RoundedWeights]:
    """A subclass of `kind` in which reading these weights gives the rounded ones."""

    def reads(attribute: str) -> property:
        return property(lambda module: module.read_rounded(attribute))

    members = {attribute: reads(attribute) for attribute in attributes}
    about = {"rounded_attributes": attributes, "class_before": kind}
    return type(f"Rounded{kind.__name__}", (RoundedWeights, kind), about | members)


def rounded_weights(model: nn.Module) -> dict[str, RoundedWeight]:
    """The model's rounded weights by the parameter's name, in order, each once."""
    names: dict[int, str] = {}
    holders: dict[int, list[tuple[RoundedWeights, str]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, RoundedWeights):
            for attribute in module.rounded_attributes:
                number = id(module.raw_weight(attribute))
                names.setdefault(number, f"{path}.{attribute}" if path else attribute)
                holders.setdefault(number, []).append((module, attribute))
    return {name: RoundedWeight(name, tuple(holders[number])) for number, name in names.items()}


def is_whole(model: nn.Module) -> bool:
    """Whether it has both ends. A stage of a pipeline has only a part of the layers."""
    modules = (module for module in model.modules() if isinstance(module, RoundedWeights))
    return sum(len(module.end_attributes) for module in modules) == 2
