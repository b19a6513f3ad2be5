"""Tally: the counts of a sweep's trials and their front, kept up to date record by record."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from raybench.results.core import FINISHED
from raybench.results.limits import Limit
from raybench.results.log import Record

LATEST = 12  # trials that ended last, for display


class Tally:
    """Running totals over all trials, so that no event needs a loop over all of them.

    Args:
        objectives: column -> "max" or "min".
        limits: a trial that breaks one of them is not on the front.
    """

    def __init__(self, objectives: dict[str, str], limits: Sequence[Limit] = ()) -> None:
        self.objectives, self._limits = objectives, limits
        self.counts: Counter[str] = Counter()
        """Trials by status."""
        self.keys: dict[str, int] = {}
        """Trial number by its Experiment's key."""
        self.next_number = 0
        self.running: dict[int, None] = {}
        """Numbers of the trials that have not ended, in order."""
        self.latest: deque[int] = deque(maxlen=LATEST)
        """Numbers of the trials that ended last."""
        self.front: dict[int, tuple[float, ...]] = {}
        """Number and costs of the complete trials on the front; smaller costs are better."""
        self.complete: set[int] = set()
        """Numbers of the complete trials."""
        self.reached: dict[int, int] = {}
        """The last epoch that a running trial has reported, in any of its attempts."""

    @property
    def trials(self) -> int:
        return self.counts.total()

    @property
    def ended(self) -> int:
        return sum(self.counts[status] for status in FINISHED)

    @property
    def best(self) -> float | None:
        """The best value of the first objective; None before the first complete trial."""
        direction = next(iter(self.objectives.values()))
        costs = [costs[0] for costs in self.front.values()]
        if not costs:
            return None
        return -min(costs) if direction == "max" else min(costs)

    def take(self, record: Record) -> None:
        kind, _, content = record
        if kind == "epoch":
            number, epoch = content["number"], content["epoch"]
            self.reached[number] = max(epoch, self.reached.get(number, 0))
        if kind != "trial":
            return
        number = content["number"]
        if number not in self.running:
            self.counts["RUNNING"] += 1
            self.running[number] = None
            self.next_number = max(self.next_number, number + 1)
            if content.get("key"):
                self.keys.setdefault(content["key"], number)
        status = content.get("status")
        if status in FINISHED:
            del self.running[number]
            self.reached.pop(number, None)
            self.counts["RUNNING"] -= 1
            self.counts[status] += 1
            self.latest.append(number)
            if status == "COMPLETE":
                self.complete.add(number)
                if all(limit.holds(content) for limit in self._limits):
                    self._enter(number, [float(content[name]) for name in self.objectives])

    def _enter(self, number: int, values: list[float]) -> None:
        signs = [-1.0 if way == "max" else 1.0 for way in self.objectives.values()]
        costs = tuple(sign * value for sign, value in zip(signs, values, strict=True))
        if any(_dominates(other, costs) for other in self.front.values()):
            return
        self.front = {n: c for n, c in self.front.items() if not _dominates(costs, c)}
        self.front[number] = costs


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether `one` is no worse in any objective and better in at least one."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
