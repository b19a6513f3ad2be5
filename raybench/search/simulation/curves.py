"""Curves: what a simulated trial reports, epoch by epoch, and how long each epoch takes."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import Trial

Params = dict[str, Any]
Suggest = Callable[[Trial], Params]
"""A space of the simulator: it returns the parameters that determine the curve."""


@dataclass(frozen=True)
class Curve:
    """One trial's metrics."""

    metrics: dict[str, NDArray[np.float64]]
    """By name: (epochs,)."""
    seconds: NDArray[np.float64]
    """Duration of each epoch: (epochs,)."""

    def at(self, epoch: int) -> dict[str, float]:
        """The report after this epoch (the first is 1), without values that are NaN."""
        values = {name: float(every[epoch - 1]) for name, every in self.metrics.items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}


@dataclass(frozen=True)
class Problem:
    """A search problem: a space, a curve for each of its points, and the objectives."""

    name: str
    suggest: Suggest
    curve: Callable[[Params], Curve]
    epochs: int
    objectives: dict[str, str]
    """Metric -> "max" or "min"."""
    costs: frozenset[str] = frozenset()
    """Objectives that are compared by their logarithms."""
    every: tuple[Params, ...] = ()
    """All configurations, if they are known and few."""


def late_start(problem: Problem) -> Problem:
    """The problem with curves whose first third is noise around chance, as on digits.

    A tenth of the curve's best value stands for chance; costs are unchanged.
    """
    learned = {name for name, way in problem.objectives.items() if way == "max"}
    noisy = problem.epochs // 3

    def curve(params: Params) -> Curve:
        plain = problem.curve(params)
        seed = zlib.crc32(json.dumps(params, sort_keys=True).encode())
        random = np.random.default_rng(seed)
        metrics = dict(plain.metrics)
        for name in learned:
            values = metrics[name].copy()
            spread = 0.02 * abs(values).max()
            values[:noisy] = spread * (5 + random.normal(size=noisy))
            metrics[name] = values
        return Curve(metrics, plain.seconds)

    return replace(problem, name=f"{problem.name}, late start", curve=curve)
