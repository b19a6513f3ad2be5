"""Model: predicts untried configurations from the trials so far.

trials ──▶ forecast of each objective at the horizon ──▶ gains, 0 = bad, 1 = best so far
       ──▶ a Gaussian process for each objective     ──▶ the candidate whose expected
                                                         improvement of the front is largest
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState
from scipy.special import ndtr

from raybench.results.limits import Limit
from raybench.search import gaussian_process, improvement
from raybench.search.encoding import Encoding
from raybench.search.forecast import forecast
from raybench.search.gaussian_process import Kernel, Posterior
from raybench.search.suggestions import Suggestion, distribution

Array = NDArray[np.float64]

LEAST = 4  # trials with a forecast of each objective before the model suggests anything
FIRST = 20  # trials whose worst tenth is the reference, so that it does not move with the search
BAD = 0.1
FLOOR = -0.5  # lower gains are clipped: the worst trials say little about good ones
CANDIDATES = 200
NEAR = 150
LAST_NEAR = 60
UNCERTAIN = 0.3  # deviation of the gain above which a trial is not on the front


@dataclass(frozen=True)
class Seen:
    """The trials as arrays, for the model."""

    encoding: Encoding
    table: Array
    """Parameters: (trials, parameters)."""
    gains: Array
    """Forecasts; NaN without a report: (trials, objectives, limits and cost).

    For an objective, 0 is bad and 1 is the best so far. For a limit, values below 0 break it. The
    cost is the logarithm of the cost of an epoch.
    """
    deviations: Array
    """Standard deviations of the gains."""
    running: NDArray[np.bool_]
    objectives: int
    """How many columns of the gains are objectives."""
    limits: int
    """How many are limits; they follow the objectives. The cost is last, if it counts."""

    @property
    def conditional(self) -> NDArray[np.bool_]:
        return np.asarray(np.isnan(self.table).any(0))

    @property
    def labels(self) -> list[tuple[str, int | str]]:
        """A name for each dimension."""
        return self.encoding.labels(self.conditional)

    @property
    def points(self) -> Array:
        return self.encoding.points(self.table, self.conditional)

    @property
    def reported(self) -> NDArray[np.bool_]:
        """Which values exist; an objective may be measured only after the last epoch."""
        return np.asarray(np.isfinite(self.gains))

    @property
    def enough(self) -> bool:
        """Whether each objective and limit has enough forecasts for a model."""
        decide = self.reported[:, : self.objectives + self.limits]
        return bool(len(decide)) and bool(decide.sum(0).min() >= LEAST)


def seen(
    trials: Sequence[Suggestion],
    objectives: Mapping[str, str],
    limits: Sequence[Limit],
    marks: Sequence[int],
    cost: str | None = None,
) -> Seen:
    """The trials, in order of their numbers, as arrays for the model.

    Args:
        cost: column of a trial's cost so far.
    """
    encoding = Encoding(_distributions(trials))
    table = encoding.table([trial.params for trial in trials])
    columns = len(objectives) + len(limits) + (cost is not None)
    gains = np.full((len(trials), columns), np.nan)
    deviations = gains.copy()
    for place, (name, way) in enumerate(objectives.items()):
        curves = curves_of(trials, name, way, marks)
        gains[:, place], deviations[:, place] = scaled(*forecast(curves))
    for place, limit in enumerate(limits, start=len(objectives)):
        gains[:, place], deviations[:, place] = _slack(trials, limit, marks)
    if cost is not None:
        gains[:, -1], deviations[:, -1] = _costs(trials, cost), 0.0
    running = np.array([trial.state == TrialState.RUNNING for trial in trials], bool)
    return Seen(encoding, table, gains, deviations, running, len(objectives), len(limits))


def curves_of(
    trials: Sequence[Suggestion],
    name: str,
    way: str,
    marks: Sequence[int],
    of: float | None = None,
) -> Array:
    """Values of one column, larger is better: (trials, marks).

    Positive costs that span more than a factor of 3, such as bytes, count by their logarithms.

    Args:
        of: a value to convert to the same form, as an additional row.
    """
    rows = [[trial.reports.get(mark, {}).get(name, math.nan) for mark in marks] for trial in trials]
    if of is not None:
        rows.append([math.nan] * (len(marks) - 1) + [of])
    curves = np.array(rows, float).reshape(len(rows), len(marks))
    if way == "max":
        return curves
    finite = curves[np.isfinite(curves)]
    if len(finite) and finite.min() > 0 and finite.max() > 3 * finite.min():
        curves = np.log(curves)
    return -curves


def scaled(means: Array, deviations: Array) -> tuple[Array, Array]:
    """Gains, 0 = bad and 1 = best, and their deviations."""
    finite = means[np.isfinite(means)]
    if not len(finite):
        return means, deviations
    low, high = np.quantile(finite[:FIRST], BAD), finite.max()
    width = max(high - low, 1e-9)
    return np.maximum((means - low) / width, FLOOR), deviations / width


def _slack(trials: Sequence[Suggestion], limit: Limit, marks: Sequence[int]) -> tuple[Array, Array]:
    """Each trial's distance to a limit, in standard deviations over all trials."""
    way = "min" if limit.upper else "max"
    curves = curves_of(trials, limit.column, way, marks, of=limit.value)
    means, deviations = forecast(curves[:-1])
    edge = curves[-1, -1]
    spread = float(np.nanstd(means)) if np.isfinite(means).any() else 0.0
    spread = spread or 1.0
    return (means - edge) / spread, deviations / spread


