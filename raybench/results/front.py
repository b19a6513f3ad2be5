"""The Pareto front: the results that no other result dominates."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.results.limits import feasible


def ranks(values: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Non-domination rank of each point: 0 on the front, 1 on the front of the rest, …

    Args:
        values: one point per row, one objective per column.
        directions: "max" or "min" for each objective.
    """
    costs = _costs(values, directions)
    if costs.shape[1] == 2:
        return _ranks_of_two(costs.tolist())
    # dominates[i, j]: i is no worse than j in any objective, and better in one.
    no_worse = np.all(costs[:, None] <= costs[None], axis=-1)
    dominates: NDArray[np.bool_] = no_worse & np.any(costs[:, None] < costs[None], axis=-1)
    rank = np.full(len(costs), -1)
    level = 0
    while (rank < 0).any():
        left = rank < 0
        front = left & ~dominates[left].any(0)
        rank[front] = level
        level += 1
    return [int(r) for r in rank]


def _ranks_of_two(costs: list[list[float]]) -> list[int]:
    """One pass in order of the first cost; the least second cost of a front grows with its rank."""
    rank, least = [0] * len(costs), list[float]()
    before, at = list[float](), 0
    for place in sorted(range(len(costs)), key=costs.__getitem__):
        if costs[place] != before:  # equal points share their rank
            before = costs[place]
            at = bisect_right(least, before[1])
            least[at : at + 1] = [before[1]]
        rank[place] = at
    return rank


def on_front(values: Sequence[Sequence[float]], directions: Sequence[str]) -> list[bool]:
    """Whether each point is on the front; faster than computing all ranks.

    Args:
        values: one point per row, one objective per column.
        directions: "max" or "min" for each objective.
    """
    costs = _costs(values, directions)
    on = np.zeros(len(costs), dtype=bool)
    kept = np.empty((0, costs.shape[1]))
    for place in np.lexsort(costs.T[::-1]):  # a dominating point comes before those it dominates
        point = costs[place]
        no_worse = (kept <= point).all(1)
        on[place] = not (no_worse & (kept < point).any(1)).any()
        if on[place]:
            kept = np.vstack([kept, point])
    return [bool(is_on) for is_on in on]


def _costs(values: Sequence[Sequence[float]], directions: Sequence[str]) -> NDArray[np.float64]:
    """The values with signs such that smaller is better: (points, objectives)."""
    signs = np.array([-1.0 if direction == "max" else 1.0 for direction in directions])
    return np.asarray(values, dtype=float).reshape(len(values), len(signs)) * signs


def hypervolume(costs: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume below the reference point that the points dominate; smaller costs are better.

    Exact, slice by slice along the last objective; fast for two or three objectives.
    """
    below = [p for p in costs if all(c < end for c, end in zip(p, reference, strict=True))]
    if not below:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(cost for (cost,) in below)
    below.sort(key=lambda point: point[-1])
    ends = [*(point[-1] for point in below[1:]), reference[-1]]
    return sum(
        (end - point[-1]) * hypervolume([p[:-1] for p in below[:number]], reference[:-1])
        for number, (point, end) in enumerate(zip(below, ends, strict=True), start=1)
        if end > point[-1]
    )


def front(
    trials: pd.DataFrame, objectives: dict[str, str], constraints: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The rows on the Pareto front, sorted by the first objective, best first.

    Only COMPLETE trials that satisfy the constraints count; a stopped trial was measured after
    fewer epochs.
    """
    complete = trials[trials["status"] == "COMPLETE"].dropna(subset=list(objectives))
    complete = feasible(complete, constraints or {})
    if complete.empty:
        return complete
    values = complete[list(objectives)].to_numpy(dtype=float).tolist()
    first, direction = next(iter(objectives.items()))
    return complete[on_front(values, list(objectives.values()))].sort_values(
        first, ascending=direction == "min"
    )
