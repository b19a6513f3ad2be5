"""python -m raybench.report: tables and plots of sweeps, read only from their Parquet files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from raybench.arguments.parse import parse as command_line
from raybench.arguments.paths import require_new_file
from raybench.reports import verdict as verdicts
from raybench.reports.chapter import Chapter
from raybench.reports.summary import summary
from raybench.reports.sweeps import sweeps
from raybench.reports.text import as_text
from raybench.results.read import is_sweep, read
from raybench.results.remote.address import above_of, is_remote, name_of, require

REST = "--wide"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Prints each sweep's family table and its Pareto front; --html adds the plots, in one file.

    Examples:

      python -m raybench.report results
      python -m raybench.report results/pruning --wide
      python -m raybench.report s3://bucket/runs/pruning
      python -m raybench.report results/pruning --html pruning.html
      python -m raybench.report results/pruning results/pruning-runs --html both.html
      python -m raybench.report results/experts --threshold 0.6
      python -m raybench.report results/attribution --attribution
      python -m raybench.report results/pruning --rebuild
      python -m raybench.report --columns
    """

    folders: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = ()
    """Folders or addresses of sweeps, results/NAME; or results, for a list of its sweeps."""
    threshold: float = 0.75
    """Accuracy, 0 to 1; a table shows the first epoch above it."""
    wide: bool = False
    """Shows all columns of a table, even if the terminal is too narrow."""
    attribution: bool = False
    """Shows the effect of each ingredient, for a sweep that leaves out one at a time."""
    columns: bool = False
    """Prints the meaning of every column as Markdown; needs no folder."""
    rebuild: bool = False
    """First rewrites the Parquet files and Optuna's journal from the sweep's log."""
    html: Path | None = None
    """HTML page to write, with interactive plots; it works without a network."""


def run(options: Report) -> int:
    """The exit code: 0, or 2 if there is nothing to report."""
    if options.columns:
        # Imported here, because the techniques declare the columns and need torch.
        from raybench.experiment import tables

        print(tables.markdown())
        return 0
    try:
        if not options.folders:
            raise ValueError("name a sweep's folder, such as results/pruning")
        if not 0 <= options.threshold <= 1:
            raise ValueError(f"--threshold is {options.threshold:g}: an accuracy, 0 to 1")
        require_new_file(options.html)
        folders = [str(folder) for folder in options.folders]  # paths, from Python
        for folder in folders:
            require(folder, others=None)
        chapters = [chapter for folder in folders for chapter in _read(folder, options)]
        if options.html is not None:
            # Imported here, because tables need neither Plotly nor Optuna.
            from raybench.reports.page import document

            options.html.write_text(document(chapters), encoding="utf-8")
            print(f"wrote {options.html}")
    except (ValueError, OSError) as error:
        print(f"raybench.report: {error}", file=sys.stderr)
        return 2
    return 0


def _read(folder: str, options: Report) -> Sequence[Chapter]:
    """Prints the tables at a folder or address; returns its sweeps, for the page."""
    if options.rebuild:
        _rebuild(folder)
    if not is_remote(folder):
        return _printed(Path(folder), options)
    # Imported here, because folders need no file systems.
    from raybench.results.remote.fetched import tables

    with tables(folder) as copy:
        return _printed(copy, options, folder)


def _rebuild(folder: str) -> None:
    # Imported here, because the techniques declare the columns and need torch.
    from raybench.results.remote.place import opened
    from raybench.search.rebuild import rebuild

    if not is_remote(folder):
        remarks = rebuild(Path(folder))
    else:
        above, name = above_of(folder), name_of(folder)
        with opened(above, name, command="report", models=False) as place:
            remarks = rebuild(place.folder)
    for remark in remarks:
        print(f"raybench.report: {remark}", file=sys.stderr)


def _printed(folder: Path, options: Report, shown: str = "") -> Sequence[Chapter]:
    """Prints the tables of the folder; `shown` is its address."""
    within = sorted(path.parents[1] for path in folder.glob("*/trials/trials.parquet"))
    if within and not is_sweep(folder):
        title = f"The sweeps in {shown or folder}"
        print(as_text(title, sweeps(folder), wide=options.wide, rest=REST))
        return [_chapter(sweep, options) for sweep in within] if options.html else []
    chapter = _chapter(folder, options)
    if chapter.verdict is not None:
        print("\n".join([chapter.verdict.sentence, *chapter.verdict.reasons, ""]))
        for title, frame in chapter.verdict.tables.items():
            print(as_text(title, frame, wide=options.wide, rest=REST))
    made = chapter.family_table
    print(summary(chapter.results, options.threshold, wide=options.wide, rest=REST, table=made))
    if options.attribution:
        from raybench.reports import attribution

        effects = attribution.table([*chapter.attributions])
        print(as_text(attribution.TITLE, effects, wide=options.wide, rest=REST))
    return [chapter]


def _chapter(folder: Path, options: Report) -> Chapter:
    results, attributions = read(folder), []
    if options.attribution:
        # Imported here, because it loads SciPy.
        from raybench.reports import attribution

        attributions = attribution.attribute(results)
    return Chapter(
        results=results,
        threshold=options.threshold,
        verdict=verdicts.read(folder),
        attributions=attributions,
    )


def parse(arguments: list[str]) -> Report:
    """The command line. Raises SystemExit."""
    return command_line(Report, arguments, "report")


if __name__ == "__main__":
    sys.exit(run(parse(sys.argv[1:])))
