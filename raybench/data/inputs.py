"""A trained model's inputs and class names: all that serving it needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHANNELS = "RGB"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Square RGB images of this size; mean and deviation per channel, in units of 0 to 255."""

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int

    def normalized(self, pixels_BHWC: Tensor) -> Tensor:
        """(B, size, size, 3) of uint8 -> (B, 3, size, size) as in training."""
        scale, shift = scale_and_shift(self.mean, self.std)
        return pixels_BHWC.float().mul_(scale).add_(shift).permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        return {
            "class_names": list(self.class_names),
            "mean": list(self.mean),
            "std": list(self.std),
            "image_size": self.image_size,
            "channels": CHANNELS,
        }


def from_dict(values: dict[str, Any]) -> Inputs:
    """The inverse of `to_dict`. Raises ValueError if the values have another format."""
    expected = {"class_names", "mean", "std", "image_size", "channels"}
    if not isinstance(values, dict) or set(values) != expected:
        raise ValueError(f"the model's inputs are described by {', '.join(sorted(expected))}")
    names, size = values["class_names"], values["image_size"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError("class_names is not a list of names")
    for name in ("mean", "std"):
        numbers = values[name]
        if not isinstance(numbers, list) or len(numbers) != len(CHANNELS):
            raise ValueError(f"{name} is not a list of {len(CHANNELS)} numbers")
        if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            raise ValueError(f"{name} is {numbers}: finite numbers")
    if min(values["std"]) <= 0:
        raise ValueError(f"std is {values['std']}: above 0")
    if type(size) is not int or size < 1:
        raise ValueError(f"image_size is {size!r}: a number from 1 on")
    if values["channels"] != CHANNELS:
        raise ValueError(f"channels is {values['channels']!r}: {CHANNELS}")
    mean, std = tuple(values["mean"]), tuple(values["std"])
    return Inputs(class_names=tuple(names), mean=mean, std=std, image_size=size)


def scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and shift (3,) in fp32: pixels times scale plus shift are normalized.

    Training and all exported graphs use this definition, so that they agree to the bit.
    """
    mean_C, std_C = torch.tensor(mean), torch.tensor(std)
    scale_C, shift_C = 1 / std_C, -mean_C / std_C
    return scale_C.to(device, non_blocking=True), shift_C.to(device, non_blocking=True)
