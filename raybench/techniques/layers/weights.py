"""Weights: lists every weight of a model on which a technique may act.

    kind            shape                    layers
    convolution     (O, I / groups, …)       nn.Conv1d to Conv3d and their subclasses
    standardized    (O, I / groups, …)       convolutions that standardize their weight in forward
    linear          (O, I)                   nn.Linear and its subclasses
    attention       (3 D, D), (D, K)         the input projections of nn.MultiheadAttention
    recurrent       (4 H, I)                 nn.LSTM, nn.GRU, nn.RNN
    experts         (E, O, I)                Experts: one matrix per expert
    monarch         (n, O, I)                MonarchLinear: one matrix per block
    low_rank        (O, I)                   LowRankLinear

A weight that several layers share is listed once, under its first name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

Kind = Literal[
    "convolution",
    "standardized",
    "linear",
    "attention",
    "recurrent",
    "experts",
    "monarch",
    "low_rank",
]

STANDARDIZED = ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
"""timm's convolutions that give their weight a mean of 0 and a variance of 1 in each forward pass,
so a zero in the parameter is not a zero in the applied weight."""


@dataclass(frozen=True)
class Weight:
    """One weight of a model."""

    name: str
    """Name of the parameter, as in `named_parameters()`: blocks.0.attn.qkv.weight."""
    layer: str
    """Path of the module that holds it."""
    module: nn.Module
    attribute: str
    """Name of the parameter in the module."""
    kind: Kind

    @property
    def value(self) -> nn.Parameter:
        """The parameter itself, even if reading the attribute returns a computed value."""
        parameter = self.module._parameters[self.attribute]
        assert parameter is not None
        return parameter

    @property
    def stacked(self) -> int:
        """Leading axes that number separate matrices: 1 for experts and Monarch factors."""
        return 1 if self.kind in ("experts", "monarch") else 0


def weights(model: nn.Module) -> list[Weight]:
    """The model's weights in the order of its modules, each once."""
    listed: dict[int, Weight] = {}
    for path, module in model.named_modules():
        for attribute, kind in _of(module):
            parameter = module._parameters.get(attribute)
            if parameter is not None and id(parameter) not in listed:
                name = f"{path}.{attribute}" if path else attribute
                listed[id(parameter)] = Weight(name, path, module, attribute, kind)
    return list(listed.values())


def coverage(model: nn.Module, names: list[str]) -> float:
    """Share of the model's values that are in the parameters with these names, from 0 to 1."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(sizes[name] for name in set(names)) / max(1, sum(sizes.values()))


def _of(module: nn.Module) -> list[tuple[str, Kind]]:
    """The weights of one module, without its children's."""
    names = {kind.__name__ for kind in type(module).__mro__}
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        standardized = any(name in names for name in STANDARDIZED)
        return [("weight", "standardized" if standardized else "convolution")]
    if isinstance(module, nn.Linear):
        return [("weight", "linear")]
    if isinstance(module, nn.MultiheadAttention):
        parts = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return [(part, "attention") for part in parts]
    if isinstance(module, nn.RNNBase):
        return [(n, "recurrent") for n in module._parameters if n.startswith("weight_")]
    # Our own layers by name, because their files import this package.
    if "Experts" in names:
        return [("weight1", "experts"), ("weight2", "experts")]
    if "MonarchLinear" in names:
        return [("factor1", "monarch"), ("factor2", "monarch")]
    if "LowRankLinear" in names:
        return [("factor1", "low_rank"), ("factor2", "low_rank")]
    return []
