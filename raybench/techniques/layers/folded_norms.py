"""Batch norms folded into two fp16 numbers a channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@torch.no_grad()
def fold(norm: Norm) -> None:
    """Two fp16 numbers a channel, the same in value to their rounding: y = weight * x + bias.

    The running statistics become 0 and 1 - eps, which say nothing any more, so that a file need
    not hold them.
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
    """The fp32 number that is 1 with `eps` added in fp32, or as near as one goes."""
    guess = torch.tensor(1 - eps, dtype=like.dtype)
    near = torch.stack([guess, *(torch.nextafter(guess, guess + way) for way in (-1, 1))])
    return near[(near + eps - 1).abs().argmin()]
