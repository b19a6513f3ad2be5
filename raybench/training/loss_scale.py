"""fp16 has no numbers below 6e-8: the loss is multiplied, and its gradients divided again.

Micikevicius et al. 2018, "Mixed Precision Training", section 3.2, with a factor that moves: halved
where a gradient overflowed, and the step left out; doubled after 2,000 steps without. torch's
`GradScaler` looks at each worker's gradients alone; of sharded ones a part may overflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raybench.parallel.ddp import Replicas
from raybench.parallel.memory import local_part

FIRST, PATIENCE = 2.0**16, 2000


class LossScale:
    """The steps of an optimizer, with a scaled loss where the dtype wants one."""

    def __init__(self, dtype: torch.dtype, replicas: Replicas) -> None:
        self.replicas, self.scaling = replicas, dtype == torch.float16
        self.state = {"factor": FIRST, "good": 0.0}

    def backward(self, loss: Tensor) -> None:
        (loss * self.state["factor"] if self.scaling else loss).backward()

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        """The optimizers' steps; left out by all workers where a gradient is not finite."""
        if not self.scaling or self._unscale(optimizers):
            for optimizer in optimizers:
                optimizer.step()

    def _unscale(self, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        finite = torch.ones((), dtype=torch.bool, device=self.replicas.device)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad
                    local = local_part(gradient)
                    local /= self.state["factor"]
                    finite &= local.isfinite().all().to(finite.device)
        state = self.state
        if self.replicas.any(not bool(finite)):
            state["factor"], state["good"] = max(1.0, state["factor"] / 2), 0.0
            return False
        state["good"] += 1
        if state["good"] >= PATIENCE:
            state["factor"], state["good"] = state["factor"] * 2, 0.0
        return True
