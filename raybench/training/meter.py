"""The cost of a run's steps: samples per second, the parts of a step's time, memory by kind.

    epoch   │ step 1 │ step 2 │ step 3 … │ last step │
               └ activations counted        └ probed: transfers wait for all workers and are timed
                  └──────── samples_per_s ────┘

In a probed step nothing is sent during computation. Its parts add up to its time, which may be
longer than that of other steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raybench.hardware import gpu
from raybench.parallel.ddp import Replicas
from raybench.parallel.memory import Activations, held
from raybench.training import measure

WARM = 2  # untimed first steps: kernels are chosen, the optimizer allocates its averages


class Meter:
    """Watches the steps of one run in this worker; every worker has one."""

    def __init__(self, replicas: Replicas, device: torch.device) -> None:
        self.replicas, self.device = replicas, device
        self.columns: dict[str, Any] = {"workers_used": replicas.workers}
        self._taken = 0  # steps since the run began
        measure.forget_peak(device)
        self._start = measure.memory_now_bytes(device)

    def epoch(self, steps: int, batch: int) -> None:
        """Begins an epoch of `steps` steps with `batch` samples each."""
        self._steps, self._batch, self._step = steps, batch, 0
        self._first = min(max(0, WARM - self._taken), steps - 1)
        self._since = 0.0

    @contextmanager
    def forward(self, x: Tensor) -> Iterator[None]:
        """The context of the forward pass of `x`, which begins a step."""
        if self._step == self._first:
            self._since = self._now()
        self._step += 1
        if self._step == self._steps:
            self._probe()
        if self._taken == 0:
            activations = Activations(x)
            with activations:
                yield
            self.columns["activations_bytes"] = activations.bytes
        else:
            yield

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Call it after the optimizer's step."""
        self._taken += 1
        if self._step < self._steps:
            return
        exchange, seconds = self.replicas.exchange, self._now() - self._since
        exchange.probing = False
        exchange_s = exchange.waiting_s + exchange.communication_s
        self.columns |= {
            "compute_s": seconds - exchange_s,
            "communication_s": exchange.communication_s,
            "waiting_s": exchange.waiting_s,
            **held(model, optimizer, self.replicas.beside()),
            "peak_above_start_bytes": max(0, measure.peak_memory_bytes(self.device) - self._start),
        }
        if self._steps == 1:  # the probed step is the only one
            self.columns["samples_per_s"] = self._batch / seconds

    def _probe(self) -> None:
        timed = self._steps - 1 - self._first
        if timed > 0:
            seconds = self._now() - self._since
            self.columns["samples_per_s"] = timed * self._batch / seconds
        exchange = self.replicas.exchange
        exchange.waiting_s = exchange.communication_s = 0.0
        if self.replicas.workers > 1:
            dist.barrier()  # a lag from earlier steps must not count in this one
            exchange.probing = True
        self._since = self._now()

    def _now(self) -> float:
        gpu.synchronize(self.device)
        return time.perf_counter()
