"""The statistics of a verdict: one-sided tests on paired differences, Holm, seeds needed.

A study looks at its seeds several times and adds some if nothing is decided; every look can be
wrong. So a single claim must hold at `CLAIM`, a seventh of the usual 5 %;
`python -m raybench.bench verdict` simulates whole studies and counts the false ones.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

CLAIM = 0.007
"""Level of every claim at every look, over all arms together (Holm)."""
POWER = 0.8
"""Probability that the requested seeds decide, if the observed means are the true ones."""

Differences = NDArray[np.float64]


def p_above(differences: Differences, margin: float) -> float:
    """The p-value of "the mean of these paired differences (n,) is above `margin`", by t.

    1 with fewer than two seeds. 0 or 1 if all differences are equal.
    """
    count = len(differences)
    if count < 2:
        return 1.0
    gap = float(differences.mean()) - margin
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    if error < 1e-12:
        return 0.0 if gap > 1e-12 else 1.0
    return float(stdtr(count - 1, -gap / error))


def p_below(differences: Differences, margin: float) -> float:
    """The p-value of "the mean of these paired differences (n,) is below `margin`", by t."""
    return p_above(-differences, -margin)


def holm(p_values: list[float]) -> list[float]:
    """The p-values adjusted for their number (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def seeds_needed(differences: Differences, margin: float, level: float) -> int | None:
    """The number of seeds with which a claim about `margin` holds at `level`, with power `POWER`.

    It uses the observed mean and variance. None if no number below 1,000 is enough, or with fewer
    than two seeds, which have no variance.
    """
    count = len(differences)
    if count < 2:
        return None
    gap = abs(float(differences.mean()) - margin)
    spread = float(differences.std(ddof=1))
    for needed in range(max(2, count), 1000):
        quantiles = stdtrit(needed - 1, 1 - level) + stdtrit(needed - 1, POWER)
        if gap * math.sqrt(needed) >= quantiles * spread:
            return needed
    return None
