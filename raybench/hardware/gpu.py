"""The GPU: every call to `torch.cuda` in raybench is one of these functions.

One module, so that tests without a GPU can replace it, and so that every wait for the device is
explicit: `synchronize` before a clock is read, `read` for a number that the host needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

VISIBLE = "CUDA_VISIBLE_DEVICES"


def hide() -> None:
    """Hides all GPUs from this process and its child processes."""
    os.environ[VISIBLE] = ""


@contextmanager
def hidden(whether: bool) -> Iterator[None]:
    """Hides all GPUs in this context if `whether` is true."""
    before = os.environ.get(VISIBLE)
    if whether:
        hide()
    try:
        yield
    finally:
        if whether and before is None:
            os.environ.pop(VISIBLE, None)
        elif whether and before is not None:
            os.environ[VISIBLE] = before


def available() -> bool:
    # torch queries the driver once, perhaps before the GPUs were hidden.
    return os.environ.get(VISIBLE) != "" and torch.cuda.is_available()


def count() -> int:
    return torch.cuda.device_count() if available() else 0


def name() -> str:
    """The GPU's name; empty without one."""
    return torch.cuda.get_device_name() if available() else ""


def uuids() -> list[str]:
    """The UUIDs of the GPUs that this process may use, in NVML's format."""
    numbers = range(count() if available() else 0)
    return [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in numbers]


def pick() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if available() else "cpu")


def has_bf16() -> bool:
    """Whether the GPU supports bf16 natively."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def synchronize(device: torch.device) -> None:
    """Waits for all pending work of the GPU; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read(number: Tensor) -> float:
    """The value of a tensor with one element. It waits for the device, so a training loop calls it
    only every few dozen steps."""
    return float(number)


def read_all(numbers: Tensor) -> list[Any]:
    """The values of a tensor as nested lists. It waits for the device like `read`."""
    values: list[Any] = numbers.tolist()
    return values


def allocated_bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device)


def peak_bytes(device: torch.device) -> int:
    """The allocator's peak since `forget_peak`."""
    return torch.cuda.max_memory_allocated(device)


def forget_peak(device: torch.device) -> None:
    torch.cuda.reset_peak_memory_stats(device)


def release() -> None:
    """Releases the allocator's cached memory that no tensor uses."""
    if available():
        torch.cuda.empty_cache()
