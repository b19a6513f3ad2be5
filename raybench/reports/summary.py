"""A sweep in words and tables: a headline, its family's table and the Pareto front."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from raybench.reports import family
from raybench.reports.percent import in_percent
from raybench.reports.text import as_text
from raybench.reports.varied import varied
from raybench.results.limits import limits
from raybench.results.read import Results
from raybench.results.remote.address import is_remote

MOST_ROWS = 60
"""Most rows of a family's table at the terminal: a random search can have one row per trial."""


def summary(
    results: Results,
    threshold: float = 0.75,
    *,
    wide: bool = False,
    rest: str = "a wider terminal",
    table: pd.DataFrame | None = None,
) -> str:
    """The family's table and the front, as text.

    Args:
        wide, rest: as those of `as_text`.
        table: the family's table, if it has been made already.
    """
    parts = [headline(results)]
    table = family_table(results, threshold) if table is None else table
    if table is not None and not table.empty:
        title = f"{results.about['family']}: the family's table"
        if len(table) > MOST_ROWS and not wide:
            title += f" (the first {MOST_ROWS} of {len(table):,} rows)"
            table = table.head(MOST_ROWS)
        parts.append(as_text(title, table, wide=wide, rest=rest))
    parts.append(as_text(front_title(results), front_table(results), wide=wide, rest=rest))
    return "\n".join(parts)


def headline(results: Results) -> str:
    """Counts by status, and the reasons for failures."""
    counts = results.trials["status"].value_counts()
    by_status = ", ".join(f"{count} {status.lower()}" for status, count in counts.items())
    total = len(results.trials)
    lines = [
        f"{results.about['sweep']}: {total} {'trial' if total == 1 else 'trials'}, {by_status}"
    ]
    failed = results.trials[results.trials["status"] == "FAILED"]
    for reason, count in failed["stop_reason"].value_counts().items():
        lines.append(f"  {count} failed: {reason}")
    return "\n".join(lines)


def reading(folder: Path | str) -> str:
    """The paths of the Parquet files, and a line of code that reads them."""
    trials = "*" if is_remote(str(folder)) else "trials"
    return (
        f"Parquet: {folder}/trials/{trials}.parquet, {folder}/epochs/*.parquet\n"
        f'pandas:  import pandas as pd; trials = pd.read_parquet("{folder}/trials")'
    )


def family_table(results: Results, threshold: float) -> pd.DataFrame | None:
    """The table as in the family's reference project; None for a family without one."""
    table = family.table(results.about["family"])
    return None if table is None else table(results.trials, results.epochs, threshold)


def front_table(results: Results) -> pd.DataFrame:
    """The Pareto front: number, objectives, test accuracy, and the inputs that vary on it."""
    on_front = results.front
    shown = ["number", *results.objectives]
    if "test_accuracy" in on_front:
        shown.append("test_accuracy")
    complete = results.trials[results.trials["status"] == "COMPLETE"]
    return in_percent(on_front[[*shown, *varied(complete)]])


def front_title(results: Results) -> str:
    """The title of the front, with its objectives."""
    wanted = ", ".join(f"{name} {way}" for name, way in results.objectives.items())
    wanted += "".join(f"; {limit}" for limit in limits(results.constraints))
    return f"Pareto front ({wanted}; complete trials on the validation split)"
