"""Batch norm when a batch comes in chunks.

Each chunk is normalised by its own statistics: those of the whole batch are known only after all of
its chunks have passed all earlier layers. Only the running statistics, which evaluation uses, can
be corrected: M chunks update them M times per step, and M updates with momentum m weigh as much as
one with 1 - (1 - m)^M (0.34 for m = 0.1 and 4 chunks).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Mode = Literal["corrected", "deferred", "per_chunk"]


def prepare(model: nn.Module, mode: Mode, chunks: int) -> None:
    """Changes the model's batch norms in place; names and values in `state_dict` stay the same.

    corrected: the momentum is reduced so that the updates of `chunks` chunks weigh as much as one.
    deferred: statistics are gathered over the chunks, and `commit` applies them once per step.
    per_chunk: nothing changes.

    Raises:
        ValueError: the mode is deferred, and a batch norm is not an `nn.BatchNorm2d`.
    """
    if mode == "corrected":
        correct_momentum(model, chunks)
    elif mode == "deferred":
        defer(model)


def correct_momentum(model: nn.Module, chunks: int) -> None:
    """Momentum m becomes 1 - (1 - m)^(1/chunks): after all chunks the old value weighs 1 - m again.

    A batch norm without momentum already weighs all chunks equally.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.momentum is not None:
            module.momentum = 1 - (1 - module.momentum) ** (1 / chunks)


def defer(model: nn.Module) -> None:
    """Makes every batch norm a `Deferred` one, in place."""
    for name, module in model.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = Deferred  # parameters, buffers and their names stay
        elif isinstance(module, _BatchNorm) and not isinstance(module, Deferred):
            raise ValueError(
                f"batch_norm 'deferred' does not support {name}, a {type(module).__name__}: "
                "use 'corrected'"
            )


def commit(model: nn.Module) -> None:
    """Updates the running statistics once, from all chunks since the last update."""
    for module in model.modules():
        if isinstance(module, Deferred):
            module.commit()


class Deferred(nn.BatchNorm2d):
    """Normalises a chunk as any batch norm does, and keeps its statistics until `commit`."""

    count: int = 0
    mean: Tensor
    squares: Tensor  # sum of squared distances from the mean

    def forward(self, x_BCHW: Tensor) -> Tensor:
        at_rest = self.momentum == 0  # a checkpointed block recomputes this chunk
        if not self.training or at_rest or self.running_mean is None or self.running_var is None:
            return super().forward(x_BCHW)
        # With a momentum of 1 the kernel leaves the chunk's own statistics in these two.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y_BCHW = F.batch_norm(x_BCHW, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        self._gather(x_BCHW.numel() // x_BCHW.shape[1], mean, variance)
        return y_BCHW

    def _gather(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Adds a chunk's statistics (Chan et al. 1979); `variance` is the unbiased one."""
        mean, squares = mean.double(), variance.double() * (count - 1)
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            return
        delta, share = mean - self.mean, count / (self.count + count)
        self.squares += squares + delta**2 * (self.count * share)
        self.mean += delta * share
        self.count += count

    def commit(self) -> None:
        if self.count == 0:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:  # the mean over all batches
            momentum = 1 / float(self.num_batches_tracked)
        variance = self.squares / (self.count - 1)
        self.running_mean.lerp_(self.mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)
        self.count = 0
