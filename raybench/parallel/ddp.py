"""Data parallelism: every worker holds the model and trains on its part of the global batch."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Replicas:
    """The workers of this process group, or this process alone where there is none."""

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.workers = dist.get_world_size() if grouped else 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to train: `model` itself, or DDP around it, which averages gradients."""
        if self.workers == 1:
            return model
        # Without broadcast_buffers: a broadcast of every running mean before every forward pass
        # costs more than the gradients of a small network. `average_buffers` is enough.
        with warnings.catch_warnings():
            # Newer torch calls it forward_sync_buffers, which torch 2.11 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(model, broadcast_buffers=False)

    def average_buffers(self, model: nn.Module) -> None:
        """Gives all workers the mean of their batch norms' running statistics."""
        if self.workers > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.workers

    def total(self, values: Tensor) -> Tensor:
        """Sum over all workers."""
        if self.workers > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any worker."""
        return bool(self.total(torch.tensor(float(flag))) > 0) if self.workers > 1 else flag
