"""The sweeps of a results folder, one row each."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from raybench.reports.quantity import quantity
from raybench.results.read import read


def sweeps(folder: Path) -> pd.DataFrame:
    """Name, preset, trials by status, and the best value of the first objective.

    Raises:
        ValueError: there is no sweep in the folder, or one of them is damaged.
    """
    rows = []
    for trials in sorted(folder.glob("*/trials/trials.parquet")):
        results = read(trials.parents[1])
        counts = results.trials["status"].value_counts()
        (objective, way), *_ = results.objectives.items()
        complete = results.trials[results.trials["status"] == "COMPLETE"][objective].dropna()
        best = None if complete.empty else complete.max() if way == "max" else complete.min()
        rows.append(
            {
                "sweep": trials.parents[1].name,
                "preset": results.about["family"],
                "trials": len(results.trials),
                **{name: int(counts.get(name.upper(), 0)) for name in ("complete", "failed")},
                "best": None if best is None else quantity(objective, best),
            }
        )
    if not rows:
        raise ValueError(f"{folder} holds no sweep and no results")
    return pd.DataFrame(rows)
