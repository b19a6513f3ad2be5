"""Loss scaling for fp16, which has no numbers below 6e-8: scales the loss, unscales the gradients.

Micikevicius et al. 2018, "Mixed Precision Training", section 3.2, with a dynamic factor: if a
gradient overflows, the factor is halved and the step skipped; after 2,000 steps without an overflow
it is doubled. torch's `GradScaler` checks each worker's gradients separately, but after an
overflow in one worker's part of sharded gradients all workers must skip the step. The check waits
for the GPU in every step, as `GradScaler` does; bf16, the default, needs no scaling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raybench.hardware import gpu
from raybench.parallel.ddp import Replicas
from raybench.parallel.memory import local_part

FIRST, PATIENCE = 2.0**16, 2000


class LossScale:
    """Backward passes and optimizer steps; the loss is scaled if the dtype is fp16."""

    def __init__(self, dtype: torch.dtype, replicas: Replicas) -> None:
        self.replicas, self.scaling = replicas, dtype == torch.float16
        self.state = {"factor": FIRST, "good": 0.0}

    def backward(self, loss: Tensor) -> None:
        (loss * self.state["factor"] if self.scaling else loss).backward()

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        """The optimizers' steps; all workers skip them if any gradient is not finite."""
        if not self.scaling or self._unscale(optimizers):
            for optimizer in optimizers:
                optimizer.step()

    def _unscale(self, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
        gradients = [
            local_part(parameter.grad)
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if gradients:
            torch._foreach_mul_(gradients, 1 / self.state["factor"])  # exact: a power of two
        finite = [gradient.isfinite().all() for gradient in gradients]
        state = self.state
        if self.replicas.any(bool(finite) and not gpu.read(torch.stack(finite).all())):
            state["factor"], state["good"] = max(1.0, state["factor"] / 2), 0.0
            return False
        state["good"] += 1
        if state["good"] >= PATIENCE:
            state["factor"], state["good"] = state["factor"] * 2, 0.0
        return True
