"""The table of a study: one row per arm, an arm being the set of techniques that are on."""

from __future__ import annotations

import pandas as pd

from raybench.reports.varied import is_input, of_technique


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per arm: trials, best validation accuracy, and means over the seeds from 1 on."""
    complete = trials[trials["status"] == "COMPLETE"]
    columns = [name for name in complete.columns if is_input(name) and of_technique(name)]
    arms: dict[str, list[int]] = {}
    for place, row in enumerate(complete[columns].notna().to_numpy()):
        on = (name.partition(".")[0] for name, given in zip(columns, row, strict=True) if given)
        arms.setdefault(" + ".join(dict.fromkeys(on)) or "baseline", []).append(place)
    rows = []
    for arm, places in arms.items():
        runs = complete.iloc[places]
        seeds = runs[runs["seed"] > 0]
        rows.append(
            {
                "arm": arm,
                "trials": len(runs),
                "best accuracy, %": 100 * runs["accuracy"].max(),
                "test accuracy, %": 100 * seeds["test_accuracy"].mean(),
                "kB": seeds["model_bytes"].mean() / 1e3,
                "s an epoch": seeds["s_per_epoch"].mean(),
            }
        )
    return pd.DataFrame(rows)
