"""Weights on an integer grid: `X.weight` is code times `X.weight_step`, a step a channel or one.

The three keys `X.weight`, `X.weight_step` and `X.weight_bits` of a state_dict are all that is
known of quantization here. `bits` of 2 to 8 allow codes from -(2^(bits-1) - 1) to 2^(bits-1) - 1,
and 0 says that the layer is not quantized.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WEIGHT, STEP, BITS = ".weight", ".weight_step", ".weight_bits"

Tensors = Mapping[str, Tensor]


def is_quantized(names: Tensors) -> bool:
    """Whether a state_dict has layers that can lie on a grid."""
    return any(name.endswith(BITS) for name in names)


def bits(name: str, tensors: Tensors) -> int:
    """The bits of a quantized weight, 0 of every other tensor.

    Raises:
        ValueError: bits that no grid has.
    """
    known = tensors.get(name.removesuffix(WEIGHT) + BITS)
    if not name.endswith(WEIGHT) or known is None:
        return 0
    found = int(known)
    if found != 0 and not 2 <= found <= 8:
        raise ValueError(f"{name} has {found} bits: 2 to 8, or 0 for none")
    return found


def largest_code(name: str, tensors: Tensors) -> int:
    """The largest code that the layer's bits allow, 0 where there are none. Raises ValueError."""
    found = bits(name, tensors)
    return 2 ** (found - 1) - 1 if found else 0


def codes(name: str, tensors: Tensors) -> NDArray[np.intp] | None:
    """The codes of a weight, each plus the largest code; None where a bit of it would be lost."""
    largest, weight = largest_code(name, tensors), tensors[name]
    if not largest or weight.dtype != torch.float32 or not weight.numel():
        return None
    steps = _steps(name, tensors)
    found = (weight / steps).round()
    # NaN compares false. The product is compared bit by bit: a -0.0 is no code times a step.
    if not bool((found.abs() <= largest).all()):
        return None
    shifted = found.to(torch.int16).contiguous().numpy().ravel().astype(np.intp) + largest
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
    """(out, 1, …), or (1, 1, …) where the whole layer has one."""
    shape, steps = tensors[name].shape, tensors[name.removesuffix(WEIGHT) + STEP]
    if steps.dtype != torch.float32 or steps.numel() not in (1, shape[0] if shape else 1):
        raise ValueError(f"{name} has {steps.numel()} steps of {steps.dtype}: one a channel, fp32")
    return steps.reshape(-1, *(1 for _ in shape[1:]))
