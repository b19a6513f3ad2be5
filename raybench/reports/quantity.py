"""A measured value with its unit, as text: `92.31 %`, `1.08 MB`, `3.1 ms`."""

from __future__ import annotations

from raybench.reports.percent import ACCURACIES
from raybench.results import core

PREFIXES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def quantity(name: str, value: float) -> str:
    """The value of a column, such as `92.31 % accuracy` or `1.08 MB`.

    A value without a unit gets the column's name: `imbalance 1.02`.
    """
    value = float(value)
    if name in ACCURACIES:
        return f"{100 * value:.2f} % {name.replace('_', ' ')}"
    unit = core.METRICS[name].unit if name in core.METRICS else ""
    if unit == "bytes":
        size, prefix = next((pair for pair in PREFIXES if abs(value) >= pair[0]), (1, "bytes"))
        return f"{value / size:.4g} {prefix}"
    if name in ("s_per_epoch", "s_per_batch"):
        return f"{value:.4g} s per {name.rpartition('_')[2]}"
    return f"{value:.4g} {unit}" if unit not in ("", "share") else f"{name} {value:.4g}"
