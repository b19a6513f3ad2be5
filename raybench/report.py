"""python -m raybench.report: a sweep's tables and plots, read from its Parquet files alone."""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass
from io import StringIO
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from raybench.experiment import columns, preset
from raybench.reports import attribution, plots
from raybench.results.front import front
from raybench.results.read import Results, read

ATTRIBUTION = "What each ingredient gives to the others, seed by seed (mean, 95 % interval of t)"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Prints a sweep's family table and its Pareto front; --html adds the plots, in one file.

    Examples:

      python -m raybench.report results/pruning
      python -m raybench.report results/pruning --html pruning.html
      python -m raybench.report results/experts --threshold 0.6
      python -m raybench.report results/attribution --attribution
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The sweep's folder, results/NAME."""
    threshold: float = 0.75
    """Accuracy of which a table gives the first epoch above it."""
    attribution: bool = False
    """Which ingredient gave what, of a sweep in which one is left out at a time."""
    html: Path | None = None
    """One HTML file to write, which needs nothing from the network."""


def summary(results: Results, threshold: float = 0.75) -> str:
    """The family's table and the front, as text."""
    parts = [headline(results)]
    table = family_table(results, threshold)
    if table is not None and not table.empty:
        parts.append(as_text(f"{results.about['family']}: the family's table", table))
    parts.append(as_text(_front_title(results), front_table(results)))
    return "\n".join(parts)


def headline(results: Results) -> str:
    """Counts by status, and what failed."""
    counts = results.trials["status"].value_counts()
    said = ", ".join(f"{count} {status.lower()}" for status, count in counts.items())
    lines = [f"{results.about['sweep']}: {len(results.trials)} trials, {said}"]
    failed = results.trials[results.trials["status"] == "FAILED"]
    for reason, count in failed["stop_reason"].value_counts().items():
        lines.append(f"  {count} failed: {reason}")
    return "\n".join(lines)


def reading(folder: Path) -> str:
    """The files, and the line that opens them."""
    return (
        f"Parquet: {folder}/trials/trials.parquet, {folder}/epochs/*.parquet\n"
        f'pandas:  import pandas as pd; trials = pd.read_parquet("{folder}/trials")'
    )


def family_table(results: Results, threshold: float) -> pd.DataFrame | None:
    """The table as in the family's reference project; None for a family without one."""
    table = getattr(preset.load(results.about["family"]), "table", None)
    return None if table is None else table(results.trials, results.epochs, threshold)


def front_table(results: Results) -> pd.DataFrame:
    """The Pareto front: number, objectives, test accuracy, and the columns that vary on it."""
    found = front(results.trials, results.objectives)
    shown = ["number", *results.objectives]
    if "test_accuracy" in found:
        shown.append("test_accuracy")
    complete = results.trials[results.trials["status"] == "COMPLETE"]
    # A sweep of an older version lacks the columns that came since.
    known = [name for name in columns() if name in complete]
    varied = [name for name in known if complete[name].nunique() > 1]
    return found[[*shown, *varied]]


def as_text(title: str, frame: pd.DataFrame) -> str:
    """A table for a terminal, folded to its width, or for a log, as wide as it is."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    text = StringIO()
    console = Console()
    Console(file=text, width=console.width if console.is_terminal else 250).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def as_html(results: Results, threshold: float = 0.75, *, attributed: bool = False) -> str:
    """The whole report as one page with its plots inline."""
    tables = [("Pareto front", front_table(results))]
    found = attribution.attribute(results) if attributed else []
    if found:
        tables.append((ATTRIBUTION, attribution.table(found)))
    table = family_table(results, threshold)
    if table is not None:
        tables.insert(0, (f"{results.about['family']}", table))
    body = [f"<h1>{html.escape(results.about['sweep'])}</h1>"]
    body += [f"<pre>{html.escape(headline(results))}</pre>"]
    for title, frame in tables:
        shown = frame.map(_cell).to_html(index=False, border=0)
        body.append(f"<h2>{html.escape(title)}</h2>{shown}")
    drawn = [(ATTRIBUTION, plots.attributed(found))] if found else []
    for title, svg in [*drawn, *plots.all_plots(results)]:
        body.append(f"<h2>{html.escape(title)}</h2>{svg}")
    return _PAGE.format(title=html.escape(results.about["sweep"]), body="\n".join(body))


def run(options: Report) -> int:
    try:
        results = read(options.folder)
        print(summary(results, options.threshold))
        if options.attribution:
            print(as_text(ATTRIBUTION, attribution.table(attribution.attribute(results))))
        if options.html is not None:
            page = as_html(results, options.threshold, attributed=options.attribution)
            options.html.write_text(page)
            print(f"wrote {options.html}")
    except (ValueError, OSError) as error:
        print(f"raybench.report: {error}", file=sys.stderr)
        return 2
    return 0


def _front_title(results: Results) -> str:
    wanted = ", ".join(f"{name} {way}" for name, way in results.objectives.items())
    return f"Pareto front ({wanted}; complete trials on the validation split)"


def _cell(value: object) -> str:
    if value is None or value is pd.NA or value != value:
        return "–"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    return f"{float(value):.4g}" if isinstance(value, Real) else str(value)


_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
td, th {{ padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right }}
svg {{ max-width: 100%; height: auto }}
</style>
{body}
"""

if __name__ == "__main__":
    sys.exit(run(tyro.cli(Report, prog="python -m raybench.report")))
