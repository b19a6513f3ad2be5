"""Limits: the constraints of a sweep, such as `{"model_bytes": "<= 100000"}`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

_FORM = re.compile(r"\s*(<=|>=)\s*(\S+)\s*$")


@dataclass(frozen=True)
class Limit:
    """An upper or lower limit of a column."""

    column: str
    upper: bool
    value: float

    def __str__(self) -> str:
        return f"{self.column} {'<=' if self.upper else '>='} {self.value:g}"

    def slack(self, value: float) -> float:
        """Distance of a value from the limit; negative if it violates the limit."""
        return self.value - value if self.upper else value - self.value

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has a value that satisfies the limit."""
        value = row.get(self.column)
        return value is not None and math.isfinite(value) and self.slack(float(value)) >= 0


def limits(constraints: Mapping[str, str]) -> tuple[Limit, ...]:
    """The limits in a space's `constraints`.

    Raises:
        ValueError: one is not `"<= NUMBER"` or `">= NUMBER"`.
    """
    every = []
    for column, text in constraints.items():
        match = _FORM.match(text) if isinstance(text, str) else None
        try:
            value = float(match[2].replace("_", "")) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or math.isnan(value):
            raise ValueError(f'constraint {column!r} is {text!r}; write e.g. "<= 100000"')
        every.append(Limit(column, match[1] == "<=", value))
    return tuple(every)


def feasible(trials: pd.DataFrame, constraints: Mapping[str, str]) -> pd.DataFrame:
    """The rows that satisfy all limits; a row with a missing value does not."""
    for limit in limits(constraints):
        values = trials[limit.column].astype("Float64")
        keeps = values <= limit.value if limit.upper else values >= limit.value
        trials = trials[keeps.fillna(False).astype(bool)]
    return trials
