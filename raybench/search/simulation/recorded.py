"""Recorded: the complete trials of one of our sweeps as a problem for the simulator.

    trials/*.parquet   params, status          what was tried, one configuration a trial
    epochs/*.parquet   objectives, train_s     its curve

A suggestion becomes the nearest configuration that was tried. If a sweep tried every configuration
of a space with few values, the nearest one is the suggestion itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import Trial

from raybench.results.read import read
from raybench.search.simulation.curves import Curve, Params, Problem
from raybench.search.suggestions import suggested_values

FEW = 12  # up to so many different numbers, a parameter is suggested by its index among them
WIDE = 10.0  # from this ratio of highest to lowest value, a range is logarithmic
LEAST_S = 1e-3  # minimum duration of an epoch

Array = NDArray[np.float64]


class Recorded:
    """The sweep in a folder.

    Raises:
        ValueError: it is not a sweep, or fewer than two of its trials are complete.
    """

    def __init__(self, folder: Path) -> None:
        results = read(folder)
        self.name = folder.name
        self.tasks = [self.name]
        self._objectives = results.objectives
        params: list[Params] = []
        curves: list[Curve] = []
        by_trial = dict(iter(results.epochs.groupby("number")))
        for row in results.complete.itertuples():
            its_epochs = by_trial[row.number].sort_values("epoch")
            metrics = {
                name: its_epochs[name].to_numpy(float, na_value=math.nan).copy()
                for name in self._objectives
            }
            for name, values in metrics.items():  # measured only at the end, such as a latency
                values[-1] = getattr(row, name)
            so_far = its_epochs["train_s"].to_numpy(float, na_value=0.0)
            seconds = np.maximum(np.diff(so_far, prepend=0.0), LEAST_S)
            params.append(suggested_values(row.params))
            curves.append(Curve(metrics, seconds))
        if len(params) < 2:
            raise ValueError(f"{folder} has {len(params)} complete trials; a problem needs two")
        self._epochs = max(len(one.seconds) for one in curves)
        self._table = _Table(params)
        self._curves = {_key(one): curve for one, curve in zip(params, curves, strict=True)}

    def problem(self, task: str) -> Problem:
        """The search among the configurations. Raises ValueError for another task."""
        if task not in self.tasks:
            raise ValueError(f"{self.name} has no task {task}; it has {self.name}")
        return Problem(
            name=self.name,
            suggest=self._table.suggest,
            curve=lambda params: self._curves[_key(params)],
            epochs=self._epochs,
            objectives=self._objectives,
            costs=frozenset(n for n, way in self._objectives.items() if self._is_cost(n, way)),
            every=tuple(self._table.params),
        )

    def _is_cost(self, name: str, way: str) -> bool:
        """Whether to compare it by its logarithm: it is minimized and above 0."""
        ends = [float(curve.metrics[name][-1]) for curve in self._curves.values()]
        return way == "min" and min(ends) > 0


@dataclass(frozen=True)
class _Parameter:
    """A parameter, described by its recorded values."""

    name: str
    suggest: Callable[[Trial], Any]
    place: Callable[[Any], float]
    """A value's place in [0, 1]; for a category, its index."""
    ordered: bool


class _Table:
    """The configurations as rows; parameters that depend on others come after them."""

    def __init__(self, params: Sequence[Params]) -> None:
        self.params = list(params)
        counts: dict[str, int] = {}
        for one in params:
            for name in one:
                counts[name] = counts.get(name, 0) + 1
        names = sorted(counts, key=lambda name: -counts[name])
        self._parameters = [_parameter(n, [one[n] for one in params if n in one]) for n in names]
        self._rows = np.array(
            [
                [p.place(one[p.name]) if p.name in one else math.nan for p in self._parameters]
                for one in params
            ]
        )

    def suggest(self, trial: Trial) -> Params:
        """The nearest configuration; a parameter is suggested if the nearest so far has it."""
        gaps = np.zeros(len(self._rows))
        for column, parameter in zip(self._rows.T, self._parameters, strict=True):
            has = np.isfinite(column)
            if not has[gaps <= gaps.min()].any():
                gaps[has] += 1.0
                continue
            place = parameter.place(parameter.suggest(trial))
            away = np.abs(column - place) if parameter.ordered else (column != place).astype(float)
            gaps += np.where(has, away, 1.0)
        return dict(self.params[int(gaps.argmin())])


def _parameter(name: str, values: list[Any]) -> _Parameter:
    different = list(dict.fromkeys(values))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in different)
    if not numbers:
        return _Parameter(
            name, lambda t: t.suggest_categorical(name, different), different.index, False
        )
    different.sort()
    if len(different) <= FEW:
        last = max(1, len(different) - 1)
        return _Parameter(
            name,
            lambda t: different[t.suggest_int(name, 0, len(different) - 1)],
            lambda value: different.index(value) / last,
            True,
        )
    low, high = float(different[0]), float(different[-1])
    log = low > 0 and high / low >= WIDE

    def unit(value: float) -> float:
        return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

    return _Parameter(name, lambda t: t.suggest_float(name, low, high, log=log), unit, True)


def _key(params: Params) -> str:
    return json.dumps(params, sort_keys=True)
