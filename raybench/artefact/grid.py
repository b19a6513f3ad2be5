"""Weights on an integer grid: `X` is code times `X_step`, with one step per channel or tensor.

This module uses only the three keys `X`, `X_step` and `X_bits` of a quantized state_dict;
X is for example `conv1.weight`, `mlp.experts.weight1` or `attn.qkv.factor2`. Steps are (O,) for
weights (O, …), and (E, O) for stacked weights (E, O, …). `bits` of 2 to 8 allow codes from
-(2^(bits-1) - 1) to 2^(bits-1) - 1; 0 means that the weight is not quantized.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEP, BITS = "_step", "_bits"  # suffixes of a weight's name
INPUT = ("input_step", "input_zero_point", "input_bits")  # of a layer; no weight has this name

Tensors = Mapping[str, Tensor]


def is_quantized(names: Tensors) -> bool:
    """Whether a state_dict has weights that can lie on a grid."""
    return any(name + BITS in names for name in names)


def added(names: Tensors) -> set[str]:
    """The names that quantization adds to a state_dict."""
    beside = {name + suffix for name in names if name + BITS in names for suffix in (STEP, BITS)}
    return beside | {name for name in names if name.rpartition(".")[2] in INPUT}


def bits(name: str, tensors: Tensors) -> int:
    """The bits of a quantized weight; 0 for every other tensor.

    Raises:
        ValueError: the number of bits is invalid.
    """
    stored = tensors.get(name + BITS)
    if stored is None:
        return 0
    number = int(stored)
    if number != 0 and not 2 <= number <= 8:
        raise ValueError(f"{name} has {number} bits: 2 to 8, or 0 for none")
    return number


def largest_code(name: str, tensors: Tensors) -> int:
    """The largest code that the layer's bits allow; 0 without bits. Raises ValueError."""
    width = bits(name, tensors)
    return 2 ** (width - 1) - 1 if width else 0


def codes(name: str, tensors: Tensors) -> NDArray[np.intp] | None:
    """The codes of a weight, each plus the largest code; None if they are not lossless."""
    largest, weight = largest_code(name, tensors), tensors[name]
    if not largest or weight.dtype != torch.float32 or not weight.numel():
        return None
    steps = _steps(name, tensors)
    rounded = (weight / steps).round()
    # NaN compares false. The product is compared bit by bit: no code times a step gives -0.0.
    if not bool((rounded.abs() <= largest).all()):
        return None
    shifted = rounded.to(torch.int16).contiguous().numpy().ravel().astype(np.intp) + largest
    again = weights(shifted, name, tensors, weight.shape)
    same = torch.equal(again.view(torch.int32), weight.contiguous().view(torch.int32))
    return shifted if same else None


def weights(shifted: NDArray[np.integer], name: str, tensors: Tensors, shape: torch.Size) -> Tensor:
    """The weight of these codes, in fp32.

    Raises:
        ValueError: the steps do not fit the shape.
    """
    signed = torch.from_numpy(shifted.astype(np.int16) - largest_code(name, tensors)).view(shape)
    steps = _steps(name, tensors)
    if steps.ndim != len(shape):
        raise ValueError(f"the steps of {name} do not fit its shape {tuple(shape)}")
    return signed.float() * steps


def _steps(name: str, tensors: Tensors) -> Tensor:
    """(O, 1, …) or (E, O, 1, …), or (1, 1, …) if the whole weight has one step."""
    shape, steps = tensors[name].shape, tensors[name + STEP]
    fits = steps.numel() == 1 or steps.shape == shape[: max(1, steps.ndim)]
    if steps.dtype != torch.float32 or not fits:
        raise ValueError(
            f"{name} has steps {tuple(steps.shape)} of {steps.dtype}: one per channel, in fp32"
        )
    leading = steps.shape if steps.numel() > 1 else (1,)
    return steps.reshape(*leading, *(1 for _ in shape[len(leading) :]))
