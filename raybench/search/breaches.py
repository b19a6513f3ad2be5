"""Breaches: trials that break a constraint and will not satisfy it again.

Whether a column can recover is learned from the trials: seconds of training only grow, but the
bytes of a network shrink while it is pruned. If the column can recover, a trial is behind at a rung
when it is farther beyond the limit than any trial that satisfied the limit at its end:

    bytes     ●                     behind: farther than any that recovered
      │       ○───╮
      │       ○──────╮              recovered
    limit ────────────┴──────────
            rung         end
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from raybench.results.core import FINISHED
from raybench.results.limits import Limit
from raybench.results.log import Record

STEPS = 12  # changes between epochs, none toward the limit, before a breach counts as final
TRIALS = 3  # trials with such changes, at least
WITNESSES = 5  # complete trials that show from how far trials recover
LATEST = 256  # latest trials of a rung that are considered

Slacks = dict[int, float]
"""Trial number -> distance to a limit; negative if the trial breaks it."""


class Breaches:
    """Follows the columns of the limits in the running trials.

    Args:
        rungs: epochs at which trials are compared.
    """

    def __init__(self, limits: Sequence[Limit], rungs: Sequence[int] = ()) -> None:
        self._limits = limits
        self._at: dict[tuple[int, Limit], Slacks] = {
            (r, limit): {} for r in rungs for limit in limits
        }
        self._ends: dict[Limit, Slacks] = {limit: {} for limit in limits}
        self._rungs = frozenset(rungs)
        self._latest: dict[int, dict[Limit, float]] = {}
        self._steps = dict.fromkeys(limits, 0)
        self._trials = dict.fromkeys(limits, 0)
        self._returns: set[Limit] = set()

    def take(self, record: Record) -> None:
        kind, _, content = record
        if kind == "trial" and content.get("status") in FINISHED:
            last = self._latest.pop(content["number"], {})
            if content["status"] == "COMPLETE":
                for limit, slack in last.items():
                    self._ends[limit][content["number"]] = slack
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
            if content["epoch"] in self._rungs:
                self._at[content["epoch"], limit][content["number"]] = slack

    def behind(self, epoch: int) -> frozenset[int]:
        """Trials at a rung that are farther beyond a limit than any trial that recovered."""
        numbers: set[int] = set()
        for limit in self._limits:
            here, ends = self._at[epoch, limit], self._ends[limit]
            both = [number for number in ends if number in here][-LATEST:]
            if len(both) < WITNESSES:
                continue
            farthest = min([0.0, *(here[number] for number in both if ends[number] >= 0)])
            numbers.update(n for n in list(here)[-LATEST:] if here[n] < farthest)
        return frozenset(numbers)

    def reason(self, number: int) -> str | None:
        """Why a running trial cannot satisfy a limit again; None if it may."""
        for limit, slack in self._latest.get(number, {}).items():
            certain = self._steps[limit] >= STEPS and self._trials[limit] >= TRIALS
            if slack < 0 and certain and limit not in self._returns:
                return f"it breaks {limit}, and no trial has recovered from that"
        return None
