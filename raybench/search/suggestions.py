"""What a sampler suggested, and how the log keeps it."""

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
    """By name, as Optuna keeps them: of a categorical, the place of the choice."""
    distributions: dict[str, str]
    """By name, as Optuna writes them to JSON."""
    state: TrialState = TrialState.RUNNING
    values: list[float] | None = None
    reports: dict[int, float] = field(default_factory=dict)
    """The objective by epoch, where there is one objective."""
    enqueued: int | None = None
    """The place in the space's `enqueue` from where it is."""
    _frozen: FrozenTrial | None = None

    def record(self) -> dict[str, Any]:
        """For the log."""
        return {
            "number": self.number,
            "params": self.params,
            "distributions": self.distributions,
        }

    def ended(self, state: TrialState, values: list[float] | None) -> None:
        self.state, self.values, self._frozen = state, values, None

    def report(self, epoch: int, value: float) -> None:
        self.reports[epoch] = value
        self._frozen = None

    def external(self) -> dict[str, Any]:
        """The parameters as the space gets them."""
        return {
            name: distribution(self.distributions[name]).to_external_repr(value)
            for name, value in self.params.items()
        }

    def frozen(self) -> FrozenTrial:
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
                intermediate_values=dict(self.reports),
            )
        return self._frozen


def suggestion(
    number: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> Suggestion:
    """From what an Optuna trial tells of itself."""
    return Suggestion(
        number,
        {name: distributions[name].to_internal_repr(value) for name, value in params.items()},
        {name: distribution_to_json(known) for name, known in distributions.items()},
    )


def suggested_values(params: str) -> dict[str, Any]:
    """The values of a row's `params`, with tuples where JSON has lists."""
    return {name: tuples(value) for name, value in json.loads(params).items()}


@cache
def distribution(text: str) -> BaseDistribution:
    """From JSON, which has lists where a choice was a tuple."""
    found = json_to_distribution(text)
    if isinstance(found, CategoricalDistribution):
        choices = json.loads(text)["attributes"]["choices"]
        return CategoricalDistribution([tuples(choice) for choice in choices])
    return found


def tuples(value: Any) -> Any:
    """The same value with a tuple in place of every list."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value
