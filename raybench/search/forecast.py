"""Forecast: a trial's objectives at the horizon, predicted from its last report.

    value                     ● complete       each trial's last report  v
      │            ·····○     ● complete       is extrapolated to the horizon by
      │     ○ stopped         ● complete       a + b v ± s, fitted to the trials that
      ╰──────┼─────┼──────────┼── epoch        reported at that epoch and at the horizon
             early            horizon

The horizon is the last mark that `ENOUGH` trials reached, so a search with many slots learns before
any trial is complete. If late values do not follow early ones, b is 0 and s is the whole spread: a
stopped trial then has no influence. The forecast itself stops no trial.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ENOUGH = 4  # trials at the horizon
PRIOR = 4.0  # weight of the prior on a fitted line, in trials
PERSISTENCE = 0.7  # correlation of early and late values that is assumed before any were seen

Array = NDArray[np.float64]


def forecast(curves: Array) -> tuple[Array, Array]:
    """Each trial's value at the horizon, and its standard deviation: (trials,) each.

    NaN where a trial has reported nothing.

    Args:
        curves: (trials, marks), NaN where a trial has no report.
    """
    means, deviations = np.full(len(curves), np.nan), np.full(len(curves), np.nan)
    reached = np.isfinite(curves)
    counts = reached.sum(0)
    if not counts.any():
        return means, deviations
    most = min(ENOUGH, counts.max())
    horizon = int(np.flatnonzero(counts >= most)[-1])
    there = reached[:, horizon]
    means[there], deviations[there] = curves[there, horizon], 0.0
    last = np.where(reached.any(1), curves.shape[1] - 1 - reached[:, ::-1].argmax(1), -1)
    for mark in np.unique(last[~there & (last >= 0)]):
        here = ~there & (last == mark)
        if mark > horizon:  # resumed; its reports in between are missing
            means[here], deviations[here] = curves[here, mark], 0.0
            continue
        intercept, slope, deviation = line(
            curves[:, mark], curves[:, horizon], _stays(curves, mark)
        )
        means[here] = intercept + slope * curves[here, mark]
        deviations[here] = deviation
    return means, deviations


def line(early: Array, late: Array, correlation: float) -> tuple[float, float, float]:
    """Intercept, slope and residual deviation of late values over early ones.

    Args:
        correlation: assumed before any pair is known; it counts as `PRIOR` pairs.
    """
    finite = early[np.isfinite(early)]
    variance = float(np.var(finite)) + 1e-12
    both = np.isfinite(early) & np.isfinite(late)
    pairs = int(both.sum())
    if not pairs:
        return 0.0, 1.0, float(np.sqrt(variance))
    x, y = early[both], late[both]
    dx, dy = x - x.mean(), y - y.mean()
    slope = (PRIOR * variance * correlation + dx @ dy) / (PRIOR * variance + dx @ dx)
    errors = float(((dy - slope * dx) ** 2).sum())
    residual = (PRIOR * variance * (1 - correlation**2) + errors) / (PRIOR + pairs)
    deviation = float(np.sqrt(residual * (1 + 1 / pairs)))
    return float(y.mean() - slope * x.mean()), float(slope), deviation


def _stays(curves: Array, mark: int) -> float:
    """The rank correlation of a mark with the mark before; noise lowers it."""
    if mark == 0:
        return PERSISTENCE
    return agreement(curves[:, mark - 1], curves[:, mark])[0]


def agreement(early: Array, late: Array) -> tuple[float, int]:
    """Spearman's rank correlation, clipped at 0, and the number of pairs.

    With fewer than `ENOUGH` pairs it is `PERSISTENCE`.
    """
    both = np.isfinite(early) & np.isfinite(late)
    pairs = int(both.sum())
    if pairs < ENOUGH:
        return PERSISTENCE, pairs
    x, y = early[both], late[both]
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, pairs
    return max(0.0, float(np.corrcoef(places(x), places(y))[0, 1])), pairs


def places(values: Array) -> Array:
    """The rank of each value; equal values share the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]
