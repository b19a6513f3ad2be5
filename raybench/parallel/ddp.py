"""Data parallelism: every worker holds the model and trains on its part of the global batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from raybench.hardware import gpu
from raybench.parallel.exchange import Exchange


class Replicas:
    """The workers of this process group, or this process alone if there is no group."""

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        self.workers = dist.get_world_size() if grouped else 1
        # The device of everything else that is exchanged: NCCL cannot send CPU tensors.
        on_gpu = grouped and dist.get_backend() == "nccl"
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.exchange = Exchange(self.rank, self.workers, self.device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to train: `model` itself, or DDP around it, which averages gradients."""
        if self.workers == 1:
            return model
        # No broadcast_buffers: broadcasting every running mean before every forward pass costs
        # more than the gradients of a small network. `average_buffers` is enough.
        with warnings.catch_warnings():
            # Newer torch calls it forward_sync_buffers, which torch 2.11 does not know.
            warnings.simplefilter("ignore", FutureWarning)
            # Gradients are views of DDP's buckets; otherwise a worker would hold them twice.
            wrapped = DistributedDataParallel(
                model, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        wrapped.register_comm_hook(self, lambda replicas, bucket: replicas.reduce(bucket))
        return wrapped

    def reduce(self, bucket: GradBucket) -> Future[Tensor]:
        """Replaces DDP's reduction of a bucket: gradients become their mean over all workers."""
        return self.exchange.all_reduce(bucket.buffer())

    def spread(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The wrapped model's optimizer, changed in place so that it updates this worker's part."""
        return optimizer

    def average_buffers(self, model: nn.Module, memories: Iterable[dict[str, Tensor]] = ()) -> None:
        """Gives all workers the mean of their batch norms' running statistics.

        Values under the same names in a memory, such as EMA's averages, get the mean too.
        """
        if self.workers == 1:
            return
        buffers = {n: b for n, b in model.named_buffers() if b.is_floating_point()}
        for values in (buffers, *memories):
            for name in buffers:
                if name in values:
                    dist.all_reduce(values[name])
                    values[name] /= self.workers

    def whole_memory(self, model: nn.Module, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        """A technique's memory as a single process would have it. Every worker must call it."""
        return memory

    def part_memory(self, model: nn.Module, memory: dict[str, Tensor]) -> dict[str, Tensor]:
        """This worker's part of the memory that a single process would have."""
        return memory

    def total(self, values: Tensor) -> Tensor:
        """Sum over all workers."""
        if self.workers > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any worker."""
        if self.workers == 1:
            return flag
        flags = torch.tensor(float(flag)).to(self.device, non_blocking=True)
        return gpu.read(self.total(flags)) > 0

    def whole(self, model: nn.Module) -> nn.Module:
        """The model as a single process would have it: here this worker's model, not a copy."""
        return model

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state from which training resumes; the same on every worker."""
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def load(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Resumes from a `state`, with any number of workers."""
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        # The state may have another memory format, and fused kernels pair values by memory order.
        for parameter, moments in optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter).copy_(value)

    def reduced(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters whose gradients DDP averages."""
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def sent_bytes_per_step(self, model: nn.Module, steps: int) -> float:
        """Bytes that a worker sends in each of the epoch's `steps`, mean over the workers.

        Gradients are counted as in a ring all-reduce: every worker sends 2 (W - 1) / W of them.
        """
        gradients = sum(p.numel() * p.element_size() for p in self.reduced(model))
        return 2 * (self.workers - 1) / self.workers * gradients

    def counted_bytes_per_step(self, steps: int) -> float:
        """Bytes per step that the exchange counted, mean over the workers; resets the counter."""
        counted = torch.tensor(float(self.exchange.sent_bytes), dtype=torch.float64)
        self.exchange.sent_bytes = 0
        sent = self.total(counted.to(self.device, non_blocking=True))
        return gpu.read(sent) / (self.workers * steps)

    def beside(self) -> list[Tensor]:
        """Tensors that the strategy holds besides the model and its optimizer."""
        return []
