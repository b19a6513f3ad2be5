"""An effect: the mean of paired differences over seeds, with a confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Effect:
    """A mean over seeds with its 95 % interval, which is NaN for a single seed.

    The interval is Student's, with n - 1 degrees of freedom. A bootstrap over three seeds has only
    ten distinct samples, and their means all lie between the smallest and the largest seed's. It
    would cover the true value at most three times in four. Student's t allows for three seeds with
    an interval of 4.3 standard errors.
    """

    mean: float
    low: float
    high: float
    seeds: int


def effect(differences: np.ndarray) -> Effect:
    """The mean of paired differences (n,), with its interval."""
    seeds = len(differences)
    if seeds < 2:
        mean = float(differences[0]) if seeds else math.nan
        return Effect(mean, math.nan, math.nan, seeds)
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(seeds)
    width = float(stdtrit(seeds - 1, 0.975)) * error
    return Effect(mean, mean - width, mean + width, seeds)


def times(log_ratios: np.ndarray) -> Effect:
    """The geometric mean of paired ratios, from their logarithms (n,)."""
    logs = effect(log_ratios)
    return Effect(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.seeds)
