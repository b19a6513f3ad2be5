"""Learning curves: the validation accuracy by epoch, grouped by status or by model."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import pandas as pd

from raybench.reports.page.trial_names import STATUSES
from raybench.results.read import Results

DRAWN = 500
"""Most curves drawn at once; a browser takes a second for 1,000 of them."""
MOST_POINTS = 60_000  # of a page: 5 bytes each
PARTS = 10_000  # accuracies are embedded as whole numbers, a hundredth of a percent each


def curves(results: Results, sweep: int) -> dict[str, Any] | None:
    """The curves and their groups, for the page's script; None if there are none.

    Each curve is its trial's index and its accuracies from epoch 1 on. Trials on the front come
    first, so that they are drawn even if there are too many curves.
    """
    of_trials = _by_trial(results.epochs)
    if not of_trials:
        return None
    trials = results.trials.reset_index(drop=True)
    places = {number: place for place, number in enumerate(trials["number"])}
    best = [number for number in results.front["number"] if number in of_trials]
    others = [number for number in of_trials if number not in set(best)]
    room = max(1, MOST_POINTS - sum(len(of_trials[number]) for number in best))
    step = math.ceil(sum(len(of_trials[number]) for number in others) / room) or 1
    embedded = [number for number in [*best, *others[::step]] if number in places]
    of_embedded = trials.iloc[[places[number] for number in embedded]]
    groups = {"status": [STATUSES.get(status, status) for status in of_embedded["status"]]}
    if of_embedded["model"].nunique() > 1:
        groups["model"] = [html.escape(str(model)) for model in of_embedded["model"]]
    longest = max(map(len, of_trials.values()))
    return {
        "sweep": sweep,
        "curves": [[places[number], of_trials[number]] for number in embedded],
        "groups": groups,
        "of": len(of_trials),
        "drawn": DRAWN,
        "parts": PARTS / 100,
        "layout": {
            "xaxis": {"title": {"text": "epoch"}, **({"dtick": 1} if longest <= 12 else {})},
            "yaxis": {"title": {"text": "validation accuracy, %"}},
        },
    }


def _by_trial(epochs: pd.DataFrame) -> dict[int, list[int | None]]:
    """Accuracies of the epochs 1, 2, … by trial number; None for a missing epoch."""
    if epochs.empty or "accuracy" not in epochs:
        return {}
    measured = epochs[["number", "epoch", "accuracy"]].dropna().to_numpy(dtype=float)
    measured = measured[np.lexsort((measured[:, 1], measured[:, 0]))]
    starts = np.flatnonzero(np.diff(measured[:, 0])) + 1
    by_trial = {}
    for rows in np.split(measured, starts) if len(measured) else []:
        values: list[int | None] = [None] * int(rows[-1, 1])
        for _, epoch, accuracy in rows:
            values[int(epoch) - 1] = round(PARTS * accuracy) if math.isfinite(accuracy) else None
        by_trial[int(rows[0, 0])] = values
    return by_trial
