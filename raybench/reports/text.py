"""A data frame as a table for a terminal or a log; columns that do not fit are left out."""

from __future__ import annotations

import re
import shutil
import textwrap
from io import StringIO
from numbers import Integral, Real

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

PADDING = 3  # two spaces and the border of a column
NUMBER = re.compile(r"[×+−-]? ?\d")
FOLDED = 24  # a longer text is wrapped between words, at this width or more


def as_text(
    title: str, frame: pd.DataFrame, *, wide: bool = False, rest: str = "a wider terminal"
) -> str:
    """A table of the columns that fit the terminal, and a line that names the others.

    Args:
        wide: shows all columns at their full width.
        rest: named in that line as the way to see the columns that are left out.
    """
    columns = {
        str(name): cells(frame.iloc[:, place], str(name))
        for place, name in enumerate(frame.columns)
    }
    full = {name: max(map(len, [name, *texts])) for name, texts in columns.items()}
    # COLUMNS, else the terminal's width, else 80 (for a pipe).
    room = shutil.get_terminal_size().columns
    widths = full if wide else _fitted(columns, full, room)
    table = Table()
    for name in columns:
        if name in widths:
            table.add_column(
                Text(name),
                justify="right" if are_numbers(columns[name]) else "left",
                overflow="fold",
                width=widths[name],
            )
    for row in zip(*(columns[name] for name in widths), strict=True):
        table.add_row(*map(Text, row))
    text = StringIO()
    across = 1 + sum(width + PADDING for width in widths.values())
    Console(file=text, width=across).print(table)
    lines = [title] if wide else textwrap.wrap(title, room)
    lines += [line.rstrip() for line in text.getvalue().splitlines()]
    left_out = [name for name in columns if name not in widths]
    if left_out:
        lines += textwrap.wrap(
            f"Columns left out: {'; '.join(left_out)}. Use {rest} to see all.",
            room,
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def cells(column: pd.Series, name: str) -> list[str]:
    """A column's values as text; percentages have two decimals."""
    if name.endswith("%") and pd.api.types.is_float_dtype(column):
        return ["–" if pd.isna(value) else f"{value:.2f}" for value in column]
    return [cell(value) for value in column]


def cell(value: object) -> str:
    """A value as text: four digits, thousands separated by commas, a dash for a missing value."""
    if value is None or value is pd.NA or value != value:
        return "–"
    if isinstance(value, Integral) and not isinstance(value, bool):
        return f"{int(value):,}"
    if isinstance(value, Real) and not isinstance(value, bool):
        return f"{float(value):.4g}"
    return str(value)


def are_numbers(texts: list[str]) -> bool:
    """Whether all cells begin with a number, such as `-0.4 ± 0.3` or `× 0.52`, or are empty."""
    return all(text in ("", "–") or NUMBER.match(text) for text in texts)


def _fitted(columns: dict[str, list[str]], full: dict[str, int], room: int) -> dict[str, int]:
    """The widths of the columns to show: in order, each one that still fits."""
    widths: dict[str, int] = {}
    left = room - 1
    for name, texts in columns.items():
        least = max(_longest_word(name), *(map(_least, texts)), 1)
        if not widths:  # the first column names the rows
            least = min(least, left - PADDING)
        if least + PADDING <= left:
            widths[name] = least
            left -= least + PADDING
    for name, least in widths.items():
        more = min(left, full[name] - least)
        widths[name] += more
        left -= more
    return widths


def _least(text: str) -> int:
    """The width that a cell needs: that of its text, or of the longest word of a long text."""
    return len(text) if len(text) <= FOLDED else max(FOLDED, _longest_word(text))


def _longest_word(text: str) -> int:
    """Length of the longest word; `, %` counts as part of the word before it."""
    return max(map(len, text.replace(", %", ",_%").split()), default=0)
