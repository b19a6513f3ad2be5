"""Curves: what a simulated trial reports, epoch by epoch, and how long each epoch takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import Trial

Params = dict[str, Any]
Suggest = Callable[[Trial], Params]
"""A space of the simulator: it returns the parameters that decide the curve."""


@dataclass(frozen=True)
class Curve:
    """One trial's metrics."""

    metrics: dict[str, NDArray[np.float64]]
    """By name: (epochs,)."""
    seconds: NDArray[np.float64]
    """Duration of each epoch: (epochs,)."""

    def at(self, epoch: int) -> dict[str, float]:
        """The report after this epoch, the first of which is 1."""
        return {name: float(values[epoch - 1]) for name, values in self.metrics.items()}


@dataclass(frozen=True)
class Problem:
    """Something to search: a space, a curve for each of its points, and the objectives."""

    name: str
    suggest: Suggest
    curve: Callable[[Params], Curve]
    epochs: int
    objectives: dict[str, str]
    """Metric -> "max" or "min"."""
    costs: frozenset[str] = frozenset()
    """Objectives that are compared by their logarithms."""
