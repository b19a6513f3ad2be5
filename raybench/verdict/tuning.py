"""Tuning: chooses an arm's learning rate and setting with the same number of runs for all arms.

setting         the middle one; then a stronger one if it loses no more accuracy
                than allowed, else a milder one
learning rate   an octave down and an octave up; then further away, or closer to the best one

It chooses the most accurate rate, unless the next higher one did not train. Then one seed cannot
tell how close that limit is, so it chooses the smallest of the rates that differ by less than the
standard error of the validation split.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

from raybench.verdict.arms import LR_STEPS, Run
from raybench.verdict.judgement import Outcome

UNTRAINED = 0.1  # a rate that is this much less accurate than the best did not train


@dataclass
class Tuning:
    """The runs of one arm's tuning that follow from the ended ones."""

    history: Mapping[Run, Outcome | None]
    first: Run
    number: int
    """Total number of runs."""
    allowed: float
    """The lowest accuracy that a setting may have."""
    settings: int = 0
    """The number of settings to choose from; 0 keeps those of the first run."""
    strong: bool = True
    """Whether the strongest of the settings that are accurate enough is the best."""
    images: int = 0
    """Images of the validation split; 0 if the accuracies have no error."""
    seen: list[Run] = field(default_factory=list)
    over: bool = False
    """Whether all runs have ended; only then is `best` the choice."""

    def runs(self) -> Iterator[Run]:
        """The runs in order; some may run at once, and the last may not have started."""
        beginning = [self.first] if self.settings else self._both_sides(self.first)
        if not (yield from self._all(beginning)):
            return
        while (
            len(self.seen) < self._for_settings() and (other := self._other_setting()) is not None
        ):
            if not (yield from self._all([other])):
                return
        if not (yield from self._all(self._both_sides(self.best() or self.first))):
            return
        while len(self.seen) < self.number and (closer := self._closer()) is not None:
            if not (yield from self._all([closer])):
                return
        self.over = True

    def best(self) -> Run | None:
        """The strongest setting that is accurate enough, then the most accurate run.

        None if no run has a model.
        """
        models = {run: one for run in self.seen if (one := self._outcome(run)) and one.complete}
        if not models:
            return None
        enough = {r: o for r, o in models.items() if o.accuracy >= self.allowed}
        among = models
        if enough and self.settings and self.strong:
            strongest = max(run.settings for run in enough)
            among = {run: one for run, one in enough.items() if run.settings == strongest}
        best = max(among, key=lambda run: among[run].accuracy)
        above = self._outcome(replace(best, lr_step=best.lr_step + 2))
        if above is None or (above.complete and above.accuracy > among[best].accuracy - UNTRAINED):
            return best
        least = among[best].accuracy - self._error(among[best].accuracy)
        alike = [r for r, one in among.items() if r.settings == best.settings]
        return min((r for r in alike if among[r].accuracy >= least), key=lambda r: r.lr_step)

    def _error(self, accuracy: float) -> float:
        """The standard error of an accuracy on the validation split."""
        return math.sqrt(accuracy * (1 - accuracy) / self.images) if self.images else 0.0

    def _for_settings(self) -> int:
        """The number of runs for the setting: all but two for the learning rate, or one.

        One if no setting is accurate enough yet, because a learning rate seldom compensates for
        that.
        """
        best = self.best()
        outcome = self._outcome(best) if best else None
        accurate = outcome is not None and outcome.accuracy >= self.allowed
        return min(self.settings, max(1, self.number - (2 if accurate else 1)))

    def _both_sides(self, at: Run) -> list[Run]:
        return [replace(at, lr_step=at.lr_step + step) for step in (0, -2, 2)]

    def _all(self, runs: list[Run]) -> Generator[Run, None, bool]:
        """Adds the runs to the wanted ones; returns whether all of them have ended."""
        runs = [r for r in runs if abs(r.lr_step) <= LR_STEPS and r not in self.seen]
        runs = runs[: self.number - len(self.seen)]
        self.seen += runs
        yield from runs
        return all(self._outcome(run) is not None for run in runs)

    def _outcome(self, run: Run) -> Outcome | None:
        return self.history.get(run)

    def _other_setting(self) -> Run | None:
        """One step stronger or milder than the best so far; None if both were tried."""
        at = self.best()
        ((name, number),) = (at or self.first).settings
        outcome = self._outcome(at) if at else None
        stronger = self.strong and outcome is not None and outcome.accuracy >= self.allowed
        for step in (1, -1) if stronger else (-1, 1):
            other = replace(self.first, settings=((name, number + step),))
            if 1 <= number + step <= self.settings and other not in self.seen:
                return other
        return None

    def _closer(self) -> Run | None:
        """A neighbour of the best rate: an octave beyond the tried range, else half an octave."""
        at = self.best() or self.first
        tried = {run.lr_step: run for run in self.seen if run.settings == at.settings}

        def accuracy(step: int) -> float:
            outcome = self._outcome(tried[step]) if step in tried else None
            return outcome.accuracy if outcome and outcome.complete else -1.0

        sides = sorted((2, -2), key=lambda side: accuracy(at.lr_step + side), reverse=True)
        steps = [at.lr_step + side for side in sides if at.lr_step + side not in tried]
        steps += [at.lr_step + side // 2 for side in sides]
        free = [step for step in steps if step not in tried and abs(step) <= LR_STEPS]
        return replace(at, lr_step=free[0]) if free else None
