"""Sampling: Optuna's samplers, which see a bounded number of the sweep's trials.

    all trials that ended   ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○ ○
    visible to TPE            ●     ●   ●       ● ● ● ● ● ● ● ●   + running trials
                              the best of old ones    the last ones

TPE splits the visible trials into at most 25 best ones and the others, and a suggestion takes time
in proportion to their number. If a few hundred trials include the best of all, their best 25 are
the same as those of thousands.
"""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from raybench.results.core import FINISHED
from raybench.results.front import ranks
from raybench.results.limits import Limit
from raybench.results.log import Record
from raybench.search.guide import Guide
from raybench.search.journal import STATES
from raybench.search.marks import marks
from raybench.search.prior import guests
from raybench.search.suggestions import Suggestion, suggestion
from raybench.search.window import Window

RECENT = (
    64  # trials that ended last; twice as many gave the same shares on LCBench, at twice the cost
)
ELITE = 24  # the best of those that ended before
ATTEMPTS = 5  # model suggestions for one trial; then random ones, if all were repeats


class Sampling:
    """Suggests parameters, and learns the results from the records of the log.

    Args:
        objectives: column -> "max" or "min".
        kind: "model", "tpe" or "random".
        epochs: epochs of the longest trial.
        limits: constraints; their columns are stored like objectives.
        cost: column of a trial's cost so far; the gain per unit of cost decides.
    """

    def __init__(
        self,
        objectives: dict[str, str],
        kind: str,
        seed: int,
        epochs: int,
        limits: Sequence[Limit] = (),
        cost: str | None = None,
    ) -> None:
        self.objectives, self._kind, self._seed = objectives, kind, seed
        self._marks = marks(epochs)
        self._to_remember = {*self._marks}
        self._guide = Guide(objectives, limits, self._marks, cost)
        columns = [*objectives, *(one.column for one in limits), *([cost] if cost else [])]
        self._columns = list(dict.fromkeys(columns))
        self.running: dict[int, Suggestion] = {}
        self.enqueued: set[int] = set()
        """Indices in the space's `enqueue` of the entries that were already suggested."""
        self._recent: deque[Suggestion] = deque()
        self._old: list[Suggestion] = []
        self._window = Window(self.visible)
        optuna.logging.set_verbosity(logging.WARNING)
        self._study = optuna.create_study(
            storage=self._window,
            directions=["maximize" if way == "max" else "minimize" for way in objectives.values()],
        )

    def ask(self, number: int, attempt: int = 0, fixed: dict[str, Any] | None = None) -> Trial:
        """A trial for a space to sample from.

        Args:
            attempt: number of earlier suggestions for this trial number.
            fixed: parameters with given values, which are not suggested.
        """
        self._study.sampler = self._sampler(number, attempt)
        self._window.wait(number, fixed or {})
        return self._study.ask()

    def suggested(self, trial: Trial) -> Suggestion:
        """The suggestion for a trial that a space has sampled from."""
        return suggestion(trial.number, trial.params, trial.distributions)

    def take(self, record: Record) -> None:
        kind, _, content = record
        if kind == "prior":
            self._guide.begin_with(guests(content, list(self.objectives), self._marks[-1]))
            return
        if kind == "suggested":
            self.running[content["number"]] = Suggestion(
                content["number"],
                content["params"],
                content["distributions"],
                enqueued=content.get("enqueued"),
            )
            return
        running = self.running.get(content.get("number", -1))
        if running is None:
            return
        if kind == "trial" and running.enqueued is not None:  # only once it has a row
            self.enqueued.add(running.enqueued)
        if kind == "epoch" and content["epoch"] in self._to_remember:
            reported = {name: content.get(name) for name in self._columns}
            numbers = {
                n: float(v) for n, v in reported.items() if v is not None and math.isfinite(v)
            }
            running.report(content["epoch"], numbers)
            self._guide.reported(running.number, content["epoch"], self.seen)
        elif kind == "trial" and content.get("status") in FINISHED:
            del self.running[running.number]
            state = STATES[content["status"]]
            complete = state == TrialState.COMPLETE
            values = [float(content[name]) for name in self.objectives] if complete else None
            running.ended(state, values)
            if state != TrialState.FAIL:  # samplers ignore failed trials
                if values is not None:  # an objective may be measured only after the last epoch
                    last = {name: content.get(name) for name in self._columns}
                    numbers = {n: float(v) for n, v in last.items() if v is not None}
                    running.report(self._marks[-1], numbers)
                self._remember(running)

    @property
    def waits(self) -> bool:
        """Whether the next trial must wait for the first reports of running ones."""
        return self._kind == "model" and len(self.running) >= self._guide.room

    def seen(self) -> list[Suggestion]:
        """The trials that a sampler sees, in order of their numbers."""
        every = [*self._old, *self._recent, *self.running.values()]
        return sorted(every, key=lambda each: each.number)

    def visible(self) -> list[FrozenTrial]:
        """The same trials in Optuna's form."""
        only = next(iter(self.objectives)) if len(self.objectives) == 1 else None
        return [each.frozen(only) for each in self.seen()]

    def _sampler(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        if self._kind == "model" and attempt == 0:
            opener = self._guide.opener(number, _seed_of(self._seed, number, attempt))
            if opener is not None:
                return opener
        if self._kind == "model" and attempt < ATTEMPTS and self._guide.ready:
            return self._guide.sampler(self.seen(), _seed_of(self._seed, number, attempt))
        return sampler(
            "random" if self._kind == "model" else self._kind, self._seed, number, attempt
        )

    def _remember(self, ended: Suggestion) -> None:
        self._recent.append(ended)
        if len(self._recent) <= RECENT:
            return
        self._old.append(self._recent.popleft())
        if len(self._old) < 2 * ELITE:
            return
        complete = [old for old in self._old if old.values is not None]
        values = [old.values or [] for old in complete]
        order = ranks(values, list(self.objectives.values())) if complete else []
        best = sorted(zip(order, range(len(order)), strict=True))[:ELITE]
        self._old = [complete[place] for _, place in sorted(best, key=lambda pair: pair[1])]


def sampler(kind: str, seed: int, number: int, attempt: int = 0) -> optuna.samplers.BaseSampler:
    """TPE, or `random`, with a separate seed for each trial number and attempt.

    With a single seed for the study, a restart would repeat configurations.
    """
    trial_seed = _seed_of(seed, number, attempt)
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=trial_seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # group=True is marked experimental
        return optuna.samplers.TPESampler(
            seed=trial_seed,
            # group=True models the branches of a conditional space separately.
            multivariate=True,
            group=True,
            constant_liar=True,
        )


def _seed_of(seed: int, number: int, attempt: int) -> int:
    text = f"{seed} {number} {attempt}" if attempt else f"{seed} {number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
