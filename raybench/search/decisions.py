"""Decisions: what to try next and what to stop, computed only from the records of a sweep.

A sweep passes the records of its log; the simulator passes the same records from memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from raybench.results.limits import limits
from raybench.results.log import Record
from raybench.search.breaches import Breaches
from raybench.search.guide import WAVE
from raybench.search.rungs import Rungs
from raybench.search.sampling import Sampling
from raybench.search.spending import SECONDS, Spending
from raybench.search.tally import Tally


class Decisions:
    """The deciding part of a sweep.

    Args:
        objectives: column -> "max" or "min".
        epochs: epochs of the longest trial.
        sampler: how trials are suggested.
        early_stopping: whether trials that fall behind, or break a constraint, are stopped.
        constraints: column -> "<= NUMBER" or ">= NUMBER".
        budget_s: seconds of training of all trials; with a budget, cheap trials come first.

    Raises:
        ValueError: `evidence` or a constraint is not valid.
    """

    def __init__(
        self,
        objectives: Mapping[str, str],
        epochs: int,
        *,
        sampler: str,
        seed: int,
        early_stopping: bool,
        evidence: int,
        constraints: Mapping[str, str] | None = None,
        budget_s: float = math.inf,
    ) -> None:
        if evidence < 0:
            raise ValueError(f"--evidence is {evidence}: a number of trials, 0 or more")
        bounds = limits(constraints or {})
        self.tally = Tally(dict(objectives), bounds)
        self.reasons: dict[int, str] = {}
        """Why a running trial was told to stop."""
        self.rungs = Rungs(dict(objectives), epochs, evidence=evidence)
        self._levels = frozenset(self.rungs.levels())
        self._crowded_levels = self._levels | {self.rungs.crowded_level}
        self._breaches = Breaches(bounds, sorted(self._crowded_levels))
        self.spending = Spending(budget_s)
        cost = SECONDS if self.spending.limited else None
        self.sampling = Sampling(dict(objectives), sampler, seed, epochs, bounds, cost)
        self._early_stopping = early_stopping
        self.begun = False
        """Whether there is a trial, or a prior from older sweeps."""

    @property
    def over(self) -> bool:
        """Whether the budget is spent: running trials stop, and no new ones start."""
        return self.spending.over

    def take(self, record: Record) -> None:
        self.begun = self.begun or record[0] in ("prior", "suggested")
        self.tally.take(record)
        self.rungs.take(record)
        self._breaches.take(record)
        self.spending.take(record)
        self.sampling.take(record)

    def ask(self, number: int, attempt: int = 0, fixed: dict[str, Any] | None = None) -> Trial:
        """A trial for a space to sample from."""
        return self.sampling.ask(number, attempt, fixed)

    def stops(self, number: int, epoch: int) -> bool:
        """Whether a running trial stops after this epoch, which it has just reported.

        A trial that resumes from an older checkpoint reports some epochs again. It is not stopped
        at those, because the table already holds its later epochs.
        """
        if self.over:
            return True
        if not self._early_stopping or epoch < self.tally.reached.get(number, 0):
            return False
        reason = self._breaches.reason(number)
        crowded = len(self.tally.running) > WAVE
        if reason is None and epoch in (self._crowded_levels if crowded else self._levels):
            behind = self._breaches.behind(epoch)
            if not self.rungs.keeps(number, epoch, behind):
                reason = f"below the best third after epoch {epoch}"
                if number in behind:
                    reason = f"it breaks a constraint from which none recovered after epoch {epoch}"
        if reason is not None:
            self.reasons[number] = reason
        return reason is not None
