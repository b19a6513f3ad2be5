"""A stand-in for a GPU: tensors that say they are on `cuda`, compute on the CPU, and keep a list of
what would be wrong or slow on a real one.

    x.device                   cuda:0, and code takes its GPU path
    operations                 run on the CPU, so control flow and results are real
    a CPU tensor beside one    a fault: a real GPU raises
    .item(), nonzero, .cpu()…  a fault: the host waits for the device
    gpu.read, gpu.synchronize  waits that the code names; they are counted apart

Fake tensors cannot do this: their backward pass on `cuda` asks the driver for a context (torch
2.15), and they have no values for `evaluate`, `finish` and the artefact.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from raybench.hardware import gpu
from raybench.techniques.layers import (
    bit_widths,
    host_numbers,
    quantized_layers,
    rounded_weights,
)
from raybench.training import kernels
from raybench.training.replicated import Replicated
from raybench.training.staged import StageRun

aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense: "reads a number",
    aten.nonzero: "counts on the host",
    aten.masked_select: "counts on the host",
    aten._unique2: "counts on the host",
    aten.bincount: "counts on the host",
    aten.equal: "compares on the host",
    aten.linalg_cholesky_ex: "checks its input",
}
"""Operations for which a GPU's caller waits, of those that raybench could use."""

INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
READING = ("cpu", "tolist", "numpy", "__array__")  # methods that copy to the host
FROM_VALUES = ("tensor", "as_tensor", "new_tensor")  # copies from the host that wait

CUDA = torch.device("cuda", 0)

OF_THE_STAND_IN = ("gpu_stand_in.py", "gpu_workers.py", "hardware/gpu.py", "contextlib.py")


class OnGpu(Tensor):
    """A CPU tensor whose device reads `cuda:0`."""

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _active is not None:
            _active.check(func, args, kwargs)
        with torch._C._DisableTorchDispatch():
            out = func(*args, **kwargs)
        return _on_gpu(out)


def _on_gpu(values: Any) -> Any:
    return tree_map(lambda t: t.as_subclass(OnGpu) if type(t) is Tensor else t, values)


def _plain(tensor: Tensor) -> Tensor:
    with torch._C._DisableTorchDispatch():
        return tensor.detach().as_subclass(Tensor).clone()


@dataclass
class StandIn(TorchFunctionMode):
    """While it is active, `gpu.available()` is true.

    `mixed` are operations that a real GPU would refuse, anywhere in a run; `faults` are waits in
    the steps of an epoch that no name of `gpu` announces; `waits` counts those with a name.
    """

    mixed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    waits: Counter[str] = field(default_factory=Counter)
    stepping: bool = False
    named: int = 0
    """How many named waits, or parts of an epoch between its steps, are running."""

    def __post_init__(self) -> None:
        super().__init__()

    def fault(self, what: str) -> None:
        if self.stepping and not self.named:
            self.faults.append(f"{what} at {_place()}")

    def named_wait(self, name: str) -> None:
        if self.stepping and not self.named:
            self.waits[f"{name} at {_place()}"] += 1

    def check(self, func: Any, args: Any, kwargs: Any) -> None:
        """Adds the faults of one operation with a tensor on the GPU."""
        packet = func.overloadpacket
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        strangers = [t for t in tensors if not isinstance(t, OnGpu) and t.ndim]
        if packet in (aten.copy_, aten._copy_from):
            blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            to_host = not isinstance(args[0], OnGpu)
            if tensors[0:1] and strangers and (to_host or (blocking and not _pinned(args[1]))):
                self.fault("a copy between host and device that waits")
        elif strangers and packet in INDEXING and isinstance(args[0], OnGpu):
            self.fault("an index on the CPU is copied to the GPU")
        elif strangers:
            self.mixed.append(f"{packet.__name__} of a tensor on the CPU at {_place()}")
        if packet in WAITING:
            self.fault(f"{packet.__name__} {WAITING[packet]}")
        elif packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            self.fault("repeat_interleave without output_size counts on the host")
        elif packet in INDEXING:
            masks = [t for t in args[1] if t is not None and t.dtype in (torch.bool, torch.uint8)]
            if masks and not (packet is not aten.index and args[2].ndim == 0):
                self.fault("an index by a mask counts on the host")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        subject = args[0] if args and isinstance(args[0], Tensor) else None
        if name in READING and isinstance(subject, OnGpu):
            self.fault(f".{name}() copies to the host")
            out = _plain(subject)
            return out if name == "cpu" else getattr(out, name)(*args[1:], **kwargs)
        if name == "one_hot":  # on a real GPU it checks nothing on the host
            return _on_gpu(func(*tree_map(_bare, args), **kwargs))
        devices = [d for d in map(_device, tree_leaves((args, kwargs))) if d is not None]
        if name in ("__get__", "device", "type", "_parse_to") or not devices:
            return func(*args, **kwargs)
        there = devices[-1].type == "cuda"
        args, kwargs = tree_map(_as_cpu, (args, kwargs))
        if subject is None or name.startswith("new_"):
            if there and name in FROM_VALUES and args[:1] != ([],):  # no values, no copy
                self.fault(f"{name}() with values from the host waits")
            out = func(*args, **kwargs)
            return _on_gpu(out) if there else out
        if isinstance(subject, OnGpu):
            if there or name != "to":
                return func(*args, **kwargs)
            if kwargs.get("non_blocking"):  # into pinned memory, before its values are there
                self.named_wait("a copy to the host that ends later")
            else:
                self.fault(".to() copies to the host")
            return func(_plain(subject), *args[1:], **kwargs)
        if there and name == "to" and not kwargs.get("non_blocking") and not _pinned(subject):
            self.fault(".to() copies from the host and waits")
        out = func(*args, **kwargs)
        return _on_gpu(out.view_as(out) if out is subject else out) if there else out


