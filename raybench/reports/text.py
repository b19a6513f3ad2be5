"""A data frame as a table for a terminal or a log."""

from __future__ import annotations

from io import StringIO
from numbers import Integral, Real

import pandas as pd
from rich.console import Console
from rich.table import Table


def as_text(title: str, frame: pd.DataFrame) -> str:
    """A table for a terminal, folded to its width, or for a log, at its full width."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        table.add_row(*(cell(value) for value in row))
    text = StringIO()
    console = Console()
    Console(file=text, width=console.width if console.is_terminal else 250).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def cell(value: object) -> str:
    """A value for people: four digits, thousands separated by commas, a dash for a missing one."""
    if value is None or value is pd.NA or value != value:
        return "–"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    return f"{float(value):.4g}" if isinstance(value, Real) else str(value)
