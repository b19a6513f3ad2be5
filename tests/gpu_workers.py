"""A group of two workers beside the stand-in for a GPU: this process is the first, and every
collective returns at once.

    DDP      a bucket for each parameter, in Python; torch's own makes its buckets in C++, where
             the stand-in's tensors are on the CPU
    FSDP2    torch's own, on a mesh of `cuda`; its streams and events do nothing, but waiting for
             an event on the host is counted
    PowerSGD torch's own hook, which believes that there is a GPU and waits for it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpu_stand_in import StandIn
from torch import Tensor, nn
from torch.distributed import device_mesh
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.fsdp._fully_shard import (
    _fsdp_collectives,
    _fsdp_init,
    _fsdp_param_group,
    _fsdp_state,
)
from torch.testing._internal.distributed.fake_pg import FakeStore

from raybench.parallel import ddp, exchange, zero3


class DoneFuture:
    """A future with its result; torch's own asks the driver for the tensors' streams."""

    def __init__(self, devices: Any = None) -> None:
        self._result: Any = None

    def set_result(self, result: Any) -> None:
        self._result = result

    def value(self) -> Any:
        return self._result

    wait = value

    def then(self, call: Callable[[Any], Any]) -> DoneFuture:
        after = DoneFuture()
        after.set_result(call(self))
        return after


def all_reduce(tensor: Tensor, *_: Any, async_op: bool = False, **__: Any) -> Any:
    """The reduction of the fake group, whose own work has no result."""
    future = DoneFuture()
    future.set_result([tensor])
    return SimpleNamespace(get_future=lambda: future) if async_op else None


class OneBucketEach(nn.Module):
    """DDP with a bucket for each parameter."""

    def __init__(self, module: nn.Module, **_: Any) -> None:
        super().__init__()
        self.module = module

    def register_comm_hook(self, state: Any, hook: Callable[..., Any]) -> None:
        parameters = list(self.module.parameters())
        for index, parameter in enumerate(parameters):
            last = index == len(parameters) - 1
            parameter.register_post_accumulate_grad_hook(self._reducing(state, hook, index, last))

    def _reducing(
        self, state: Any, hook: Callable[..., Any], index: int, last: bool
    ) -> Callable[[Tensor], None]:
        def reduce(parameter: Tensor) -> None:
            assert parameter.grad is not None
            flat = parameter.grad.flatten()
            bucket = SimpleNamespace(
                buffer=lambda: flat,
                gradients=lambda: [flat.view(parameter.shape)],
                index=lambda: index,
                is_last=lambda: last,
            )
            mean = hook(state, bucket).value()
            parameter.grad.copy_(mean.view_as(parameter.grad))

        return reduce

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class Event:
    """An event that has happened; waiting for it on the host is counted."""

    def __init__(self, watch: StandIn) -> None:
        self.watch = watch

    def record(self, *_: Any) -> Event:
        return self

    def wait(self, *_: Any) -> None:
        """The stream waits, not the host."""

    def synchronize(self) -> None:
        self.watch.named_wait("Event.synchronize")


class Stream:
    """A stream on which all is done already; waiting for it on the host is counted."""

    stream_id, device_index, device_type = 0, 0, 1

    def __init__(self, watch: StandIn) -> None:
        self.watch = watch

    def wait_event(self, event: Event) -> None:
        """The stream waits, not the host."""

    wait_stream = wait_event

    def record_event(self, *_: Any) -> Event:
        return Event(self.watch)

    def synchronize(self) -> None:
        self.watch.named_wait("Stream.synchronize")


class Handle:
    """`torch.cuda`, as far as FSDP2 and a mesh use it."""

    def __init__(self, watch: StandIn) -> None:
        stream = Stream(watch)
        self.Event = lambda *_, **__: Event(watch)
        self.Stream = lambda *_, **__: stream
        self.current_stream = lambda *_: stream
        self.stream = lambda _: nullcontext()
        self.current_device = lambda: 0
        self.device_count = lambda: 2
        self.set_device = lambda _: None
        self.is_available = self.is_initialized = lambda: True


class _BelievesInGpu:
    """The module torch, with a GPU: for `powerSGD_hook`, which waits for one if it is there."""

    def __init__(self, watch: StandIn) -> None:
        self.cuda = SimpleNamespace(
            is_available=lambda: True, synchronize=lambda _: watch.named_wait("synchronize")
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def two_workers(patch: pytest.MonkeyPatch, watch: StandIn) -> Iterator[None]:
    """This process as the first of two; inside the stand-in's context."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    handle = Handle(watch)
    pinned: set[int] = set()  # addresses; pinning itself asks the driver

    def pin(tensor: Tensor) -> Tensor:
        pinned.add(tensor.untyped_storage().data_ptr())
        return tensor

    try:
        with patch.context() as inner:
            inner.setattr(dist, "get_backend", lambda *_: "nccl")
            inner.setattr(dist, "all_reduce", all_reduce)
            inner.setattr(dist, "broadcast", lambda *_, **__: None)
            inner.setattr(dist, "barrier", lambda *_: None)
            inner.setattr(exchange, "Future", DoneFuture)
            inner.setattr(ddp, "DistributedDataParallel", OneBucketEach)
            inner.setattr(powerSGD_hook, "torch", _BelievesInGpu(watch))
            for module in (
                device_mesh,
                _fsdp_collectives,
                _fsdp_init,
                _fsdp_param_group,
                _fsdp_state,
            ):
                inner.setattr(module, "_get_device_handle", lambda *_: handle)
            inner.setattr(Tensor, "pin_memory", pin)
            inner.setattr(
                Tensor, "is_pinned", lambda t, *_: t.untyped_storage().data_ptr() in pinned
            )
            # On a GPU's machine the class itself pins.
            inner.setattr(zero3.Zero3Offload, "policy", CPUOffloadPolicy(pin_memory=True))
            yield
    finally:
        dist.destroy_process_group()
