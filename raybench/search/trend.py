"""Trend: the prediction of older sweeps, as far as the new trials agree with it.

For each objective a line maps the older sweep's prediction to the new gains. The line starts at the
correlation `PERSISTENCE`, with the weight of four trials; if new trials contradict it, its slope
goes to 0. The model is fitted to the residuals. After a dozen new trials the trend is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from raybench.search import gaussian_process, improvement, model
from raybench.search.forecast import PERSISTENCE, line
from raybench.search.gaussian_process import Kernel, Posterior
from raybench.search.model import Seen
from raybench.search.prior import Guests, translated

Array = NDArray[np.float64]

OPENERS = 4  # trials of each older sweep that are repeated first


@dataclass(frozen=True)
class Trend:
    """A line over an older sweep's prediction, for each objective."""

    seen: Seen
    parts: tuple[tuple[float, float, Posterior] | None, ...]

    def at(self, table: Array) -> Array:
        """The trend for each row of a table: (rows, objectives and limits)."""
        predicted = np.zeros((len(table), self.seen.gains.shape[1]))
        points = self.seen.encoding.points(table, self.seen.conditional)
        for place, part in enumerate(self.parts):
            if part is not None:
                intercept, slope, process = part
                predicted[:, place] = intercept + slope * process.at(points)[0]
        return predicted


@dataclass(frozen=True)
class Older:
    """An older sweep in the new one's encoding."""

    points: Array
    gains: Array
    kernels: tuple[Kernel, ...]

    def process(self, place: int) -> Posterior:
        gains = self.gains[:, place]
        return gaussian_process.posterior(self.kernels[place], self.points, gains, gains * 0)


def older(
    view: Seen, guests: Guests, objectives: Mapping[str, str], marks: Sequence[int]
) -> Older | None:
    """An older sweep, fitted; None if it has few trials or the spaces share no parameter."""
    here = [translated(guest, view.encoding.distributions) for guest in guests]
    if not any(guest.params for guest in here) or len(here) < model.LEAST:
        return None
    table = view.encoding.table([guest.params for guest in here])
    gains = gains_of(guests, objectives, marks)
    points = view.encoding.points(table, view.conditional)
    zero = np.zeros(len(gains))
    kernels = tuple(gaussian_process.fit(points, one, zero) for one in _standard(gains).T)
    spreads = np.std(gains, axis=0) + 1e-9
    scaled = tuple(
        replace(kernel, variance=kernel.variance * s**2, noise=kernel.noise * s**2)
        for kernel, s in zip(kernels, spreads, strict=True)
    )
    return Older(points, gains, scaled)


def trend(view: Seen, every: Sequence[Older]) -> Trend:
    """For each objective, the older sweep that agrees best with the new trials."""
    parts: list[tuple[float, float, Posterior] | None] = []
    for place in range(view.objectives):
        best: tuple[float, float, Posterior] | None = None
        least = np.inf
        for one in every:
            process = one.process(place)
            predicted, _ = process.at(view.points)
            gains = np.where(view.reported[:, place], view.gains[:, place], np.nan)
            intercept, slope, deviation = line(predicted, gains, PERSISTENCE)
            if deviation < least:
                best, least = (intercept, slope, process), deviation
        parts.append(best)
    return Trend(view, tuple(parts))


def openers(
    guests: Guests, objectives: Mapping[str, str], marks: Sequence[int]
) -> list[dict[str, object]]:
    """The parameters of the older trials that reach farthest in different directions."""
    gains = gains_of(guests, objectives, marks)
    along = improvement.directions(len(objectives))
    lengths = (np.maximum(gains, 0)[:, None] / along[None]).min(-1)
    wanted = np.linspace(0, len(along) - 1, OPENERS + 2)[1:-1].round().astype(int)
    chosen = dict.fromkeys(int(lengths[:, direction].argmax()) for direction in wanted)
    return [guests[place].external() for place in chosen]


def gains_of(guests: Guests, objectives: Mapping[str, str], marks: Sequence[int]) -> Array:
    """0 = bad, 1 = best of the older sweep: (trials, objectives)."""
    columns = []
    for name, way in objectives.items():
        last = model.curves_of(guests, name, way, marks)[:, -1]
        columns.append(model.scaled(last, last * 0)[0])
    return np.stack(columns, axis=1)


def _standard(gains: Array) -> Array:
    return np.asarray((gains - gains.mean(0)) / (np.std(gains, axis=0) + 1e-9))
