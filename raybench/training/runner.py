"""Runner: takes the steps of a run. The loop asks it for an epoch and for its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raybench.parallel.ddp import Replicas
from raybench.techniques import Memory

LOOK_EVERY = 50  # steps between two checks of the loss on a GPU

Metrics = dict[str, Any]


class Diverged(ArithmeticError):
    """The loss, or a tensor between stages, is no longer finite."""


@dataclass(frozen=True)
class Trained:
    """The result of an epoch's steps."""

    metrics: Metrics
    seconds: float
    """Training time only."""
    started: float
    """When the first step began, in seconds since 1970."""
    peak_memory_bytes: int | None = None
    """Set if processes other than this one have trained."""


class Runner(Protocol):
    """One process, a process in a group of workers, or the stages of a pipeline.

    In a group every worker must call every method, in the same order.
    """

    replicas: Replicas
    """The workers that share the evaluation."""

    def epoch(self, number: int) -> Trained:
        """Trains for an epoch. Raises Diverged."""

    def whole(self) -> nn.Module:
        """The model as one process would hold it, in evaluation mode: the trained one or a copy."""

    def memories(self) -> dict[str, Memory]:
        """The techniques' memories as one process would hold them."""

    def state(self) -> dict[str, Any]:
        """The state from which training resumes, as one process would write it."""

    def close(self) -> None:
        """Releases all other processes that take part."""


@torch.no_grad()
def put_in(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Puts values into the model by their names in its state_dict; returns the old values."""
    present = model.state_dict()
    replaced = {name: present[name].clone() for name in values}
    for name, value in values.items():
        present[name].copy_(value)
    return replaced
