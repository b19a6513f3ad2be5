"""The trials at a rung that others are compared with: all of them, or a sample.

Each takes `slack`, for every objective the share of the places by which a trial counts as better
than it is.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

from raybench.results.front import ranks

COMPARED = 256  # trials that one is compared with, if there are several objectives

Values = dict[str, float]
"""Objectives and their values."""


class Sorted:
    """All values of one objective at a rung, in order."""

    def __init__(self, way: str) -> None:
        self._sign = -1.0 if way == "max" else 1.0
        self._costs: list[float] = []

    def _cost(self, values: Values) -> float:
        (value,) = values.values()
        cost = self._sign * value
        return math.inf if math.isnan(cost) else cost

    def add(self, number: int, values: Values) -> None:
        insort(self._costs, self._cost(values))

    def remove(self, number: int, values: Values) -> None:
        del self._costs[bisect_left(self._costs, self._cost(values))]

    def better(
        self, number: int, values: Values, behind: Mapping[int, Values], slack: Sequence[float]
    ) -> tuple[int, int]:
        """How many are better than this one with its slack, without those behind; of how many."""
        cost = _improved(self._cost(values), self._costs, slack[0])
        without = sum(
            self._cost(one) < cost for one in behind.values() if one.keys() == values.keys()
        )
        return bisect_left(self._costs, cost) - without, len(self._costs)


class Sample:
    """A sample of the trials at a rung: those with the smallest hashes of their numbers.

    The sample does not depend on the order of arrival, so rows can rebuild it.
    """

    def __init__(self, ways: list[str]) -> None:
        self._ways = ways
        self._kept: list[tuple[int, int]] = []  # hash and number, in order
        self._points: dict[int, list[float]] = {}

    def add(self, number: int, values: Values) -> None:
        insort(self._kept, (_hash(number), number))
        self._points[number] = list(values.values())
        if len(self._kept) > COMPARED:
            del self._points[self._kept.pop()[1]]

    def remove(self, number: int, values: Values) -> None:
        if number in self._points:
            self._kept.remove((_hash(number), number))
            del self._points[number]

    def better(
        self, number: int, values: Values, behind: Mapping[int, Values], slack: Sequence[float]
    ) -> tuple[int, int]:
        """The same within the sample; better means on an earlier front."""
        ahead = {one: point for one, point in self._points.items() if one not in behind}
        points = {**ahead, number: self._moved(list(values.values()), slack)}
        order = ranks(list(points.values()), self._ways)
        rank = order[list(points).index(number)]
        compared = len(order) + len(self._points) - len(ahead)
        return sum(other < rank for other in order), compared

    def _moved(self, point: list[float], slack: Sequence[float]) -> list[float]:
        if not any(slack):
            return point
        moved = []
        for axis, (value, way) in enumerate(zip(point, self._ways, strict=True)):
            sign = -1.0 if way == "max" else 1.0
            costs = sorted(sign * one[axis] for one in self._points.values())
            moved.append(sign * _improved(sign * value, costs, slack[axis]))
        return moved


Group = Sorted | Sample


def _improved(cost: float, costs: list[float], slack: float) -> float:
    """The cost that is better by this share of all places, among sorted costs."""
    if cost == math.inf:
        return cost
    place = max(0, bisect_left(costs, cost) - round(slack * len(costs)))
    return min(cost, costs[place]) if place < len(costs) else cost  # it may be worse than all


def _hash(number: int) -> int:
    return zlib.crc32(b"%d" % number)
