"""Encoding: the parameters of trials as points of a cube, and candidates for the next trial.

A conditional parameter is NaN where it is inactive, and has an extra dimension, 1 where it is
active. New candidates take their active parameters from an earlier trial.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Array = NDArray[np.float64]

INACTIVE = 0.5  # coordinate of a parameter that the trial does not have


@dataclass(frozen=True)
class Encoding:
    """The parameters of the trials, by name."""

    distributions: dict[str, BaseDistribution]

    def table(self, every: Sequence[Mapping[str, float]]) -> Array:
        """Optuna's internal values, NaN where a parameter is inactive: (trials, parameters)."""
        nan = math.nan
        return np.array([[one.get(n, nan) for n in self.distributions] for one in every]).reshape(
            len(every), len(self.distributions)
        )

    def points(self, table: Array, conditional: NDArray[np.bool_]) -> Array:
        """Coordinates: (trials, dimensions).

        Args:
            conditional: which parameters some trials do not have.
        """
        columns: list[Array] = []
        for place, distribution in enumerate(self.distributions.values()):
            values = table[:, place]
            active = np.isfinite(values)
            if isinstance(distribution, CategoricalDistribution):
                # Any two choices are at distance 1.
                for choice in range(len(distribution.choices)):
                    columns.append(np.where(values == choice, math.sqrt(0.5), 0.0))
            else:
                columns.append(np.where(active, _to_unit(distribution, values), INACTIVE))
            if conditional[place] and not isinstance(distribution, CategoricalDistribution):
                columns.append(active.astype(float))
        return np.stack(columns, axis=1)

    def labels(self, conditional: NDArray[np.bool_]) -> list[tuple[str, int | str]]:
        """A name for each dimension of `points`."""
        names: list[tuple[str, int | str]] = []
        for place, (name, distribution) in enumerate(self.distributions.items()):
            if isinstance(distribution, CategoricalDistribution):
                names += [(name, choice) for choice in range(len(distribution.choices))]
                continue
            names.append((name, "value"))
            if conditional[place]:
                names.append((name, "active"))
        return names

    def drawn(self, table: Array, count: int, random: Generator) -> Array:
        """Random candidates with the active parameters of the trials in a table."""
        bases = table[_one_of_each_kind(table, count, random)]
        return self._changed(table, bases, np.ones(bases.shape, bool), None, random)

    def near(self, table: Array, bases: Array, width: float, random: Generator) -> Array:
        """A candidate near each base: some of its parameters move by about `width`."""
        which = random.random(bases.shape) < max(0.4, 1 / bases.shape[1])
        which[np.arange(len(bases)), random.integers(bases.shape[1], size=len(bases))] = True
        return self._changed(table, bases, which, width, random)

    def _changed(
        self,
        table: Array,
        bases: Array,
        which: NDArray[np.bool_],
        width: float | None,
        random: Generator,
    ) -> Array:
        """The bases with other values where `which` says so; conditions hold as in the table."""
        changed = bases.copy()
        which &= np.isfinite(bases)
        kinds = _kinds(np.vstack([table, bases]))
        several = kinds.any()
        here, wanted = kinds[: len(table)], kinds[len(table) :]
        for place, distribution in enumerate(self.distributions.values()):
            old = bases[:, place]
            if isinstance(distribution, CategoricalDistribution):
                choices = len(distribution.choices)
                new = random.integers(choices, size=len(bases)).astype(float)
            elif width is None:
                new = _from_unit(distribution, random.random(len(bases)))
            else:
                moved = _to_unit(distribution, old) + random.normal(0, width, len(bases))
                new = _from_unit(distribution, np.abs(1 - np.abs(1 - np.abs(moved))))
            moves = which[:, place]
            if several and not isinstance(distribution, FloatDistribution):
                # A choice that no trial with these active parameters had may activate others,
                # which the candidate lacks.
                moves &= np.isin(wanted + 1j * new, here + 1j * table[:, place])
            changed[:, place] = np.where(moves, new, old)
        return changed

    def external(self, row: Array) -> dict[str, Any]:
        """A candidate as the values that a space receives."""
        return {
            name: distribution.to_external_repr(float(value))
            for (name, distribution), value in zip(self.distributions.items(), row, strict=True)
            if np.isfinite(value)
        }


def _kinds(table: Array) -> NDArray[np.intp]:
    """A number for each row, the same for those with the same active parameters: (rows,)."""
    active = np.isfinite(table)
    if active.all():
        return np.zeros(len(table), np.intp)
    packed = np.ascontiguousarray(np.packbits(active, axis=1))
    rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    return np.unique(rows, return_inverse=True)[1]


def _one_of_each_kind(table: Array, count: int, random: Generator) -> NDArray[np.intp]:
    """Indices of rows; every set of active parameters has the same share of them."""
    kinds = _kinds(table)
    weights = (1 / np.bincount(kinds))[kinds]
    return np.searchsorted(np.cumsum(weights), random.random(count) * weights.sum()).clip(
        max=len(table) - 1
    )


def _to_unit(distribution: BaseDistribution, values: Array) -> Array:
    low, high, log = _range(distribution)
    if log:
        return np.log(values / low) / math.log(high / low) if high > low else values * 0 + 0.5
    return (values - low) / (high - low) if high > low else values * 0 + 0.5


def _from_unit(distribution: BaseDistribution, units: Array) -> Array:
    low, high, log = _range(distribution)
    values = low * (high / low) ** units if log else low + units * (high - low)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.step is not None and not log:
        start = distribution.low
        values = start + np.round((values - start) / distribution.step) * distribution.step
    elif isinstance(distribution, IntDistribution):
        values = np.round(values)
    return np.clip(values, distribution.low, distribution.high)


def _range(distribution: BaseDistribution) -> tuple[float, float, bool]:
    """Stepped ranges get half a step more on each side, so that their ends are as likely."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    half = (distribution.step or 0) / 2 if not distribution.log else 0.0
    if isinstance(distribution, IntDistribution) and distribution.log:
        return distribution.low - 0.5, distribution.high + 0.5, distribution.low > 0
    return distribution.low - half, distribution.high + half, distribution.log
