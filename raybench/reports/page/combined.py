"""All sweeps of a page in one scatter: accuracy against each cost, with their common front."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from raybench.reports.page.axes import COSTS, axis, title
from raybench.reports.page.scatter import points, stairs
from raybench.results.front import front
from raybench.results.read import Results

SCORE = "accuracy"


def combined_views(sweeps: Sequence[Results]) -> list[dict[str, Any]]:
    """One view per cost that at least one sweep has measured; empty if there are none."""
    tables = [
        one.trials.reset_index(drop=True).query("status == 'COMPLETE'").dropna(subset=[SCORE])
        for one in sweeps
    ]
    together = pd.concat(tables)
    return [
        _view(sweeps, tables, cost)
        for cost in COSTS
        if cost in together and any(together[cost].notna())
    ]


def _view(sweeps: Sequence[Results], tables: Sequence[pd.DataFrame], cost: str) -> dict[str, Any]:
    measured = [table.dropna(subset=[cost]) for table in tables]
    together = pd.concat(measured)
    line = front(together, {SCORE: "max", cost: "min"}).sort_values(cost)
    traces = [
        points(table, cost, SCORE, place)
        | {"name": html.escape(one.about["sweep"]), "marker": {"size": 8, "opacity": 0.75}}
        for place, (one, table) in enumerate(zip(sweeps, measured, strict=True))
        if len(table)
    ]
    return {
        "label": title(cost),
        "data": [*traces, stairs(line, cost, SCORE) | {"name": "front of all"}],
        "layout": {"xaxis": axis(together[cost]), "yaxis": axis(together[SCORE])},
    }
