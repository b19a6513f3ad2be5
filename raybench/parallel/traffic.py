"""Bytes that one worker sends in one step, in theory.

A reduce-scatter or an all-gather of n bytes over W workers, as a ring or all to all, sends
(W - 1) / W n; an all-reduce sends twice that. ddp: an all-reduce of the gradients; zero1 and zero2:
a reduce-scatter of gradients and an all-gather of parameters, the same amount; zero3: one more
all-gather of parameters.
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
    """Bytes sent for the plain model (PowerSGD: after its warm-up); None for `expert`."""
    workers, strategy = experiment.parallel.workers, experiment.parallel.strategy
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    if strategy == "powersgd":
        thin = [thin_bytes(p) or p.numel() * p.element_size() for p in model.parameters()]
        return round(2 * (workers - 1) / workers * sum(thin))
    if strategy not in UNITS:
        return None
    return round(UNITS[strategy] * (workers - 1) / workers * whole)
