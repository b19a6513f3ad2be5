"""EMA: evaluates and stores a moving average of the weights in place of the last weights.

    average ← d · average + (1 - d) · weights      after every step, or every few steps

Polyak & Juditsky 1992; Izmailov et al. 2018 for the running statistics of batch norms, which are
averaged too. The decay rises as in timm's ModelEmaV3 and TensorFlow's moving averages: after n
updates it is at most (1 + n) / (10 + n), so a short run's average drops the initial weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from raybench.results.column import Column
from raybench.techniques.technique import Apart, Memory, Progress, Technique

WARMUP = 10.0
DISTANCE = "distance"  # entry of the memory, from the last evaluation


@dataclass(frozen=True, kw_only=True)
class Ema(Technique):
    """Averages the weights during training; training itself uses the plain weights."""

    decay: float = 0.999
    """Share of the average that an update keeps."""
    every: int = 1
    """Steps between two updates."""
    warmup: bool = True
    """Whether the first updates keep less: (1 + n) / (10 + n) after n updates, up to `decay`."""

    columns: ClassVar[Mapping[str, Column]] = {
        "ema_distance": Column(
            float,
            "share",
            "Distance between averaged and trained weights, relative to the norm of the latter.",
        )
    }
    apart: ClassVar[tuple[Apart, ...]] = tuple(
        Apart(strategy, "no worker holds whole weights to average; use 'zero2' or 'ddp'")
        for strategy in ("zero3", "zero3_offload")
    )

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}: a share in [0, 1), such as 0.999")
        if self.every < 1:
            raise ValueError(f"every is {self.every}: average every 1 step or more")

    @classmethod
    def candidates(cls, teacher: str) -> tuple[Ema, ...]:
        return tuple(cls(decay=decay) for decay in (0.95, 0.99, 0.999))

    def acts_on(self, model: nn.Module) -> list[str]:
        averaged = _averaged(model)
        return [name for name, _ in model.named_parameters() if name in averaged]

    def decay_at(self, updates: int) -> float:
        """The decay of an update that follows `updates` earlier ones."""
        return min(self.decay, (1 + updates) / (WARMUP + updates)) if self.warmup else self.decay

    @torch.no_grad()
    def after_step(
        self,
        model: nn.Module,
        progress: Progress,
        memory: Memory,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        if progress.step % self.every:
            return
        decay = self.decay_at(progress.step // self.every - 1)
        for name, value in _averaged(model).items():
            average = memory.get(name)
            if average is None or average.shape != value.shape:  # first update, or channels cut
                memory[name] = value.clone()
            else:
                average.lerp_(value, 1 - decay)

    def evaluated(self, model: nn.Module, memory: Memory) -> Mapping[str, Tensor]:
        values = _averaged(model)
        averages = {
            name: average
            for name, average in memory.items()
            if name in values and average.shape == values[name].shape
        }
        if averages:
            distance = sum(float((values[n] - a).square().sum()) for n, a in averages.items())
            length = sum(float(values[n].square().sum()) for n in averages)
            memory[DISTANCE] = torch.tensor((distance / length) ** 0.5 if length else 0.0)
        return averages

    def measure(self, model: nn.Module, memory: Memory) -> Mapping[str, float | str]:
        if DISTANCE not in memory:
            return {}
        return {"ema_distance": float(memory[DISTANCE])}


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics by their names in the state_dict.

    Quantization steps are left out: they jump when rounding begins, so an average mixes scales.
    """
    return {
        name: value
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not name.endswith("_step")
    }
