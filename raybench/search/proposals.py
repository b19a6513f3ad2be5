"""Where a trial's parameters come from: `enqueue`, then the sampler, then the untried cells."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from optuna import TrialPruned
from optuna.trial import Trial

from raybench.results.log import Record
from raybench.search.cells import EndlessError, cells
from raybench.search.sampling import Sampling
from raybench.search.space import Space

DUPLICATES = 50  # repeated suggestions in a row, after which all cells are enumerated


class Proposer(Protocol):
    """Chooses what a sweep tries next. It takes every record of the log, the old ones first."""

    @property
    def over(self) -> bool:
        """Whether there are no more trials to start."""

    @property
    def ready(self) -> bool:
        """Whether a trial may start before another one reports or ends."""

    @property
    def remark(self) -> str:
        """Why there are no more trials, in a sentence; empty if that is expected."""

    @property
    def late(self) -> bool:
        """Whether time is up: running trials stay as they are, for a later run of the sweep."""

    @property
    def planned(self) -> int | None:
        """The total number of trials, if it is known."""

    def take(self, record: Record) -> None:
        """Takes a record of the log."""

    def of(self, number: int) -> Iterator[tuple[Trial, int | None]]:
        """Trials for the space to sample, one of which becomes `number`.

        Each comes with its index in `enqueue`, if it is from there.
        """


class Proposals:
    """Trials for the space to sample, until one gives a new experiment."""

    planned, late = None, False

    def __init__(self, space: Space, sampling: Sampling) -> None:
        self._space, self._sampling = space, sampling
        self._to_enqueue: deque[tuple[int, dict[str, Any]]] | None = None
        self._cells: Iterator[dict[str, Any]] | None = None
        self.exhausted = False
        """Whether every experiment of the space has a trial: all cells were enumerated."""
        self.repeating = False
        """Whether suggestions only repeat, in a space whose cells cannot be enumerated."""
        self._trials = 0

    @property
    def over(self) -> bool:
        return self.exhausted or self.repeating

    @property
    def ready(self) -> bool:
        return not self.over and not self._sampling.waits

    @property
    def remark(self) -> str:
        if self.exhausted:
            return f"the space holds only {self._trials} different experiments"
        if self.repeating:
            return (
                f"{DUPLICATES} suggestions in a row were repeats, so no more are tried. Does the "
                "space use every parameter that it suggests?"
            )
        return ""

    def take(self, record: Record) -> None:
        """Does nothing: the sampler takes the records itself."""

    def of(self, number: int) -> Iterator[tuple[Trial, int | None]]:
        """When the iterator ends, nothing new is left; `exhausted` or `repeating` says why."""
        self._trials = number
        if self._to_enqueue is None:
            begun, every = self._sampling.enqueued, enumerate(self._space.enqueue)
            self._to_enqueue = deque(one for one in every if one[0] not in begun)
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
    """Status, stop_reason and traceback of a trial whose space raised an error."""
    message = " ".join(str(error).split())
    if isinstance(error, TrialPruned):
        return "PRUNED", f"the space pruned it{f': {message}' if message else ''}", None
    trace = "".join(traceback.format_exception(error))
    return "FAILED", f"the space raised {type(error).__name__}: {message}", trace
