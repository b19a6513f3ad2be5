"""Where a trial's parameters come from: `enqueue` first, then the sampler, then what is left."""

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

DUPLICATES = 50  # suggestions in a row that were there before, until all cells are looked at


class Proposer(Protocol):
    """What a sweep tries next. It is told every record of the log, the old ones first."""

    @property
    def over(self) -> bool:
        """Whether nothing comes any more."""

    @property
    def ready(self) -> bool:
        """Whether something may come before another trial has reported or ended."""

    @property
    def remark(self) -> str:
        """Why nothing comes any more, in a sentence; empty where that is as expected."""

    @property
    def late(self) -> bool:
        """Whether the time is over: what runs is left as it is, for a later run of the sweep."""

    @property
    def planned(self) -> int | None:
        """Trials that there will be in all, as far as that is known."""

    def take(self, record: Record) -> None:
        """Hears of a record."""

    def of(self, number: int) -> Iterator[tuple[Trial, int | None]]:
        """Trials for the space to sample, one of which becomes `number`.

        Each comes with its place in `enqueue` if it is from there.
        """


class Proposals:
    """Trials to be sampled by the space, until one gives an experiment that is new."""

    planned, late = None, False

    def __init__(self, space: Space, sampling: Sampling) -> None:
        self._space, self._sampling = space, sampling
        self._to_enqueue: deque[tuple[int, dict[str, Any]]] | None = None
        self._cells: Iterator[dict[str, Any]] | None = None
        self.exhausted = False
        """Whether every experiment of the space has a trial: all cells were looked at."""
        self.repeating = False
        """Whether suggestions repeat themselves in a space that has no end of them."""
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
                f"{DUPLICATES} suggestions in a row were there before, so no more are tried. Does "
                "the space use all that it suggests?"
            )
        return ""

    def take(self, record: Record) -> None:
        """The sampler hears of all that matters here."""

    def of(self, number: int) -> Iterator[tuple[Trial, int | None]]:
        """At the end of the iterator there is nothing new; `exhausted` or `repeating` says why."""
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
    """What a space raised as its trial's status, stop_reason and traceback."""
    message = " ".join(str(error).split())
    if isinstance(error, TrialPruned):
        return "PRUNED", f"the space pruned it{f': {message}' if message else ''}", None
    trace = "".join(traceback.format_exception(error))
    return "FAILED", f"the space raised {type(error).__name__}: {message}", trace
