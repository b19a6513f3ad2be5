"""How one training step is spread over workers."""

from __future__ import annotations

from raybench.experiment import Parallel
from raybench.parallel.bf16_gradients import Bf16Gradients
from raybench.parallel.ddp import Replicas
from raybench.parallel.expert import ExpertParallel
from raybench.parallel.powersgd import PowerSgd
from raybench.parallel.zero1 import Zero1
from raybench.parallel.zero2 import Zero2
from raybench.parallel.zero3 import Zero3, Zero3Offload

STRATEGIES: dict[str, type[Replicas]] = {
    "ddp": Replicas,
    "bf16_gradients": Bf16Gradients,
    "powersgd": PowerSgd,
    "zero1": Zero1,
    "zero2": Zero2,
    "zero3": Zero3,
    "zero3_offload": Zero3Offload,
    "expert": ExpertParallel,
}


def replicas(parallel: Parallel) -> Replicas:
    """The workers of this process's group, by the strategy that the experiment names."""
    return STRATEGIES[parallel.strategy]()
