"""Early stopping by asynchronous successive halving (ASHA, Li et al. 2018, algorithm 2), for one
objective or several.

    epochs 1   2   3   4   5   6   7   8   9  ...
    rung       ●               ●                     at each rung the trial is compared with all
               │               └ keeps 1/3           that have been there before it
               └ keeps 1/3

With several objectives the order is that of non-domination (as in MO-ASHA, Schmucker et al.
2021), and a trial on the rung's front always goes on. This is the stopping variant: the first to
arrive at a rung always passes, so decisions depend on the order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raybench.results.front import ranks


@dataclass
class Rungs:
    """The comparisons so far. State is only what trials reported, so rows rebuild it."""

    objectives: dict[str, str]
    epochs: int
    reduction: int = 3
    grace: int = 0
    """Epoch of the first rung; 0 is a tenth of the epochs."""
    _seen: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)

    def levels(self) -> list[int]:
        """Epochs of the rungs; the last epoch is none, there a trial is complete."""
        level = self.grace or max(1, math.ceil(self.epochs / 10))
        levels = []
        while level < self.epochs:
            levels.append(level)
            level *= self.reduction
        return levels

    def record(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Notes what a trial reported, where that epoch is a rung."""
        found = {name: metrics.get(name) for name in self.objectives}
        values = {name: float(value) for name, value in found.items() if value is not None}
        if epoch in self.levels() and values:
            self._seen.setdefault(epoch, {})[number] = values

    def keeps(self, number: int, epoch: int) -> bool:
        """Whether the trial goes on after this epoch.

        An objective that is measured at the end alone, such as a latency, is in no report before:
        trials are compared by those that they have, with trials that have the same.
        """
        seen = self._seen.get(epoch, {})
        if number not in seen:
            return True
        names = list(seen[number])
        numbers = sorted(n for n, values in seen.items() if list(values) == names)
        ways = [self.objectives[name] for name in names]
        order = ranks([list(seen[n].values()) for n in numbers], ways)
        rank = order[numbers.index(number)]
        better = sum(other < rank for other in order)
        return rank == 0 or better < len(order) // self.reduction
