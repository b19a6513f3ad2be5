"""A data frame as an HTML table that the page's script sorts."""

from __future__ import annotations

import html

import pandas as pd

from raybench.reports.text import are_numbers, cells


def table(frame: pd.DataFrame) -> str:
    """The table in its own scrolling box; numbers stand on the right."""
    columns = [
        (str(name), cells(frame.iloc[:, place], str(name)))
        for place, name in enumerate(frame.columns)
    ]
    kinds = ["" if are_numbers(texts) else ' class="t"' for _, texts in columns]
    heads = zip(columns, kinds, strict=True)
    head = "".join(f"<th{kind}>{html.escape(name)}</th>" for (name, _), kind in heads)
    rows = zip(*(texts for _, texts in columns), strict=True)
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{html.escape(t)}</td>" for t, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )
