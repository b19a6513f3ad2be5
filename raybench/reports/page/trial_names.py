"""The hover text of a trial: number, status, parameters and objectives.

One line each; the page's script adds the HTML tags, so that 2,000 trials do not repeat them.
"""

from __future__ import annotations

import html
import json
from typing import Any

import pandas as pd

from raybench.reports.percent import in_percent
from raybench.reports.text import cell
from raybench.reports.varied import varied
from raybench.results.read import Results

MOST_LINES = 16
MOST_LETTERS = 60
STATUSES = {
    "COMPLETE": "complete",
    "PRUNED": "stopped early",
    "FAILED": "failed",
    "RUNNING": "running",
}


def trial_names(results: Results) -> list[str]:
    """The text of each trial; names and values are escaped for HTML and on one line each."""
    objectives = in_percent(results.trials[list(results.objectives)])
    texts = []
    for number, status, parameters, outcomes in zip(
        results.trials["number"],
        results.trials["status"],
        parameters_of(results.trials),
        objectives.itertuples(index=False, name=None),
        strict=True,
    ):
        values = {**parameters, **dict(zip(objectives.columns, outcomes, strict=True))}
        lines = [f"{_short(name)} {_short(cell(value))}" for name, value in values.items()]
        title = f"trial {number}, {STATUSES.get(status, str(status).lower())}"
        more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        texts.append("\n".join([title, *lines[:MOST_LINES], *more]))
    return texts


def parameters_of(trials: pd.DataFrame) -> list[dict[str, Any]]:
    """The parameters that the space suggested; without a space, the inputs that vary."""
    suggested = [{} if pd.isna(text) else json.loads(text) for text in trials["params"]]
    if any(suggested):
        return suggested
    inputs = varied(trials)
    rows = trials[inputs].itertuples(index=False, name=None)
    return [{n: v for n, v in zip(inputs, row, strict=True) if pd.notna(v)} for row in rows]


def _short(text: str) -> str:
    """The text on one line, escaped and cut so that a label fits on a phone."""
    text = " ".join(text.split())
    return html.escape(text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…")