class HostAutocast(torch.autocast):
    """Autocast of the CPU, which computes for the stand-in."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


class HostGenerator(torch.Generator):
    """A generator on the CPU, whatever device was asked for."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls)

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()


_active: StandIn | None = None


@contextlib.contextmanager
def stand_in(patch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A GPU that is none, until the context ends."""
    global _active
    watch = StandIn()

    def named(wait: Callable[..., Any], value: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*args: Any) -> Any:
            watch.named_wait(wait.__name__)
            return between(value)(*args)

        return waiting

    def between(call: Callable[..., Any]) -> Callable[..., Any]:
        """A part of an epoch that is not a step: it may wait."""

        def called(*args: Any, **kwargs: Any) -> Any:
            watch.named += 1
            try:
                return call(*args, **kwargs)
            finally:
                watch.named -= 1

        return called

    def of_steps(epoch: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any) -> Any:
            watch.stepping = True
            try:
                return epoch(*args)
            finally:
                watch.stepping = False

        return stepping

    run_backward = torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        with watch:  # a mode is off while it answers `backward`, but hooks need it
            return run_backward(*args, **kwargs)

    enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    with patch.context() as inner:
        inner.setattr(gpu, "available", lambda: True)
        inner.setattr(gpu, "count", lambda: 1)
        inner.setattr(gpu, "name", lambda: "stand-in")
        inner.setattr(gpu, "uuids", list)
        inner.setattr(gpu, "has_bf16", lambda: True)
        inner.setattr(gpu, "synchronize", named(gpu.synchronize, lambda device: None))
        inner.setattr(gpu, "read", named(gpu.read, gpu.read))
        inner.setattr(gpu, "read_all", named(gpu.read_all, gpu.read_all))
        reading = named(host_numbers.read, host_numbers.read)
        for module in (host_numbers, rounded_weights, quantized_layers, bit_widths):
            inner.setattr(module, "read", reading)
        for part in ("_restructure", "epoch"):
            wrapped = of_steps if part == "epoch" else between
            inner.setattr(Replicated, part, wrapped(getattr(Replicated, part)))
        inner.setattr(StageRun, "epoch", of_steps(StageRun.epoch))
        inner.setattr(kernels, "ready", between(kernels.ready))
        for bytes_of in ("allocated_bytes", "peak_bytes", "forget_peak"):
            inner.setattr(gpu, bytes_of, lambda device: 0)
        # A warm-up of zeros would be compiled for the CPU, for a minute.
        inner.setattr(kernels, "compiles", lambda experiment, device: False)
        inner.setattr(torch.cuda, "synchronize", lambda *_: watch.fault("torch.cuda.synchronize"))
        inner.setattr(torch.autograd, "_engine_run_backward", backward)
        inner.setattr(torch, "autocast", HostAutocast)
        inner.setattr(torch, "is_autocast_enabled", lambda kind="cpu": enabled("cpu"))
        inner.setattr(torch, "get_autocast_dtype", lambda kind: dtype("cpu"))
        inner.setattr(torch, "Generator", HostGenerator)
        # `module.cpu()` must make new parameters: writing the old ones' data keeps their class.
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        _active = watch
        try:
            with watch:
                yield watch
        finally:
            _active = None
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def _bare(value: Any) -> Any:
    return _plain(value) if isinstance(value, OnGpu) else value


def _device(value: Any) -> torch.device | None:
    if isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu"):
        return torch.device(value)
    return value if isinstance(value, torch.device) else None


def _as_cpu(value: Any) -> Any:
    device = _device(value)
    return torch.device("cpu") if device is not None and device.type == "cuda" else value


def _pinned(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and not isinstance(tensor, OnGpu) and tensor.is_pinned()


def _place() -> str:
    """The last line outside torch and this file, as `file.py:12`."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if "site-packages" not in frame.filename and not frame.filename.endswith(OF_THE_STAND_IN)
    ]
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
