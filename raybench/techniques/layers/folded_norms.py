"""Batch norms folded into two fp16 numbers per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@torch.no_grad()
def fold(norm: Norm) -> None:
    """Folds a batch norm into two fp16 numbers per channel: y = weight * x + bias, up to rounding.

    The running statistics become the constants 0 and 1 - eps, so a file need not hold them.
    """
    mean, var, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or var is None or batches is None or not norm.affine:
        return
    scale = norm.weight * (var.double() + norm.eps).rsqrt()
    norm.bias.copy_((norm.bias - mean * scale).half())
    norm.weight.copy_(scale.half())
    mean.zero_()
    var.copy_(_one_less(norm.eps, var))
    batches.zero_()


def _one_less(eps: float, like: Tensor) -> Tensor:
    """The fp32 number that gives 1 when `eps` is added in fp32, or the nearest such number."""
    guess = torch.tensor(1 - eps, dtype=like.dtype)
    near = torch.stack([guess, *(torch.nextafter(guess, guess + way) for way in (-1, 1))])
    return near[(near + eps - 1).abs().argmin()]
