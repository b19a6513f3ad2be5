"""Cells: every parameter set of a finite space, one after another.

Repeated random suggestions do not prove that a space is exhausted. So a space with finitely many
values for every parameter is enumerated as a tree, branch by branch:

    model = resnet20 ── bits = 4 ── …
                     ╰─ bits = 8
    model = vit_tiny ── …
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial

MOST = 20_000  # cells at most; a larger space counts as infinite


class EndlessError(Exception):
    """The space has a parameter with infinitely many values, or too many cells."""


def cells(sample: Callable[[Trial], Any]) -> Iterator[dict[str, Any]]:
    """The parameters of each cell.

    Args:
        sample: suggests parameters of the trial; an exception ends only that cell.

    Raises:
        EndlessError: the cells cannot all be listed.
    """
    walk = _Walk()
    study = optuna.create_study(sampler=walk)
    for _ in range(MOST):
        trial = study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                sample(trial)
            except EndlessError:
                raise
            except Exception:
                pass
        yield dict(trial.params)
        if not walk.next():
            return
    raise EndlessError


class _Walk(optuna.samplers.BaseSampler):
    """Suggests the next cell in the order of the tree."""

    def __init__(self) -> None:
        self._path: list[tuple[int, int]] = []  # for each parameter: its choice, number of choices
        self._depth = 0

    def next(self) -> bool:
        """Moves to the next cell; False if there is none."""
        del self._path[self._depth :]
        while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
            self._path.pop()
        self._depth = 0
        if not self._path:
            return False
        place, count = self._path[-1]
        self._path[-1] = (place + 1, count)
        return True

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        choices = _choices(param_distribution)
        if self._depth == len(self._path):
            self._path.append((0, len(choices)))
        place, _ = self._path[self._depth]
        self._depth += 1
        return choices[place]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}


def _choices(distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        values = range(distribution.low, distribution.high + 1, distribution.step)
    elif isinstance(distribution, FloatDistribution) and distribution.step is not None:
        steps = round((distribution.high - distribution.low) / distribution.step)
        return [distribution.low + place * distribution.step for place in range(steps + 1)]
    else:
        raise EndlessError
    if len(values) > MOST:
        raise EndlessError
    return values
