"""python -m raybench.report: a sweep's tables and plots, read only from its Parquet files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from raybench.arguments.parse import parse as command_line
from raybench.reports import verdict as verdicts
from raybench.reports.summary import summary
from raybench.reports.sweeps import sweeps
from raybench.reports.text import as_text
from raybench.results.read import is_sweep, read


@dataclass(frozen=True, kw_only=True)
class Report:
    """Prints a sweep's family table and its Pareto front; --html adds the plots, in one file.

    Examples:

      python -m raybench.report results
      python -m raybench.report results/pruning
      python -m raybench.report results/pruning --html pruning.html
      python -m raybench.report results/experts --threshold 0.6
      python -m raybench.report results/attribution --attribution
      python -m raybench.report results/pruning --rebuild
      python -m raybench.report --columns
    """

    folder: Annotated[Path | None, tyro.conf.Positional] = None
    """The sweep's folder, results/NAME; or results, for a list of its sweeps."""
    threshold: float = 0.75
    """Accuracy for which a table shows the first epoch above it."""
    attribution: bool = False
    """Shows the effect of each ingredient, for a sweep that leaves out one at a time."""
    columns: bool = False
    """Prints the meaning of every column, as Markdown; needs no folder."""
    rebuild: bool = False
    """First rewrites the Parquet files and Optuna's journal from the sweep's log."""
    html: Path | None = None
    """One HTML file to write; it needs nothing from the network."""


def run(options: Report) -> int:
    """The exit code: 0, or 2 if there is nothing to report."""
    if options.columns:
        # Imported here, because the techniques declare the columns and need torch.
        from raybench.experiment import tables

        print(tables.markdown())
        return 0
    try:
        if options.folder is None:
            raise ValueError("name a sweep's folder, such as results/pruning")
        if options.rebuild:
            # Imported here, because the techniques declare the columns and need torch.
            from raybench.search.rebuild import rebuild

            for remark in rebuild(options.folder):
                print(f"raybench.report: {remark}", file=sys.stderr)
        if not is_sweep(options.folder) and [*options.folder.glob("*/trials/trials.parquet")]:
            print(as_text(f"The sweeps in {options.folder}", sweeps(options.folder)))
            return 0
        results, verdict = read(options.folder), verdicts.read(options.folder)
        if verdict is not None:
            print("\n".join([verdict.sentence, *verdict.reasons, ""]))
            for title, frame in verdict.tables.items():
                print(as_text(title, frame))
        print(summary(results, options.threshold))
        if options.attribution:
            from raybench.reports import attribution

            effects = attribution.table(attribution.attribute(results))
            print(as_text(attribution.TITLE, effects))
        if options.html is not None:
            # Imported here, because Matplotlib takes half a second and tables do not need it.
            from raybench.reports.page import as_html

            attributed = options.attribution
            page = as_html(results, options.threshold, attributed=attributed, verdict=verdict)
            options.html.write_text(page)
            print(f"wrote {options.html}")
    except (ValueError, OSError) as error:
        print(f"raybench.report: {error}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: list[str]) -> Report:
    """The command line. Raises SystemExit."""
    return command_line(Report, arguments, "report")


if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
