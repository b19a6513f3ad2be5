"""The attribution plot: the effect of each ingredient with its interval, in three panels."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from raybench.reports.attribution import Attribution
from raybench.reports.page.embed import numbers

PANELS = (
    ("points", "accuracy, points", 0),
    ("smaller", "times smaller", 1),
    ("faster", "times faster", 1),
)
"""Field, label, and the value that stands for no effect."""
GAP = 0.04  # between panels, a share of the width


def effects_view(attributions: Sequence[Attribution]) -> dict[str, Any]:
    """One line per ingredient, the first one at the top."""
    layout: dict[str, Any] = {
        "height": 130 + 34 * len(attributions),
        "showlegend": False,
        "yaxis": {"autorange": "reversed", "type": "category"},
        "shapes": [],
    }
    names = [html.escape(one.ingredient) for one in attributions]
    traces = []
    for place, (field, label, nothing) in enumerate(PANELS):
        number = "" if place == 0 else str(place + 1)
        begin = place / len(PANELS) + (GAP if place else 0)
        layout[f"xaxis{number}"] = {
            "domain": [begin, (place + 1) / len(PANELS)],
            "title": {"text": label},
            "anchor": "y",
        }
        layout["shapes"].append(
            {
                "type": "line",
                "xref": f"x{number}",
                "yref": "paper",
                "x0": nothing,
                "x1": nothing,
                "y0": 0,
                "y1": 1,
                "line": {"color": "rgba(134,142,153,0.8)", "width": 1},
            }
        )
        effects = [getattr(one, field) for one in attributions]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": numbers(one.mean for one in effects),
                "y": names,
                "xaxis": f"x{number}",
                "marker": {"size": 9},
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": numbers(one.high - one.mean for one in effects),
                    "arrayminus": numbers(one.mean - one.low for one in effects),
                },
                "hovertemplate": f"%{{y}}: %{{x:.2f}} {label}<extra></extra>",
            }
        )
    return {"label": "", "data": traces, "layout": layout, "width": 560}
