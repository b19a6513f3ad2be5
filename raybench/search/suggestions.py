"""A sampler's suggestions, and their form in the log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState


@dataclass
class Suggestion:
    """A trial as a sampler sees it."""

    number: int
    params: dict[str, float]
    """By name, in Optuna's internal form: for a categorical, the index of the choice."""
    distributions: dict[str, str]
    """By name, in Optuna's JSON form."""
    state: TrialState = TrialState.RUNNING
    values: list[float] | None = None
    reports: dict[int, dict[str, float]] = field(default_factory=dict)
    """The objectives by epoch, at the marks."""
    enqueued: int | None = None
    """Its index in the space's `enqueue`, if it comes from there."""
    _frozen: FrozenTrial | None = None

    def record(self) -> dict[str, Any]:
        """The content of its log record."""
        return {
            "number": self.number,
            "params": self.params,
            "distributions": self.distributions,
        }

    def ended(self, state: TrialState, values: list[float] | None) -> None:
        self.state, self.values, self._frozen = state, values, None

    def report(self, epoch: int, values: dict[str, float]) -> None:
        self.reports[epoch] = values
        self._frozen = None

    def external(self) -> dict[str, Any]:
        """The parameters as the values that the space receives."""
        return {
            name: distribution(self.distributions[name]).to_external_repr(value)
            for name, value in self.params.items()
        }

    def frozen(self, objective: str | None = None) -> FrozenTrial:
        """The trial as Optuna has it.

        Args:
            objective: the one whose curve is included; Optuna stores only one.
        """
        if self._frozen is None:
            self._frozen = FrozenTrial(
                number=self.number,
                trial_id=self.number,
                state=self.state,
                value=None,
                values=self.values,
                datetime_start=None,
                datetime_complete=None,
                params=self.external(),
                distributions={n: distribution(text) for n, text in self.distributions.items()},
                user_attrs={},
                system_attrs={},
                intermediate_values={
                    epoch: values[objective]
                    for epoch, values in self.reports.items()
                    if objective in values
                },
            )
        return self._frozen


def suggestion(
    number: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> Suggestion:
    """The suggestion of an Optuna trial."""
    return Suggestion(
        number,
        {name: distributions[name].to_internal_repr(value) for name, value in params.items()},
        {name: distribution_to_json(kind) for name, kind in distributions.items()},
    )


def suggested_values(params: str) -> dict[str, Any]:
    """The values of a row's `params`, with tuples where JSON has lists."""
    return {name: tuples(value) for name, value in json.loads(params).items()}


@cache
def distribution(text: str) -> BaseDistribution:
    """A distribution from JSON, which stores tuples as lists; choices become tuples again."""
    parsed = json_to_distribution(text)
    if isinstance(parsed, CategoricalDistribution):
        choices = json.loads(text)["attributes"]["choices"]
        return CategoricalDistribution([tuples(choice) for choice in choices])
    return parsed


def tuples(value: Any) -> Any:
    """The same value with a tuple in place of every list."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value
