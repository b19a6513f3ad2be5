"""Spending: the seconds of training that a sweep's trials took, against its budget."""

from __future__ import annotations

import math

from raybench.results.core import FINISHED
from raybench.results.log import Record

SECONDS = "train_s"  # the column, summed over a trial's epochs


class Spending:
    """Adds up the trials' seconds; epochs repeated after a loss count once.

    Args:
        budget_s: seconds of all trials; infinite without a budget.
    """

    def __init__(self, budget_s: float = math.inf) -> None:
        self.budget_s = budget_s
        self.ended_s = 0.0
        """Seconds of the trials that have ended."""
        self._running: dict[int, float] = {}

    @property
    def spent_s(self) -> float:
        return self.ended_s + sum(self._running.values())

    @property
    def limited(self) -> bool:
        """Whether there is a budget."""
        return math.isfinite(self.budget_s)

    @property
    def over(self) -> bool:
        """Whether the budget is spent."""
        return self.spent_s >= self.budget_s

    def take(self, record: Record) -> None:
        kind, _, content = record
        number, seconds = content.get("number", -1), content.get(SECONDS)
        if kind == "epoch" and seconds is not None and math.isfinite(seconds):
            self._running[number] = max(float(seconds), self._running.get(number, 0.0))
        elif kind == "trial" and content.get("status") in FINISHED:
            self.ended_s += self._running.pop(number, 0.0)
