"""An effect: the mean of paired differences over seeds, and the interval in which it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Effect:
    """A mean over seeds with its 95 % interval, which is NaN for a single seed.

    The interval is Student's, with n - 1 degrees of freedom. A bootstrap over three seeds draws
    from ten samples, whose means all lie between the smallest and the largest seed's: it would
    cover the truth three times of four at best. t pays for so few seeds with 4.3 standard errors.
    """

    mean: float
    low: float
    high: float
    seeds: int


def effect(differences: np.ndarray) -> Effect:
    """The mean of paired differences (n,), and the interval in which it lies."""
    seeds = len(differences)
    if seeds < 2:
        mean = float(differences[0]) if seeds else math.nan
        return Effect(mean, math.nan, math.nan, seeds)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(seeds)
    width = float(stdtrit(seeds - 1, 0.975)) * error
    return Effect(mean, mean - width, mean + width, seeds)


def times(log_ratios: np.ndarray) -> Effect:
    """The geometric mean of paired ratios, of which the logarithms (n,) are given."""
    logs = effect(log_ratios)
    return Effect(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.seeds)
