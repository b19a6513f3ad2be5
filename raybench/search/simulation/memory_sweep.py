"""MemorySweep: a sweep's decisions without a disk, an Experiment or a schema."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raybench.results.log import Record
from raybench.search.decisions import Decisions
from raybench.search.simulation.curves import Params, Suggest

DUPLICATES = 50  # repeated suggestions in a row that end the sweep


@dataclass(frozen=True)
class Simulated:
    """A trial to be simulated."""

    number: int
    params: Params


class MemorySweep:
    """Passes the decisions the records that a sweep would write to its log.

    Args:
        trials: the largest number of trials.
        records: those of an earlier sweep to continue, or a `prior`.
    """

    def __init__(
        self,
        decisions: Decisions,
        suggest: Suggest,
        *,
        trials: int = 10**9,
        records: Sequence[Record] = (),
    ) -> None:
        self.decisions, self._suggest, self._trials = decisions, suggest, trials
        self.records: list[Record] = []
        self._metrics: dict[int, dict[str, Any]] = {}  # the latest of each running trial
        self._repeating = False
        for kind, _, content in records:
            self._put(kind, content)

    def ask(self) -> Simulated | None:
        """The next trial; None when there are enough, or when suggestions only repeat."""
        tally = self.decisions.tally
        if tally.trials >= self._trials or self._repeating:
            return None
        if self.decisions.sampling.waits:
            return None
        for attempt in range(DUPLICATES):
            trial = self.decisions.ask(tally.next_number, attempt)
            params = self._suggest(trial)
            key = json.dumps(params, sort_keys=True)
            if key in tally.keys:
                continue
            suggestion = self.decisions.sampling.suggested(trial).record()
            self._put("suggested", {**suggestion, "enqueued": None})
            self._put("trial", {"number": trial.number, "key": key, "status": "RUNNING"})
            return Simulated(trial.number, params)
        self._repeating = True
        return None

    def report(self, number: int, epoch: int, metrics: dict[str, Any]) -> bool:
        self._put("epoch", {"number": number, "epoch": epoch, **metrics})
        return self.decisions.stops(number, epoch)

    def finish(self, number: int, status: str, stop_reason: str | None = None) -> None:
        self._repeating = False
        metrics = self._metrics.pop(number, {})
        values = [metrics.get(name) for name in self.decisions.tally.objectives]
        if status == "COMPLETE" and not all(v is not None and math.isfinite(v) for v in values):
            status = "FAILED"
        row = {"number": number, "status": status, "stop_reason": stop_reason, **metrics}
        self._put("trial", row)

    def _put(self, kind: str, content: dict[str, Any]) -> None:
        record = (kind, float(len(self.records)), content)
        if kind == "epoch":
            reported = {n: v for n, v in content.items() if n not in ("number", "epoch")}
            self._metrics[content["number"]] = reported
        self.records.append(record)
        self.decisions.take(record)
