"""Runner: who takes the steps of a run. The loop asks it for an epoch, and for what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raybench.parallel.ddp import Replicas
from raybench.techniques import Memory

Metrics = dict[str, Any]


class Diverged(ArithmeticError):
    """The loss is not a number any more."""


@dataclass(frozen=True)
class Trained:
    """What the steps of an epoch gave."""

    metrics: Metrics
    seconds: float
    """Of training alone."""
    started: float
    """When the first step began, in seconds since 1970."""
    peak_memory_bytes: int | None = None
    """Where others than this process have trained."""


class Runner(Protocol):
    """One process, a process in a group of workers, or the stages of a pipeline.

    In a group every worker has to call every method, in the same order.
    """

    replicas: Replicas
    """Those who share the evaluation."""

    def epoch(self, number: int) -> Trained:
        """Trains for an epoch. Raises Diverged."""

    def whole(self) -> nn.Module:
        """The model as one process has it, in evaluation mode: what trains, or a copy."""

    def memories(self) -> dict[str, Memory]:
        """The techniques' memories as one process has them."""

    def state(self) -> dict[str, Any]:
        """What training goes on from, as one process has it."""

    def close(self) -> None:
        """Lets go of whoever else takes part."""


@torch.no_grad()
def put_in(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Puts values into the model by their names in its state_dict; gives those that were there."""
    present = model.state_dict()
    replaced = {name: present[name].clone() for name in values}
    for name, value in values.items():
        present[name].copy_(value)
    return replaced
