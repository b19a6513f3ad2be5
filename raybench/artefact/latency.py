"""Latency of a network in ONNX Runtime and in eager PyTorch, on one thread.

Runs of all sides are interleaved (A B C A B C …), so that other load on the machine affects all
sides equally. Each timed run follows an untimed one of the same side: an int8 ResNet-20 took 0.46
ms per image with another side's weights in the caches, and 0.34 with its own. Wall time is what a
user waits. Thread time excludes other processes: on a busy machine wall time varied by a factor of
2, thread time by 5 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raybench.artefact import onnx_graph

WARM_UP = 20
RESAMPLES = 1000  # of a bootstrap interval

Times = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of every run, in order; run i of one side is paired with run i of another."""

    wall_ms: Times
    thread_ms: Times

    def summary(self) -> dict[str, float]:
        """Median, p10 and p90 of both clocks."""
        percentiles: dict[str, float] = {}
        for clock, times in (("wall", self.wall_ms), ("thread", self.thread_ms)):
            low, middle, high = np.percentile(times, (10, 50, 90)).tolist()
            percentiles |= {f"{clock}_ms": middle, f"{clock}_ms_p10": low, f"{clock}_ms_p90": high}
        return percentiles


def sides(int8: bytes, fp32: bytes, model: nn.Module) -> dict[str, Callable[[Tensor], object]]:
    """The sides to compare: both graphs in ONNX Runtime, and the model in eager PyTorch in fp32."""
    eager = onnx_graph.plain(model)
    return {
        "int8": onnx_graph.Bound(int8),
        "ort_fp32": onnx_graph.Bound(fp32),
        "eager": lambda x: eager(x),
    }


def measure(
    compared: Mapping[str, Callable[[Tensor], object]],
    images: Tensor,
    *,
    runs: int,
    warm_up: int = WARM_UP,
) -> dict[str, Latency]:
    """Times every side on the same images, `runs` times each, in the calling thread."""
    wall: dict[str, list[float]] = {side: [] for side in compared}
    thread: dict[str, list[float]] = {side: [] for side in compared}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for number in range(warm_up + runs):
                for side, run in compared.items():
                    run(images)
                    wall_began, thread_began = time.perf_counter(), time.thread_time()
                    run(images)
                    thread_ended, wall_ended = time.thread_time(), time.perf_counter()
                    if number >= warm_up:
                        wall[side].append(1e3 * (wall_ended - wall_began))
                        thread[side].append(1e3 * (thread_ended - thread_began))
    finally:
        torch.set_num_threads(threads)
    return {
        side: Latency(wall_ms=np.array(wall[side]), thread_ms=np.array(thread[side]))
        for side in compared
    }


def ratio(slow: Times, fast: Times, *, seed: int = 0) -> tuple[float, float, float]:
    """The ratio of the medians, and its 95 % bootstrap interval over pairs of runs."""
    assert slow.shape == fast.shape
    pairs = np.random.default_rng(seed).integers(len(slow), size=(RESAMPLES, len(slow)))
    resampled = np.median(slow[pairs], axis=1) / np.median(fast[pairs], axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5)).tolist()
    return float(np.median(slow) / np.median(fast)), low, high
