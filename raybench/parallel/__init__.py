"""How one training step is spread over workers."""

from __future__ import annotations

from importlib import import_module

from raybench.experiment import Parallel
from raybench.parallel.ddp import Replicas

STRATEGIES = {
    "ddp": "ddp.Replicas",
    "bf16_gradients": "bf16_gradients.Bf16Gradients",
    "powersgd": "powersgd.PowerSgd",
    "zero1": "zero1.Zero1",
    "zero2": "zero2.Zero2",
    "zero3": "zero3.Zero3",
    "zero3_offload": "zero3.Zero3Offload",
    "expert": "expert.ExpertParallel",
}
"""Module and class by name. Imported on demand: FSDP takes half a second, and few runs need it."""


def replicas(parallel: Parallel) -> Replicas:
    """The workers of this process's group, with the experiment's strategy."""
    module, name = STRATEGIES[parallel.strategy].split(".")
    made: Replicas = getattr(import_module(f"{__package__}.{module}"), name)()
    return made
