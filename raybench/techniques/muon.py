"""Muon: momentum SGD whose update of a matrix is made orthogonal (Jordan et al. 2024, "Muon: An
optimizer for hidden layers in neural networks").

    M ← m M + G        momentum, with Nesterov's step G + m M
    O ≈ U Vᵀ           of the singular value decomposition of that step, by five Newton-Schulz steps
    W ← (1 - lr · decay) W - lr · √max(1, rows / columns) · O

Every singular value of the update is about 1, so directions with small gradients move as well. The
matrix of a filter is (O, I · height · width). Experts and Monarch blocks are one matrix each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques import Apart, Memory, Technique
from raybench.techniques.layers.weights import Weight, weights

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial a x + b x³ + c x⁵, which takes singular values from (0, 1] to 0.7 … 1.2 in five
steps (Jordan et al.)."""

STEPS = 5
LEAST = 1e-7  # added to a norm, so that a gradient of zeros is not divided by 0


def orthogonal(step_NOI: Tensor) -> Tensor:
    """The nearest orthogonal matrices to (N, O, I), roughly; in bf16 on a GPU, else in fp32.

    Small matrices took 7.1 ms in bf16 and 5.9 in fp32 on a core (all filters of ResNet-20).
    """
    x = step_NOI.bfloat16() if step_NOI.is_cuda else step_NOI.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + LEAST)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(step_NOI.dtype)


class MuonOptimizer(torch.optim.Optimizer):
    """Muon over matrices. A group's `stacked` is 1 if its parameters are stacks of matrices."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            # One batched product for all matrices of a shape: 4.6 instead of 5.9 ms.
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum, lr = group["momentum"], group["lr"]
        moments = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            moments.append(state["momentum_buffer"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(moments, momentum)
        torch._foreach_add_(moments, gradients)
        steps = torch._foreach_add(gradients, moments, alpha=momentum)
        stacked, shape = group["stacked"], parameters[0].shape
        matrices = torch.stack(steps).reshape(-1, shape[stacked], shape[stacked + 1 :].numel())
        rows, columns = matrices.shape[1:]
        updates = orthogonal(matrices).reshape(len(parameters), *shape).unbind()
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-lr * max(1.0, rows / columns) ** 0.5)


@dataclass(frozen=True, kw_only=True)
class Muon(Technique):
    """Trains the hidden weights by Muon, and everything else by the recipe's optimizer.

    `lr=0` is the recipe's optimizer alone.
    """

    lr: float = 0.02
    """Highest learning rate of the hidden weights; the recipe's schedule scales it."""
    momentum: float = 0.95
    """Momentum, with Nesterov's step."""
    weight_decay: float = 0.0
    """Share of a weight that a step subtracts, times the learning rate."""

    goals: ClassVar[tuple[str, ...]] = ("accuracy", "train_time")

    columns: ClassVar[Mapping[str, Column]] = {
        "muon_matrices": Column(int, "", "Number of weights that Muon trains."),
    }

    apart: ClassVar[tuple[Apart, ...]] = (
        *(
            Apart(strategy, "a worker's part of a weight is not a whole matrix; use ddp")
            for strategy in ("zero1", "zero2", "zero3", "zero3_offload")
        ),
        Apart("pipeline", "a stage has one optimizer; use pipeline.stages 1 and chunks 1"),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.lr < float("inf"):
            raise ValueError(f"lr is {self.lr}: 0 or more, such as 0.02")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}: a share in [0, 1), such as 0.95")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay is {self.weight_decay}: 0 or more")

    @classmethod
    def candidates(cls, teacher: str) -> tuple[Muon, ...]:
        return tuple(cls(lr=lr) for lr in (0.01, 0.02, 0.05))

    @property
    def active(self) -> bool:
        return bool(self.lr)

    def acts_on(self, model: nn.Module) -> list[str]:
        return [weight.name for weight in hidden(model)]

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer | None:
        groups: list[dict[str, Any]] = [
            {"params": [w.value for w in hidden(model) if w.stacked == stacked], "stacked": stacked}
            for stacked in (0, 1)
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            return None
        return MuonOptimizer(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def measure(self, model: nn.Module, memory: Memory) -> Mapping[str, float | str]:
        return {"muon_matrices": len(hidden(model))}


def hidden(model: nn.Module) -> list[Weight]:
    """The trainable weights except the first, which reads pixels, and the last, which gives logits.

    The authors train those two by another optimizer.
    """
    trained = [weight for weight in weights(model) if weight.value.requires_grad]
    return trained[1:-1]
