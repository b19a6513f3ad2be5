"""Bytes that one worker sends in one step, in theory.

In a ring, or all to all, a reduce-scatter or an all-gather of n bytes over W workers sends
(W - 1) / W n; an all-reduce sends twice that. ddp: an all-reduce of the gradients; zero1 and zero2:
gradients are scattered and parameters gathered, the same amount; zero3: parameters are gathered
once more.
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
    """Bytes of the plain model, for PowerSGD after its warm-up; None for experts."""
    workers, strategy = experiment.parallel.workers, experiment.parallel.strategy
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    if strategy == "powersgd":
        thin = [thin_bytes(p) or p.numel() * p.element_size() for p in model.parameters()]
        return round(2 * (workers - 1) / workers * sum(thin))
    if strategy not in UNITS:
        return None
    return round(UNITS[strategy] * (workers - 1) / workers * whole)
