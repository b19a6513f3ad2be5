"""Collectives between the workers: sent bytes are counted, and a probed step is timed.

gloo implements reduce-scatter as an all-reduce: for 88 MB over two workers it takes 149 ms, and its
all-gather 79 to 134. Sending each worker its part and receiving in place takes 34 ms and sends the
theoretical amount, (W - 1) / W of the whole. NCCL's own collectives are used as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from raybench.hardware import gpu


class Exchange:
    """The collectives of one process group; every worker must call them in the same order.

    While `probing`, each collective first waits for all workers and then for its own end. This
    separates the time at the barrier (`waiting_s`) from that of the transfer (`communication_s`).
    """

    def __init__(self, rank: int, workers: int, device: torch.device) -> None:
        self.rank, self.workers, self.device = rank, workers, device
        self.sent_bytes = 0
        self.probing = False
        self.waiting_s = self.communication_s = 0.0

    def reduce_scatter(self, part: Tensor, whole: Tensor) -> None:
        """`part` (n,) gets this worker's n values of the mean of all workers' `whole` (W n,)."""
        with self._timed(whole.numel() * whole.element_size()):
            if self.device.type == "cuda":
                dist.reduce_scatter_tensor(part, whole, op=dist.ReduceOp.AVG)
                return
            rows = whole.view(self.workers, -1)
            arrived = torch.empty_like(rows)
            self._swap(rows.unbind(), arrived.unbind())
            self._mean(part, rows[self.rank], arrived)

    def all_gather(self, whole: Tensor, part: Tensor) -> None:
        """`whole` (W n,) gets all workers' `part` (n,), which may be a view into `whole`."""
        with self._timed(whole.numel() * whole.element_size()):
            if self.device.type == "cuda":
                dist.all_gather_into_tensor(whole, part.contiguous())
                return
            rows = whole.view(self.workers, -1).unbind()
            if rows[self.rank].data_ptr() != part.data_ptr():
                rows[self.rank].copy_(part)
            self._swap([rows[self.rank]] * self.workers, rows)

    def all_reduce(self, whole: Tensor) -> Future[Tensor]:
        """The mean over all workers, in place; the future completes with it."""
        whole.div_(self.workers)
        if self.probing:
            with self._timed(2 * whole.numel() * whole.element_size()):
                dist.all_reduce(whole)
            return done(whole)
        self._count(2 * whole.numel() * whole.element_size())
        work = dist.all_reduce(whole, async_op=True)
        assert work is not None
        return work.get_future().then(lambda future: future.value()[0])

    def all_reduce_as(self, whole: Tensor, dtype: torch.dtype) -> None:
        """The mean over all workers, in place: sent as `dtype`, summed in the tensor's dtype."""
        each = -(-whole.numel() // self.workers)
        sent = whole.new_zeros(each * self.workers, dtype=dtype)
        sent[: whole.numel()] = whole
        with self._timed(2 * sent.numel() * sent.element_size()):
            rows = sent.view(self.workers, each)
            arrived = torch.empty_like(rows)
            if self.device.type == "cuda":
                dist.all_to_all_single(arrived, rows)
            else:
                self._swap(rows.unbind(), arrived.unbind())
            mean = whole.new_empty(each)
            self._mean(mean, rows[self.rank], arrived)
            rows[self.rank] = mean
            if self.device.type == "cuda":
                dist.all_gather_into_tensor(sent, rows[self.rank].clone())
            else:
                self._swap([rows[self.rank]] * self.workers, rows.unbind())
        whole.copy_(sent[: whole.numel()])

    def _mean(self, mean: Tensor, own_row: Tensor, arrived: Tensor) -> None:
        mean.copy_(own_row)
        for peer in range(self.workers):
            if peer != self.rank:
                mean += arrived[peer]
        mean /= self.workers

    def _swap(
        self, rows: list[Tensor] | tuple[Tensor, ...], places: list[Tensor] | tuple[Tensor, ...]
    ) -> None:
        """Sends `rows[w]` to each other worker w, and receives its row into `places[w]`."""
        works = []
        for peer in range(self.workers):
            if peer != self.rank:
                works += [dist.isend(rows[peer], peer), dist.irecv(places[peer], peer)]
        for work in works:
            assert work is not None
            work.wait()

    def _count(self, whole_bytes: int) -> None:
        self.sent_bytes += whole_bytes * (self.workers - 1) // self.workers

    @contextmanager
    def _timed(self, whole_bytes: int) -> Iterator[None]:
        self._count(whole_bytes)
        if not self.probing:
            yield
            return
        began = self._now()
        dist.barrier()
        met = self._now()
        yield
        self.waiting_s += met - began
        self.communication_s += self._now() - met

    def _now(self) -> float:
        gpu.synchronize(self.device)
        return time.perf_counter()


def done(tensor: Tensor) -> Future[Tensor]:
    """A completed future, which a DDP hook must return."""
    future: Future[Tensor] = Future(devices=[tensor.device] if tensor.is_cuda else None)
    future.set_result(tensor)
    return future
