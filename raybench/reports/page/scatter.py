"""The Pareto front of a sweep: a scatter of its score against each cost, dominated trials muted."""

from __future__ import annotations

from typing import Any

import pandas as pd

from raybench.reports.page.axes import axis, costs, score, title, values
from raybench.results.front import front
from raybench.results.read import Results

MUTED = "rgba(134,142,153,0.45)"
FAINT = "rgba(134,142,153,0.7)"


def front_views(results: Results, sweep: int) -> list[dict[str, Any]]:
    """One view per cost; the sweep's own objectives come first.

    Args:
        sweep: index of the sweep on the page, for the trials' names.
    """
    return [_view(results, sweep, cost, way) for cost, way in costs(results).items()]


def _view(results: Results, sweep: int, cost: str, way: str) -> dict[str, Any]:
    above, best = score(results)
    trials = results.trials.reset_index(drop=True).dropna(subset=[above, cost])
    shown = {above: best, cost: way}
    # With three objectives, a trial on the front may be dominated in these two.
    asked = results.objectives if cost in results.objectives else shown
    on_front = set(front(trials, asked, results.constraints).index)
    line = front(trials, shown, results.constraints).sort_values(cost)
    complete = trials[trials["status"] == "COMPLETE"]
    is_best = complete.index.isin(on_front)
    stopped = trials[trials["status"] == "PRUNED"]
    traces = [
        points(complete[is_best], cost, above, sweep)
        | {"name": "Pareto front", "marker": {"size": 10}, "zorder": 2},
        points(complete[~is_best], cost, above, sweep)
        | {"name": "dominated", "marker": {"color": MUTED, "size": 7}},
        points(stopped, cost, above, sweep)
        | {
            "name": "stopped early",
            "visible": "legendonly",
            "marker": {"color": MUTED, "size": 6, "symbol": "x-thin-open"},
        },
        stairs(line, cost, above, way) | {"showlegend": False, "zorder": 1},
    ]
    return {
        "label": title(cost),
        "data": [trace for trace in traces if trace["x"]],
        "layout": {"xaxis": axis(trials[cost]), "yaxis": axis(trials[above])},
    }


def points(trials: pd.DataFrame, cost: str, above: str, sweep: int) -> dict[str, Any]:
    """A trace of trials; the page's script adds their names by sweep and index."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": values(trials[cost]),
        "y": values(trials[above]),
        "customdata": trials.index.tolist(),
        "meta": sweep,
    }


def stairs(line: pd.DataFrame, cost: str, above: str, way: str = "min") -> dict[str, Any]:
    """The trace of a front: the best score at each cost."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": values(line[cost]),
        "y": values(line[above]),
        "line": {"color": FAINT, "width": 1.5, "shape": "hv" if way == "min" else "vh"},
        "hoverinfo": "skip",
    }
