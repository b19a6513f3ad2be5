"""Early stopping by asynchronous successive halving (ASHA, Li et al. 2018, algorithm 2), for one
objective or several, at rungs whose ranking has matched the final one.

    epochs 1   2   3   4   5   6   7   8   9
    rung       ●       ●           ●       │
               │       │           ╰ keeps 1/3
               ╰───────┴─ first check: does its ranking agree with the final one?

At each rung a trial is compared with those that reached the rung before it. With several objectives
they are ranked by non-domination (as in MO-ASHA, Schmucker et al. 2021), and a trial on the rung's
front always continues. As in ASHA's stopping variant, decisions depend on the order of arrival.

A decision costs the same after 5,000 trials as after 50. With one objective the values are kept
sorted. With several, a trial is compared with 256 of the others, drawn by their numbers.

Early metrics may not predict the final ones. On a third of digits' images, with 9 epochs,
accuracies after 1 and 3 epochs had a rank correlation of -0.2 to 0.3 with the final ones, and 0.7
to 0.8 after 6. Only bytes, which are known at once, decided: the sweep kept the smallest networks,
which learned nothing, and reached 0.6 of random search's hypervolume. So a rung stops trials only
after complete trials have shown that its ranking matches the final one.

Even a good ranking does not separate similar trials. On CIFAR-10's grid, accuracies after one epoch
have a correlation of 0.87 with the final ones, yet that epoch stopped members of the final front.
So a trial is ranked higher than it is, by about as many places as ranks change until the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybench.results.log import Record
from raybench.search.compared import Group, Sample, Sorted, Values
from raybench.search.forecast import places
from raybench.search.marks import marks

RUNGS = (Fraction(1, 9), Fraction(1, 3), Fraction(2, 3))  # shares of the epochs
CROWDED = Fraction(1, 18)  # an extra rung if many trials run: each gets few epochs of the budget
EARLIER = 0.75  # a rung is compared with the last mark up to this share of its epochs
DOUBT = 4  # uncorrelated trials added to the complete ones, because a few can agree by chance
SLACK = 1.5  # standard deviations of the change of ranks until the end
SPREAD = 12**-0.5  # standard deviation of all ranks, as a share of the number of trials
WITNESSES = 256  # latest complete trials that show whether a rung's ranking matches the final one


@dataclass
class Rungs:
    """The comparisons so far. The state comes only from reports, so rows can rebuild it."""

    objectives: dict[str, str]
    epochs: int
    reduction: int = 3
    evidence: int = 5
    """Trials that must confirm a rung's ranking before it stops any; 0 needs none."""
    agreement: float = 0.5
    """Minimum rank correlation (Spearman's) of each objective at the rung with its final value."""
    stability: float = 0.7
    """Minimum rank correlation with the mark before the rung, while few trials are complete."""
    _seen: dict[int, dict[int, Values]] = field(default_factory=dict)
    _groups: dict[tuple[int, tuple[str, ...]], Group] = field(default_factory=dict)
    """By rung and names: a trial is compared with those that reported the same objectives."""
    _lasting: dict[tuple[str, int], float | None] = field(default_factory=dict)
    _complete: list[int] = field(default_factory=list)
    _passed: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = marks(self.epochs)
        self._before = {
            level: max((mark for mark in every if mark <= EARLIER * level), default=0)
            for level in (self.crowded_level, *self.levels())
        }
        self._rungs = frozenset(self._before)
        self._noted = {*self._before, *self._before.values(), self.epochs}

    def levels(self) -> list[int]:
        """Epochs of the rungs. The last epoch is not a rung: the trial is complete there."""
        epochs = sorted({math.ceil(share * self.epochs) for share in RUNGS})
        return [level for level in epochs if level < self.epochs]

    @property
    def crowded_level(self) -> int:
        """Epoch of the extra rung if many trials run; it may equal that of the first rung."""
        return math.ceil(CROWDED * self.epochs)

    def take(self, record: Record) -> None:
        """Records an epoch of the log."""
        kind, _, content = record
        if kind == "epoch":
            self.record(content["number"], content["epoch"], content)

    def record(self, number: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Records a trial's report if its epoch is a rung or the last one."""
        if epoch not in self._noted:
            return
        reported = {name: metrics.get(name) for name in self.objectives}
        values = {name: float(value) for name, value in reported.items() if value is not None}
        if not values:
            return
        seen = self._seen.setdefault(epoch, {})
        before = seen.get(number)
        seen[number] = values
        self._lasting.clear()
        if epoch == self.epochs:
            if before is None:
                self._complete.append(number)
            return
        if epoch not in self._rungs:
            return
        if before is None:
            self._passed.setdefault(epoch, []).append(number)
        if before is not None:  # it resumed from an older checkpoint and reports this epoch again
            self._group(epoch, before).remove(number, before)
        self._group(epoch, values).add(number, values)

    def keeps(self, number: int, epoch: int, behind: frozenset[int] = frozenset()) -> bool:
        """Whether the trial continues after this epoch.

        An objective that is measured only at the end, such as a latency, is missing in earlier
        reports. Trials are compared with those that have reported the same objectives.

        Args:
            behind: trials that will break a constraint; they come after all others.
        """
        seen = self._seen.get(epoch, {})
        if number not in seen or epoch not in self._rungs:
            return True
        if number in behind:
            return len(seen) - len(behind) < len(seen) // self.reduction
        values = seen[number]
        if not all(self.tells(name, epoch) for name in values):
            return True
        others = {one: seen[one] for one in behind if one in seen}
        slack = [self._slack(name, epoch) for name in values]
        better, compared = self._group(epoch, values).better(number, values, others, slack)
        return better == 0 or better < compared // self.reduction

    def _group(self, epoch: int, values: Values) -> Group:
        key = (epoch, tuple(values))
        if key not in self._groups:
            ways = [self.objectives[name] for name in values]
            self._groups[key] = Sorted(ways[0]) if len(ways) == 1 else Sample(ways)
        return self._groups[key]

    def tells(self, name: str, epoch: int) -> bool:
        """Whether an objective ranks the complete trials at this rung as it does at the end."""
        return self._correlation(name, epoch) is not None

    def _slack(self, name: str, epoch: int) -> float:
        """Share of all places by which a trial is ranked higher than it is.

        With a correlation of r, final ranks scatter around their regression on the rung's ranks
        with a standard deviation of sqrt(1 - r^2) times that of all ranks.
        """
        r = self._correlation(name, epoch)
        return 0.0 if r is None else SLACK * SPREAD * math.sqrt(1 - r**2)

    def _correlation(self, name: str, epoch: int) -> float | None:
        """Rank correlation of an objective at the rung with its final values; None if too weak."""
        if not self.evidence:
            return 1.0
        if (name, epoch) not in self._lasting:
            self._lasting[name, epoch] = self._measured(name, epoch)
        return self._lasting[name, epoch]

    def _measured(self, name: str, epoch: int) -> float | None:
        early, late = self._pairs(name, epoch, self.epochs, self._complete)
        complete = len(late)
        if complete >= self.evidence:
            if np.ptp(late) == 0:
                # All final values are equal, so this objective cannot mislead. Equal values only at
                # the rung do not count: networks may still be at chance.
                return 1.0
            r = _spearman(early, late)
            if r * complete / (complete + DOUBT) >= self.agreement:
                return r
            if r < self.agreement or complete >= 2 * self.evidence:
                return None
        early, late = self._pairs(name, self._before[epoch], epoch, self._passed.get(epoch, []))
        if len(late) < self.evidence:
            return None
        r = _spearman(early, late)
        return r if r >= self.stability else None

    def _pairs(
        self, name: str, early: int, late: int, numbers: list[int]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The values of an objective at two epochs, of the latest trials that have both."""
        here, there = self._seen.get(early, {}), self._seen.get(late, {})
        pairs = [
            (here[number][name], there[number][name])
            for number in numbers[-WITNESSES:]
            if name in here.get(number, {}) and name in there.get(number, {})
        ]
        both = np.array(pairs).reshape(len(pairs), 2)
        return both[:, 0], both[:, 1]


def _spearman(early: NDArray[np.float64], late: NDArray[np.float64]) -> float:
    """Spearman's correlation; 0 if one side is constant."""
    if np.ptp(early) == 0 or np.ptp(late) == 0:
        return 0.0
    return min(1.0, float(np.corrcoef(places(early), places(late))[0, 1]))
