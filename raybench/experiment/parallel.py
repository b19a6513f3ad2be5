"""Parallel: how a training step is distributed over workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How a training step is distributed over workers."""

    workers: int = 1
    """Number of processes; each computes an equal part of every batch."""
    strategy: Literal[
        "ddp",
        "bf16_gradients",
        "powersgd",
        "zero1",
        "zero2",
        "zero3",
        "zero3_offload",
        "expert",
    ] = "ddp"
    """ddp: every worker holds the model. bf16_gradients, powersgd: ddp with compressed gradients.
    zero1: the optimizer's state is split equally over the workers; zero2: the gradients too; zero3:
    the parameters too; zero3_offload: zero3 with its parts in host memory. expert: the experts of
    `switch` are split equally over the workers and tokens are sent to them; the rest is ddp."""
    checkpointing: bool = False
    """Blocks keep only their inputs and are recomputed in the backward pass."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}: it must be 1 or more")
