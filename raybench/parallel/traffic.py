"""Bytes that one worker sends in one step, in theory.

With a ring, or each to each, a reduce-scatter or an all-gather of n bytes over W workers sends
(W - 1) / W n, an all-reduce both. ddp: an all-reduce of the gradients; zero1 and zero2: gradients
scattered and parameters gathered, the same; zero3: parameters gathered once more.
"""

from __future__ import annotations

from torch import nn

from raybench.experiment import Experiment
from raybench.parallel.memory import thin_bytes

UNITS = {
    "ddp": 2.0,
    "bf16_gradients": 1.0,
    "zero1": 2.0,
    "zero2": 2.0,
    "zero3": 3.0,
    "zero3_offload": 3.0,
}


def theory(model: nn.Module, experiment: Experiment) -> int | None:
    """Of the plain model; PowerSGD's after its warm-up. None for experts: rows are counted."""
    workers, strategy = experiment.parallel.workers, experiment.parallel.strategy
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    if strategy == "powersgd":
        thin = [thin_bytes(p) or p.numel() * p.element_size() for p in model.parameters()]
        return round(2 * (workers - 1) / workers * sum(thin))
    if strategy not in UNITS:
        return None
    return round(UNITS[strategy] * (workers - 1) / workers * whole)
