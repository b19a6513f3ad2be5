"""Modules whose weights read as rounded to their grids, whoever reads them.

    module._parameters["weight"]   the raw weight: trained, stored, pruned     ─┐ round to codes,
    module.weight_step             a step a channel: (O,), stacked (E, O)      ─┤ times steps
    module.weight_bits             uint8; 0: not quantized yet                 ─┘
    module.weight                  the rounded weight, with a gradient to the first two

Reading goes through a property of the module's class, so a layer's forward pass and a reader past
it, such as `F.linear(x, self.qkv.weight)`, see the same values. The state_dict, `named_parameters`
and DDP see the raw weight under its plain name. A weight that several modules share has one step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raybench.techniques.layers.learned_step import (
    SMALLEST_STEP,
    fit_weight_steps,
    largest_code,
    rounded_weight,
    with_idle,
)
from raybench.techniques.layers.weights import Weight

STEP, BITS = "_step", "_bits"  # behind the name of the weight


class RoundedWeights(nn.Module):
    """What such modules have. An instance is made by `round_weight`, of a plain module."""

    # Long names: the class is joined to that of any module, which may have a `step` of its own.
    rounded_attributes: ClassVar[tuple[str, ...]]
    """Names of its rounded weights."""
    class_before: ClassVar[type[nn.Module]]
    end_attributes: tuple[str, ...]
    """Those of its rounded weights that are the model's first or last."""
    lr_scale: dict[str, float]

    def read_rounded(self, attribute: str, *idle: Tensor) -> Tensor:
        """The weight as it is read; before it is quantized, the raw one.

        `idle` are parameters without another part in this pass: they get a gradient of 0.
        """
        weight, step = self.raw_weight(attribute), self.step_of(attribute)
        fits = step.shape == weight.shape[: step.ndim]  # not while channels are being cut
        if fits and (bits := int(self.get_buffer(attribute + BITS))):
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
        # The paper's 1 / sqrt(values * code), section 2.2, keeps the step's pace beside the
        # weights' for its first step, with which few values lie beyond the grid's ends. A fitted
        # grid ends at the largest value: what is there moves the step by `code` times its gradient,
        # and that of a step which is a code-th of it. At 8 bits 3 / code² is 40 times less for a
        # layer of 144 values a channel; with the paper's the first step took it below 0.
        scale = min(1 / math.sqrt(values * code), 3 / code**2)
        # What the learning rate is multiplied by is taken off again: SGD goes this way, and Adam
        # in shares of the step.
        return scale / self.lr_scale[name]


@dataclass(frozen=True)
class RoundedWeight:
    """One rounded weight of a model, with all modules that hold it."""

    name: str
    """Of the raw parameter, as in `named_parameters()`."""
    holders: tuple[tuple[RoundedWeights, str], ...]
    """Each with the attribute under which it has the weight."""

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
        """0: it is not quantized yet."""
        module, attribute = self.holders[0]
        return int(module.get_buffer(attribute + BITS))

    @property
    def end(self) -> bool:
        """Whether it is the model's first or last."""
        return any(attribute in module.end_attributes for module, attribute in self.holders)

    @torch.no_grad()
    def quantize(self, bits: int) -> None:
        """Puts the weight on the grids of so many bits with the least squared error."""
        self.step.copy_(fit_weight_steps(self.raw, bits, self.stacked))
        for module, attribute in self.holders:
            module.get_buffer(attribute + BITS).fill_(bits)

    def fit(self) -> bool:
        """Makes steps anew where the weight has lost output channels; whether it had."""
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
        """Makes what is stored exact: fp16 steps and biases, and weights equal to code * step."""
        settle_step(self.step)
        self.raw.copy_(rounded_weight(self.raw, self.step, self.bits) + 0.0)  # a code has no -0
        for module, _ in self.holders:
            for name, parameter in module.named_parameters(recurse=False):
                if "bias" in name:
                    parameter.copy_(parameter.half())


@torch.no_grad()
def settle_step(step: Tensor) -> None:
    """Rounds a step to fp16, unless it was never fitted."""
    if (step > 0).all():
        step.copy_(step.clamp(min=SMALLEST_STEP).half())


def round_weight(weight: Weight, kind: type[RoundedWeights], *, bits: int) -> None:
    """Gives the weight a step and bits, and its module the class `kind`, in place.

    The bits are what is expected; they decide the learning rate of the step alone.
    """
    module, attribute, value = weight.module, weight.attribute, weight.value
    if not isinstance(module, RoundedWeights):
        module.__class__ = kind  # the same parameters, under the same names
        assert isinstance(module, RoundedWeights)
        module.end_attributes = ()
        module.lr_scale = dict(getattr(module, "lr_scale", {}))
    steps = value.new_ones(value.shape[: 1 + weight.stacked])
    module.register_parameter(attribute + STEP, nn.Parameter(steps))
    module.register_buffer(attribute + BITS, value.new_zeros((), dtype=torch.uint8))
    # Where the fitted steps are to be expected: the largest of many values is 4 times the mean
    # magnitude, and 5 after a norm.
    expected = 4 * float(value.detach().abs().mean()) / largest_code(bits)
    module.lr_scale[attribute + STEP] = max(expected, SMALLEST_STEP)


@functools.cache  # one class for all layers of a kind
def rounding(kind: type[Any], attributes: tuple[str, ...]) -> type[RoundedWeights]:
    """The class of modules of this kind whose weights of these names read as rounded."""

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
    """Whether it has both ends: the other stages of a pipeline have other layers to observe."""
    modules = (module for module in model.modules() if isinstance(module, RoundedWeights))
    return sum(len(module.end_attributes) for module in modules) == 2
