"""A sweep in one sentence: its best trial and the extent of its front."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from raybench.reports.page.trial_names import STATUSES
from raybench.reports.quantity import quantity
from raybench.results.read import Results


def sentence(results: Results) -> str:
    """The sweep's results so far, as text."""
    on_front = results.front
    counts = results.trials["status"].value_counts()
    if on_front.empty:
        return f"No trial is complete yet: {counted(counts)}."
    best = on_front.iloc[0]
    text = f"The best trial, {best['number']}, reaches {_outcome(results, best)}"
    if len(on_front) > 1:
        text += f"; the Pareto front has {len(on_front)} trials"
        if len(results.objectives) == 2:
            text += f" and ends at {_outcome(results, on_front.iloc[-1])}"
    return f"{text}."


def of_all(sweeps: Sequence[Results]) -> str:
    """The same for several sweeps: which one has the most accurate trial."""
    trials = sum(len(one.trials) for one in sweeps)
    text = f"{len(sweeps)} sweeps with {trials:,} trials"
    complete = [one.trials[one.trials["status"] == "COMPLETE"] for one in sweeps]
    scores = [table["accuracy"].max() if len(table) else pd.NA for table in complete]
    measured = [(float(score), place) for place, score in enumerate(scores) if pd.notna(score)]
    if not measured:
        return f"{text}; none is complete yet."
    score, place = max(measured, key=lambda pair: pair[0])
    return f"{text}; the best is {quantity('accuracy', score)}, in {sweeps[place].about['sweep']}."


def counted(counts: pd.Series) -> str:
    """`60 complete, 31 stopped early, 2 failed`."""
    return ", ".join(
        f"{counts[status]:,} {name}" for status, name in STATUSES.items() if counts.get(status)
    )


def _outcome(results: Results, row: pd.Series) -> str:
    """A trial's objectives: `91.19 % accuracy with 690.3 kB`."""
    first, *others = (quantity(name, row[name]) for name in results.objectives)
    return f"{first} with {' and '.join(others)}" if others else first