def _costs(trials: Sequence[Suggestion], cost: str) -> Array:
    """The logarithm of each trial's cost per epoch; 0 if too few trials have reported it."""
    logs = np.full(len(trials), np.nan)
    for place, trial in enumerate(trials):
        known = [epoch for epoch, values in trial.reports.items() if values.get(cost, 0.0) > 0]
        if known:
            logs[place] = math.log(trial.reports[max(known)][cost] / max(known))
    return logs if np.isfinite(logs).sum() >= LEAST else np.zeros(len(trials))


def kernels(view: Seen) -> list[Kernel]:
    """One kernel for each column of the gains, fitted to its values."""
    points, fitted = view.points, []
    for place, use in enumerate(view.reported.T):
        gains, deviations = view.gains[use, place], view.deviations[use, place]
        spread = float(np.std(gains)) or 1.0
        kernel = gaussian_process.fit(points[use], gains / spread, deviations / spread)
        fitted.append(Kernel(kernel.lengths, kernel.variance * spread**2, kernel.noise * spread**2))
    return fitted


def best(
    view: Seen,
    fitted: Sequence[Kernel],
    random: np.random.Generator,
    trend: Callable[[Array], Array] | None = None,
) -> dict[str, Any]:
    """The parameters with the largest expected improvement, per unit of cost if that counts.

    Args:
        trend: predicts the gains for the rows of a table before any trial.
    """
    conditional, points = view.conditional, view.points
    before = trend(view.table) if trend else np.zeros_like(view.gains)
    models, gains = [], view.gains - before
    for place, kernel in enumerate(fitted):
        use = view.reported[:, place]
        values, deviations = gains[use, place], view.deviations[use, place]
        process = gaussian_process.posterior(kernel, points[use], values, deviations)
        # For values that a running trial has not reported, the model's means are used.
        waits = ~use & view.running
        if waits.any():
            process, gains[waits, place] = process.beside(points[waits])
        models.append(process)
    gains += before
    whole = np.isfinite(gains).all(1)
    certain = whole & ~(view.deviations > UNCERTAIN).any(1)
    count, decide = view.objectives, view.objectives + view.limits
    keeps = (gains[:, count:decide] >= 0).all(1)
    front = gains[certain & keeps, :count]

    def score(table: Array) -> Array:
        means, deviations = _predicted(models, view.encoding.points(table, conditional))
        if trend:
            means += trend(table)
        gained = improvement.expected(means[:, :count], deviations[:, :count], front)
        gained *= ndtr(means[:, count:decide] / deviations[:, count:decide]).prod(1)
        return gained * np.exp(-means[:, decide:]).prod(1)  # per unit of cost, if it counts

    # New candidates are near the best trials that satisfy the limits, if there are any.
    basis = whole & keeps if (whole & keeps).any() else whole
    good = view.table[basis][_good(gains[basis, :count])] if basis.any() else view.table
    around = good[random.integers(len(good), size=NEAR)]
    candidates = np.vstack(
        [
            view.encoding.drawn(view.table, CANDIDATES, random),
            view.encoding.near(view.table, around, 0.15, random),
        ]
    )
    scores = score(candidates)
    top = candidates[np.argsort(-scores)[:6]]
    closer = view.encoding.near(view.table, np.repeat(top, LAST_NEAR // 6, axis=0), 0.05, random)
    candidates, scores = np.vstack([candidates, closer]), np.concatenate([scores, score(closer)])
    return view.encoding.external(candidates[int(np.argmax(scores))])


def _predicted(models: Sequence[Posterior], points: Array) -> tuple[Array, Array]:
    pairs = [model.at(points) for model in models]
    return np.stack([m for m, _ in pairs], axis=1), np.stack([d for _, d in pairs], axis=1)


def _good(gains: Array) -> NDArray[np.intp]:
    """Indices of the trials that reach farthest along some direction."""
    along = improvement.directions(gains.shape[1])
    lengths = (np.maximum(gains, 0)[:, None] / along[None]).min(-1)
    order = np.argsort(-lengths, axis=0)[:2]
    return np.unique(order)


def _distributions(trials: Sequence[Suggestion]) -> dict[str, BaseDistribution]:
    """The latest distribution of each parameter whose kind is the same in all trials."""
    # Most trials have the same ones, so only the different sets are compared.
    different = dict.fromkeys(tuple(trial.distributions.items()) for trial in reversed(trials))
    return _latest(tuple(reversed(different)))


@lru_cache(maxsize=64)
def _latest(every: tuple[tuple[tuple[str, str], ...], ...]) -> dict[str, BaseDistribution]:
    latest: dict[str, BaseDistribution] = {}
    mixed: set[str] = set()
    for distributions in every:
        for name, text in distributions:
            kind = distribution(text)
            before = latest.get(name, kind)
            if type(kind) is not type(before) or getattr(kind, "choices", 0) != getattr(
                before, "choices", 0
            ):
                mixed.add(name)
            latest[name] = kind
    return {name: kind for name, kind in latest.items() if name not in mixed}
