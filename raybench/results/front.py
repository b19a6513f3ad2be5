"""The Pareto front: what no other result beats in every objective at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def ranks(values: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Non-domination rank of each point: 0 is on the front, 1 on the front without those, …

    Args:
        values: a point a row, an objective a column.
        directions: "max" or "min" for each objective.
    """
    signs = np.array([-1.0 if direction == "max" else 1.0 for direction in directions])
    costs = np.asarray(values, dtype=float).reshape(len(values), len(signs)) * signs
    # dominates[i, j]: i is nowhere worse than j, and somewhere better.
    no_worse = (costs[:, None] <= costs[None]).all(-1)
    dominates = no_worse & (costs[:, None] < costs[None]).any(-1)
    rank = np.full(len(costs), -1)
    level = 0
    while (rank < 0).any():
        left = rank < 0
        front = left & ~dominates[left].any(0)
        rank[front] = level
        level += 1
    return [int(r) for r in rank]


def hypervolume(costs: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume that some points, all to be small, dominate below the reference point.

    Exact, slice by slice along the last objective; quick for two or three of them.
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


def front(trials: pd.DataFrame, objectives: dict[str, str]) -> pd.DataFrame:
    """The rows on the Pareto front, best first objective first.

    Only COMPLETE trials stand on it: a stopped one was measured after fewer epochs.
    """
    complete = trials[trials["status"] == "COMPLETE"].dropna(subset=list(objectives))
    if complete.empty:
        return complete
    values = complete[list(objectives)].to_numpy(dtype=float).tolist()
    on_front = [rank == 0 for rank in ranks(values, list(objectives.values()))]
    first, direction = next(iter(objectives.items()))
    return complete[on_front].sort_values(first, ascending=direction == "min")
