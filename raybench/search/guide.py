"""Guide: the model as an Optuna sampler; its kernels are refitted at fixed numbers of trials.

The kernels depend only on the records: at those numbers the guide saves the trials seen so far, and
fits the kernels to them at the next suggestion. So a reopened sweep suggests the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from raybench.results.limits import Limit
from raybench.search import model
from raybench.search.gaussian_process import Kernel
from raybench.search.model import Seen
from raybench.search.prior import Guests, internal_of
from raybench.search.suggestions import Suggestion
from raybench.search.trend import Older, older, openers, trend

FIRST_FIT = 5  # trials that have passed a twelfth of their epochs, before the first fit
GROWTH = 1.4  # factor of that number from one fit to the next
WAVE = 16  # trials that run at once before any of them has passed a twelfth
WAVES = 1.5  # trials that may run for each one that has passed it
EARLY = 12  # the twelfth, as a divisor
TRUSTED = 12  # trials that have passed a twelfth; then older sweeps' predictions are left out


class Guide:
    """Decides when to fit, and makes samplers.

    Args:
        objectives: column -> "max" or "min".
        limits: constraints on a trial.
        marks: epochs whose reports are stored.
        cost: column of a trial's cost so far.
    """

    def __init__(
        self,
        objectives: dict[str, str],
        limits: Sequence[Limit],
        marks: Sequence[int],
        cost: str | None = None,
    ) -> None:
        self._objectives, self._limits, self._marks = objectives, limits, marks
        self._cost = cost
        self._openers: list[dict[str, Any]] = []
        self._begun: set[int] = set()
        self._next_fit = FIRST_FIT
        self._noted: list[Suggestion] | None = None
        self._kernels: tuple[list[tuple[str, int | str]], list[Kernel]] | None = None
        self._guests: list[Guests] = []
        self._trusts = False
        self._older: tuple[list[tuple[str, int | str]], list[Older]] = ([], [])

    @property
    def ready(self) -> bool:
        """Whether enough trials have reported something."""
        return self._noted is not None

    @property
    def room(self) -> float:
        """The number of trials that may run at once, given the reports so far."""
        return max(WAVE, WAVES * len(self._begun))

    def reported(self, number: int, epoch: int, seen: Callable[[], list[Suggestion]]) -> None:
        """Takes a trial's report at a mark."""
        if number in self._begun or EARLY * epoch < self._marks[-1]:
            return
        self._begun.add(number)
        if len(self._begun) < self._next_fit:
            return
        self._next_fit = int(np.ceil(self._next_fit * GROWTH))
        self._noted, self._kernels = [_as_now(one) for one in seen()], None
        self._trusts = bool(self._guests) and len(self._begun) < TRUSTED

    def begin_with(self, guests: list[Guests]) -> None:
        """Takes the complete trials of older sweeps."""
        self._guests = guests
        firsts = [openers(one, self._objectives, self._marks) for one in guests]
        self._openers = [one for several in zip_longest(*firsts) for one in several if one]

    def opener(self, number: int, seed: int) -> optuna.samplers.BaseSampler | None:
        """For the first trials: the best parameters of an older sweep."""
        if self.ready or number >= len(self._openers):
            return None
        return _Suggested(self._openers[number], seed)

    def sampler(self, trials: Sequence[Suggestion], seed: int) -> optuna.samplers.BaseSampler:
        """A sampler for one trial; random while the model has too few trials."""
        view = model.seen(trials, self._objectives, self._limits, self._marks, self._cost)
        kernels = self._fitted(view)
        if kernels is None or not view.enough:
            return optuna.samplers.RandomSampler(seed=seed)
        random = np.random.default_rng(seed)
        before = trend(view, self._older_in(view)).at if self._trusts else None
        return _Suggested(model.best(view, kernels, random, before), seed)

    def _older_in(self, view: Seen) -> list[Older]:
        """The older sweeps in the encoding of the new one; refitted when that encoding changes."""
        if self._older[0] != view.labels:
            every = [older(view, one, self._objectives, self._marks) for one in self._guests]
            self._older = (view.labels, [one for one in every if one is not None])
        return self._older[1]

    def _fitted(self, view: Seen) -> list[Kernel] | None:
        """The kernels; a dimension that is new since the fit gets the median length."""
        if self._kernels is None:
            assert self._noted is not None
            noted = model.seen(self._noted, self._objectives, self._limits, self._marks, self._cost)
            if not noted.enough:
                return None
            if self._trusts:
                every = [older(noted, g, self._objectives, self._marks) for g in self._guests]
                before = trend(noted, [one for one in every if one is not None])
                noted = replace(noted, gains=noted.gains - before.at(noted.table))
            self._kernels = (noted.labels, model.kernels(noted))
        labels, kernels = self._kernels
        if labels == view.labels:
            return kernels
        by_label = [dict(zip(labels, kernel.lengths, strict=True)) for kernel in kernels]
        return [
            replace(kernel, lengths=np.array([lengths.get(n, middle) for n in view.labels]))
            for kernel, lengths in zip(kernels, by_label, strict=True)
            for middle in [float(np.median(kernel.lengths))]
        ]


def _as_now(suggestion: Suggestion) -> Suggestion:
    """A copy that later reports do not change."""
    noted = copy(suggestion)
    noted.reports = dict(suggestion.reports)
    return noted


class _Suggested(optuna.samplers.RandomSampler):
    """Suggests given values; draws those that are missing or that the space does not allow."""

    def __init__(self, values: dict[str, Any], seed: int) -> None:
        self._values, self._seed = values, seed

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        value = self._values.get(param_name)
        if param_name in self._values and internal_of(param_distribution, value) is not None:
            return value
        if not hasattr(self, "_rng"):  # seeding takes longer than drawing
            super().__init__(seed=self._seed)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Does nothing: the seed is for one trial."""
