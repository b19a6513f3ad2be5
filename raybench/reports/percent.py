"""Accuracies are shown in percent; the Parquet files store fractions, 0 to 1."""

from __future__ import annotations

import pandas as pd

from raybench.results import core

ACCURACIES = frozenset(
    name
    for name, column in core.METRICS.items()
    if column.unit == "share" and name.endswith("accuracy")
)


def labelled(name: str) -> str:
    """A column's displayed name, with its unit if the name lacks it: `accuracy, %`."""
    return f"{name}, %" if name in ACCURACIES else name


def in_percent(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its accuracies in percent, in renamed columns."""
    shares = [name for name in frame.columns if name in ACCURACIES]
    return frame.assign(**{name: 100 * frame[name] for name in shares}).rename(columns=labelled)
