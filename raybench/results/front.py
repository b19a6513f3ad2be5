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
