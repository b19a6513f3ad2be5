"""Breaches: trials that break a constraint and cannot come back to it.

Whether a column can come back is learned from the trials: seconds of training only grow, the bytes
of a network that is pruned while it trains shrink again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from raybench.results.core import FINISHED
from raybench.results.limits import Limit
from raybench.results.log import Record

STEPS = 12  # from one epoch to the next, none of which came closer to the limit
TRIALS = 3  # that these steps are of, at least


class Breaches:
    """Follows the columns of the limits in the running trials."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = limits
        self._latest: dict[int, dict[Limit, float]] = {}
        self._steps = dict.fromkeys(limits, 0)
        self._trials = dict.fromkeys(limits, 0)
        self._returns: set[Limit] = set()

    def take(self, record: Record) -> None:
        kind, _, content = record
        if kind == "trial" and content.get("status") in FINISHED:
            self._latest.pop(content["number"], None)
        if kind != "epoch":
            return
        latest = self._latest.setdefault(content["number"], {})
        for limit in self._limits:
            value = content.get(limit.column)
            if value is None or not math.isfinite(value):
                continue
            slack = limit.slack(float(value))
            if limit in latest:
                self._steps[limit] += 1
                if slack > latest[limit]:
                    self._returns.add(limit)
            else:
                self._trials[limit] += 1
            latest[limit] = slack

    def reason(self, number: int) -> str | None:
        """Why a running trial is hopeless, or None where it is not."""
        for limit, slack in self._latest.get(number, {}).items():
            certain = self._steps[limit] >= STEPS and self._trials[limit] >= TRIALS
            if slack < 0 and certain and limit not in self._returns:
                return f"it breaks {limit}, to which no trial has come back"
        return None
