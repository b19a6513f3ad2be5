"""How a column appears on a plot's axis: its values, its name with the unit, linear or log."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd

from raybench.reports.page.embed import numbers
from raybench.reports.percent import ACCURACIES
from raybench.results import core
from raybench.results.read import Results

COSTS = ("model_bytes", "latency_ms", "train_s", "s_per_epoch", "peak_memory_bytes", "flops")
"""Columns to minimize, in addition to a sweep's objectives."""
MOST_COSTS = 5
FROM_RATIO = 20  # an axis starts logarithmic if largest / smallest value is above this


def values(column: pd.Series) -> list[float | int | None]:
    """The column's values; accuracies in percent."""
    return numbers(column, 100.0 if column.name in ACCURACIES else 1.0)


def title(name: str) -> str:
    """The column's name with its unit, escaped: `accuracy, %`; `model_bytes` says it."""
    if name in ACCURACIES:
        return f"{name.replace('_', ' ')}, %"
    unit = core.METRICS[name].unit if name in core.METRICS else ""
    return html.escape(name if unit in ("", "bytes", "share") else f"{name}, {unit}")


def axis(column: pd.Series) -> dict[str, Any]:
    """Plotly's settings of the axis."""
    name = str(column.name)
    settings: dict[str, Any] = {"title": {"text": title(name)}}
    if name.endswith("_bytes"):
        settings["tickformat"] = "~s"  # no suffix B: Plotly would leave it out between decades
    if is_wide(column):
        settings["type"] = "log"
    return settings


def is_wide(column: pd.Series) -> bool:
    """Whether positive values span more than an order of magnitude."""
    present = column.dropna().astype(float)
    return len(present) > 1 and present.min() > 0 and present.max() / present.min() > FROM_RATIO


def score(results: Results) -> tuple[str, str]:
    """The objective on the vertical axis, and its direction: accuracy, else the first one."""
    objectives = results.objectives
    name = "accuracy" if "accuracy" in objectives else next(iter(objectives))
    return name, objectives[name]


def costs(results: Results) -> dict[str, str]:
    """Columns for the horizontal axis, with their directions: objectives first."""
    above, _ = score(results)
    complete = results.trials[results.trials["status"] == "COMPLETE"]
    candidates = {**results.objectives, **{c: "min" for c in COSTS if c not in results.objectives}}
    chosen = {
        name: way
        for name, way in candidates.items()
        if name != above and name in complete and complete[name].nunique() > 1
    }
    return dict(list(chosen.items())[:MOST_COSTS])
