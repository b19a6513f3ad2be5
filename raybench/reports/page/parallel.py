"""Parallel coordinates: one line per complete trial, through its varied inputs and objectives."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import pandas as pd

from raybench.reports.page.axes import is_wide, score, title, values
from raybench.reports.page.embed import numbers
from raybench.reports.varied import varied
from raybench.results.read import Results

MOST_AXES = 12
MOST_CHOICES = 20  # distinct texts that an axis can label
SCALE = [[0, "#8d99a8"], [0.55, "#4d8fd6"], [1, "#ef6c38"]]
TICKS = 6
MOST_LETTERS = 20


def parallel_view(results: Results) -> dict[str, Any] | None:
    """The plot, coloured by the score; None if nothing varies or no trial is complete."""
    complete = results.trials[results.trials["status"] == "COMPLETE"]
    complete = complete.dropna(subset=list(results.objectives))
    room = MOST_AXES - len(results.objectives)
    inputs = [name for name in varied(complete) if _fits(complete[name])][:room]
    if len(complete) < 2 or not inputs:
        return None
    above, best = score(results)
    axes = [
        *(_axis(complete[name]) for name in inputs),
        *(_axis(complete[name]) for name in results.objectives),
    ]
    line = {
        "color": values(complete[above]),
        "colorscale": SCALE,
        "reversescale": best == "min",
    }
    layout = {"height": 420, "margin": {"l": 64, "r": 64, "t": 72, "b": 28}}
    trace = {"type": "parcoords", "dimensions": axes, "line": line, "labelangle": -14}
    return {"label": "", "data": [trace], "layout": layout, "width": 110 * len(axes)}


def _fits(column: pd.Series) -> bool:
    return _is_number(column) or column.nunique(dropna=False) <= MOST_CHOICES


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _axis(column: pd.Series) -> dict[str, Any]:
    """One dimension: texts at integers, wide ranges on a log scale."""
    label = title(str(column.name))
    if not _is_number(column):
        choices = sorted({_choice(value) for value in column})
        return {
            "label": label,
            "values": [choices.index(_choice(value)) for value in column],
            "tickvals": list(range(len(choices))),
            "ticktext": [html.escape(_end(choice)) for choice in choices],
        }
    few = column.nunique() <= TICKS
    if not few and not is_wide(column) and column.notna().all():
        return {"label": label, "values": values(column)}
    return {"label": label, **_with_ticks(column, few=few)}


def _choice(value: Any) -> str:
    return "off" if pd.isna(value) else str(value)


def _end(text: str) -> str:
    """The end of a long text, because paths differ at their ends."""
    return text if len(text) <= MOST_LETTERS else "…" + text[1 - MOST_LETTERS :]


def _with_ticks(column: pd.Series, *, few: bool) -> dict[str, Any]:
    """Values with explicit ticks: at each distinct value if there are few, else evenly spaced.

    A trial without a value is drawn below the lowest tick, at `off`.
    """
    wide = is_wide(column)
    heights = column.astype("Float64").to_numpy(dtype=float, na_value=math.nan)
    heights = np.log10(heights) if wide else heights
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    present = heights[~np.isnan(heights)]
    ticks = np.unique(present) if few else np.linspace(low, high, TICKS)
    texts = [_short(10**tick if wide else tick) for tick in ticks]
    if column.isna().any():
        below = low - 0.15 * ((high - low) or 1.0)
        heights = np.where(np.isnan(heights), below, heights)
        ticks, texts = np.array([below, *ticks]), ["off", *texts]
    return {"values": numbers(heights), "tickvals": numbers(ticks), "ticktext": texts}


def _short(value: float) -> str:
    """Three digits: `0.0316`, `1.55M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
