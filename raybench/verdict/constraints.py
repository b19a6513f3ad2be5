"""Constraints on a recommended model, such as `latency_ms <= 2` or `model_bytes < 100000`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raybench.experiment import nearest

NAMES = ("latency_ms", "model_bytes", "memory_bytes", "test_accuracy", "accuracy_loss")
"""Milliseconds for one image, bytes, share from 0 to 1, points below the baseline."""
SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Constraint:
    """A bound on one figure."""

    name: str
    sign: str
    bound: float

    def holds(self, figures: Mapping[str, float | None]) -> bool:
        """Whether the figure is known and within the bound."""
        value = figures.get(self.name)
        return value is not None and SIGNS[self.sign](value, self.bound)

    def excess(self, figures: Mapping[str, float | None]) -> float:
        """The violation as a share of the bound; 0 if the constraint holds."""
        value = figures.get(self.name)
        if value is None:
            return float("inf")
        return 0.0 if self.holds(figures) else abs(value - self.bound) / (abs(self.bound) or 1.0)

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:g}"


def parsed(text: str) -> Constraint:
    """Raises ValueError: the text is not a constraint."""
    match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+.\deE]+)\s*", text)
    try:
        if match is None:
            raise ValueError
        name, sign, bound = match[1], match[2], float(match[3])
    except ValueError:
        raise ValueError(
            f'--constraint {text!r}: use a figure, a sign and a number, such as "latency_ms <= 2"'
        ) from None
    if name not in NAMES:
        raise ValueError(f"--constraint {text!r}: no figure {name!r}; {nearest(name, [*NAMES])}")
    return Constraint(name, sign, bound)
