"""Where a trial's parameters come from: `enqueue` first, then the sampler, then what is left."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any

from optuna import TrialPruned
from optuna.trial import Trial

from raybench.search.cells import EndlessError, cells
from raybench.search.sampling import Sampling
from raybench.search.space import Space

DUPLICATES = 50  # suggestions in a row that were there before, until all cells are looked at


class Proposals:
    """Trials to be sampled by the space, until one gives an experiment that is new."""

    def __init__(self, space: Space, sampling: Sampling) -> None:
        self._space, self._sampling = space, sampling
        begun = sampling.enqueued
        self._to_enqueue = deque(
            (place, params) for place, params in enumerate(space.enqueue) if place not in begun
        )
        self._cells: Iterator[dict[str, Any]] | None = None
        self.exhausted = False
        """Whether every experiment of the space has a trial: all cells were looked at."""
        self.repeating = False
        """Whether suggestions repeat themselves in a space that has no end of them."""

    @property
    def over(self) -> bool:
        return self.exhausted or self.repeating

    def of(self, number: int) -> Iterator[tuple[Trial, int | None]]:
        """One after another, each with its place in `enqueue` if it is from there.

        At the end of the iterator there is nothing new; `exhausted` or `repeating` says why.
        """
        for attempt in range(DUPLICATES):
            place, fixed = self._to_enqueue.popleft() if self._to_enqueue else (None, None)
            yield self._sampling.ask(number, attempt, fixed), place
        if self._cells is None:
            self._cells = cells(self._space.sample)
        try:
            for params in self._cells:
                yield self._sampling.ask(number, 0, params), None
            self.exhausted = True
        except EndlessError:
            self.repeating = True


def outcome_of(error: Exception) -> tuple[str, str, str | None]:
    """What a space raised as its trial's status, stop_reason and traceback."""
    said = " ".join(str(error).split())
    if isinstance(error, TrialPruned):
        return "PRUNED", f"the space pruned it{f': {said}' if said else ''}", None
    trace = "".join(traceback.format_exception(error))
    return "FAILED", f"the space raised {type(error).__name__}: {said}", trace
