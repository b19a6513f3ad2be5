"""A data frame as an HTML table that the page's script sorts."""

from __future__ import annotations

import html

import pandas as pd

from raybench.reports.text import are_numbers, cells

MOST_ROWS = 500


def table(frame: pd.DataFrame, most: int = MOST_ROWS) -> str:
    """The table in its own scrolling box; numbers are aligned right.

    Args:
        most: maximum number of rows to show; if there are more, a line gives their number.
    """
    rest = f'<p class="note">The first {most:,} of {len(frame):,} rows.</p>\n'
    before = rest if len(frame) > most else ""
    frame = frame.head(most)
    columns = [
        (str(name), cells(frame.iloc[:, place], str(name)))
        for place, name in enumerate(frame.columns)
    ]
    kinds = ["" if are_numbers(texts) else " class=t" for _, texts in columns]
    heads = zip(columns, kinds, strict=True)
    head = "".join(f"<th{kind}>{html.escape(name)}</th>" for (name, _), kind in heads)
    rows = zip(*(texts for _, texts in columns), strict=True)
    # Without end tags, which HTML makes optional: for 2,000 rows they are a tenth of the page.
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{html.escape(t)}" for t, kind in zip(row, kinds, strict=True))
        for row in rows
    )
    return (
        f'{before}<div class="scroll" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )
