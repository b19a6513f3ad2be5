"""DDP that sends gradients as products of two thin matrices, with torch's PowerSGD hook.

Vogels et al. 2019, "PowerSGD". The error of a step's approximation is added to the next gradient.
Each worker keeps its own error. Checkpoints do not hold it: a resumed run starts without it.
"""

from __future__ import annotations

import time
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future

from raybench.parallel.ddp import Replicas
from raybench.parallel.exchange import done

RANK = 4
WARMUP = 10  # steps with full gradients, because gradients change direction most at first


class PowerSgd(Replicas):
    """`Replicas` with gradients of rank 4; with one worker nothing is compressed."""

    def wrap(self, model: nn.Module) -> nn.Module:
        if self.workers > 1:
            self._sgd: Any = PowerSGDState(
                None,
                matrix_approximation_rank=RANK,
                start_powerSGD_iter=WARMUP,
            )
            self._whole_numel = self._before = self._after = 0
        return super().wrap(model)

    def reduce(self, bucket: GradBucket) -> Future[Tensor]:
        if self._sgd.iter < WARMUP:
            self._whole_numel += bucket.buffer().numel()
        if not self.exchange.probing:
            return self._reduced(bucket)
        began = time.perf_counter()
        dist.barrier()
        met = time.perf_counter()
        future = self._reduced(bucket)
        self.exchange.waiting_s += met - began
        # Includes the compression's arithmetic, which runs between its reductions.
        self.exchange.communication_s += time.perf_counter() - met
        return future

    def _reduced(self, bucket: GradBucket) -> Future[Tensor]:
        # Wait here: the hook starts its second and third reductions in gloo's threads, and those of
        # two buckets could run in a different order on each worker.
        return done(powerSGD_hook(self._sgd, bucket).wait())

    def beside(self) -> list[Tensor]:
        if self.workers == 1:
            return []
        state = self._sgd
        memories = (state.error_dict, state.p_memory_dict, state.q_memory_dict)
        return [tensor for memory in memories for tensor in memory.values()]

    def sent_bytes_per_step(self, model: nn.Module, steps: int) -> float:
        """Uses torch's own count of the values after compression; resets the counter."""
        if self.workers == 1:
            return 0.0
        after = self._sgd.total_numel_after_compression
        numel = self._whole_numel + after - self._after
        self._whole_numel, self._after = 0, after
        return 2 * (self.workers - 1) / self.workers * 4 * numel / steps
