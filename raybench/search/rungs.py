"""Early stopping by asynchronous successive halving (ASHA, Li et al. 2018, algorithm 2), for one
objective or several, at rungs that have shown to tell how a trial ends.

    epochs 1   2   3   4   5   6   7   8   9
    rung       ●       ●           ●       │
               │       │           ╰ keeps 1/3
               ╰───────┴─ first of all: does its order agree with that of the end?

At each rung a trial is compared with all that have been there before it. With several objectives
the order is that of non-domination (as in MO-ASHA, Schmucker et al. 2021), and a trial on the
rung's front always goes on. This is the stopping variant, whose decisions depend on the order of
arrival.

What a network says after an epoch may have nothing to do with how it ends: on a third of digits'
images, 9 epochs, accuracies after 1 and 3 had a rank correlation of -0.2 to 0.3 with the last ones,
after 6 of 0.7 to 0.8, and bytes, which are known at once, decided alone. The sweep kept the
smallest of networks that learned nothing, at 0.6 of random search's hypervolume. So a rung stops
nobody before trials that ended have shown that it knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd

from raybench.results.front import ranks

RUNGS = (Fraction(1, 9), Fraction(1, 3), Fraction(2, 3))  # shares of the epochs


@dataclass
class Rungs:
    """The comparisons so far. State is only what trials reported, so rows rebuild it."""

    objectives: dict[str, str]
    epochs: int
    reduction: int = 3
    evidence: int = 5
    """Trials that have to be complete before a rung stops any; 0 asks for no evidence at all."""
    agreement: float = 0.5
    """Least rank correlation (Spearman's) of each objective at the rung with itself at the end."""
    _seen: dict[int, dict[int, dict[str, float]]] = field(default_factory=dict)

    def levels(self) -> list[int]:
        """Epochs of the rungs; the last epoch is none, there a trial is complete."""
        found = sorted({math.ceil(share * self.epochs) for share in RUNGS})
        return [level for level in found if level < self.epochs]

    def record(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Notes what a trial reported, where that epoch is a rung or the last."""
        found = {name: metrics.get(name) for name in self.objectives}
        values = {name: float(value) for name, value in found.items() if value is not None}
        if epoch in (*self.levels(), self.epochs) and values:
            self._seen.setdefault(epoch, {})[number] = values

    def keeps(self, number: int, epoch: int) -> bool:
        """Whether the trial goes on after this epoch.

        An objective that is measured at the end alone, such as a latency, is in no report before:
        trials are compared by those that they have, with trials that have the same.
        """
        seen = self._seen.get(epoch, {})
        if number not in seen or epoch >= self.epochs:
            return True
        names = list(seen[number])
        if not all(self.tells(name, epoch) for name in names):
            return True
        numbers = sorted(n for n, values in seen.items() if list(values) == names)
        ways = [self.objectives[name] for name in names]
        order = ranks([list(seen[n].values()) for n in numbers], ways)
        rank = order[numbers.index(number)]
        better = sum(other < rank for other in order)
        return rank == 0 or better < len(order) // self.reduction

    def tells(self, name: str, epoch: int) -> bool:
        """Whether an objective at this rung orders the complete trials as it does at the end."""
        if not self.evidence:
            return True
        here, ends = self._seen.get(epoch, {}), self._seen.get(self.epochs, {})
        pairs = [
            (here[number][name], end[name])
            for number, end in ends.items()
            if name in end and name in here.get(number, {})
        ]
        if len(pairs) < self.evidence:
            return False
        early, late = np.array(pairs).T
        if np.ptp(late) == 0:
            return True  # there is no order to agree with: it takes no part in the comparison
        if np.ptp(early) == 0:
            return False
        correlation = pd.Series(early).corr(pd.Series(late), method="spearman")
        return bool(correlation >= self.agreement)
