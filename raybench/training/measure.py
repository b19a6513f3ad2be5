"""Measurements of a run: a clock, counts of the model, and the machine's fingerprint."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import platform
import resource
import subprocess
import sys
import time
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from raybench.hardware import gpu
from raybench.hardware.versions import versions

CPU_FEATURES = ("avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")


class Stopwatch:
    """Sums the seconds between `start` and `stop`; waits for a GPU before it reads the clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self._since = 0.0

    def start(self) -> None:
        self._since = self._now()

    def stop(self) -> None:
        self.seconds += self._now() - self._since

    def _now(self) -> float:
        gpu.synchronize(self.device)
        return time.perf_counter()


def pick_device() -> torch.device:
    return gpu.pick()


def pick_dtype(
    precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> tuple[torch.dtype, str]:
    """The dtype of the forward pass, and the reason in words. Raises ValueError: fp16 on a CPU."""
    if precision == "fp16":
        if device.type != "cuda":
            raise ValueError("recipe.precision fp16 is for GPUs; on a CPU use bf16")
        return torch.float16, "as requested"
    if precision != "auto":
        return (torch.bfloat16 if precision == "bf16" else torch.float32), "as requested"
    if device.type == "cuda":
        if gpu.has_bf16():
            return torch.bfloat16, "the GPU has bf16"
        return torch.float32, "the GPU has no bf16"
    return cpu_dtype(cpu_features(), processor_vendor())


def cpu_dtype(features: frozenset[str], vendor: str) -> tuple[torch.dtype, str]:
    """The faster of bf16 and fp32 on a processor, and the reason in words.

    Emulated bf16 is slower than fp32, so the processor must have the instructions. Intel's cores
    have one unit for AVX-512's bf16 products and two for fp32, so only AMX is faster there: on a
    Xeon without AMX, bf16 took 1.42 times as long as fp32 for ResNet-20, 1.45 for ResNet-18 and
    1.03 for MobileNetV2 (medians of five interleaved steps). AMD's Zen 4 is twice as fast in bf16.
    """
    if "amx_bf16" in features:
        return torch.bfloat16, "the CPU has amx_bf16"
    if "avx512_bf16" not in features:
        return torch.float32, "the CPU has neither avx512_bf16 nor amx_bf16"
    if vendor == "GenuineIntel":
        return torch.float32, "Intel's avx512_bf16 without amx_bf16 is slower than fp32"
    return torch.bfloat16, "the CPU has avx512_bf16"


@cache
def processor_vendor() -> str:
    """The processor's `vendor_id`, such as AuthenticAMD (on Linux; elsewhere empty)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return ""
    lines = cpuinfo.read_text().splitlines()
    return next((li.split(":")[1].strip() for li in lines if li.startswith("vendor_id")), "")


@cache
def cpu_features() -> frozenset[str]:
    """The `CPU_FEATURES` that this processor has (on Linux; elsewhere none are known)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return frozenset()
    flags = next((li for li in cpuinfo.read_text().splitlines() if li.startswith("flags")), "")
    return frozenset(CPU_FEATURES) & set(flags.split())


def torch_save_bytes(model: nn.Module) -> int:
    """The size of the model's state_dict as `torch.save` writes it, the baseline for file sizes."""
    file = BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, image_size: int) -> int:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two.

    torch counts the operations that run. A pruned weight counts like any other, because dense
    kernels multiply by its zero.
    """
    grouped = {torch.ops.aten._grouped_mm: _grouped_mm_flops}  # torch has no rule for it
    counter = FlopCounterMode(display=False, custom_mapping=grouped)
    probe = copy.deepcopy(model).cpu().float().eval()
    with counter, torch.inference_mode():
        probe(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops()


def _grouped_mm_flops(rows: tuple[int, int], weights: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Operations of (R, K) times (E, K, N), where each row is multiplied by one of the matrices."""
    return 2 * rows[0] * rows[1] * weights[-1]


def peak_memory_bytes(device: torch.device) -> int:
    """The allocator's peak on a GPU, the process's largest resident size on a CPU."""
    if device.type == "cuda":
        return gpu.peak_bytes(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: a child inherits its parent's value from the time of its start.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak(device: torch.device) -> None:
    """Resets `peak_memory_bytes`, because a process runs one trial after another."""
    if device.type == "cuda":
        gpu.forget_peak(device)
        return
    with contextlib.suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5")


def memory_now_bytes(device: torch.device) -> int:
    """Allocated memory on a GPU; on a CPU the resident size (its peak, except on Linux)."""
    if device.type == "cuda":
        return gpu.allocated_bytes(device)
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return peak_memory_bytes(device)
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@cache
def machine() -> dict[str, str | int]:
    """The machine as columns: times and ratios in the table were measured on it."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [li for li in cpuinfo.read_text().splitlines() if li.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return {
        "cpu": processor,
        "cpu_features": " ".join(sorted(cpu_features())),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "gpu": gpu.name(),
        "host": host,
    }


@cache
def provenance() -> dict[str, str]:
    """Code and versions as columns.

    `ray job submit` does not copy `.git`, so the submitter can pass the commit in RAYBENCH_COMMIT;
    the hash of the sources is always there.
    """
    root = Path(__file__).parent.parent.parent
    commit = os.environ.get("RAYBENCH_COMMIT") or _git_commit(root)
    return {"commit": commit, **versions()}


def _git_commit(root: Path) -> str:
    """The commit's hash, with the suffix `-dirty` if tracked files differ; "" without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip() if described.returncode == 0 else ""
