"""The page: one HTML file with its styles, scripts and data inside."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raybench.reports.chapter import Chapter
from raybench.reports.page.combined import combined_views
from raybench.reports.page.embed import embedded
from raybench.reports.page.section import Content, card, plot_html, section
from raybench.reports.page.sentence import of_all

FOLDER = Path(__file__).parent
ALLOWED = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; connect-src blob: data:"
)
"""Blocks all network requests. Plotly needs `unsafe-eval`: it builds some code at run time."""


def document(chapters: Sequence[Chapter]) -> str:
    """The page: one section per sweep, and if there are several, a scatter of all of them.

    Deterministic: the same results give the same page, without dates or random names.
    """
    sections = [section(chapter, place) for place, chapter in enumerate(chapters)]
    sweeps = [chapter.results for chapter in chapters]
    parts = sections if len(chapters) == 1 else [_overview(chapters), *sections]
    plots: dict[str, Any] = {}
    for part in parts:
        plots |= part.plots
    data = {"plots": plots, "names": [one.names for one in sections]}
    title = ", ".join(str(one.about["sweep"]) for one in sweeps)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{ALLOWED}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{html.escape(title)} – raybench</title>",
            f"<style>\n{_file('page.css')}</style>\n</head>\n<body>",
            "<main>",
            *(part.html for part in parts),
            "</main>",
            f'<script type="application/json" id="data">{embedded(data)}</script>',
            f"<script>{_plotly()}</script>",
            f"<script>\n{_file('page.js')}</script>",
            "</body>\n</html>\n",
        ]
    )


def _overview(chapters: Sequence[Chapter]) -> Content:
    """The top of a page of several sweeps."""
    sweeps = [chapter.results for chapter in chapters]
    links = "".join(
        f'<a href="#sweep-{place}">{html.escape(str(one.about["sweep"]))}</a>'
        for place, one in enumerate(sweeps)
    )
    blocks = [
        f"<h1>{len(sweeps)} sweeps</h1>",
        f'<p class="verdict">{html.escape(of_all(sweeps))}</p>',
        f"<nav>{links}</nav>",
    ]
    data = sorted({str(name) for one in sweeps for name in one.trials["data"].dropna()})
    note = ""
    if len(data) > 1:
        note = f"The sweeps use different data, so compare with care: {', '.join(data)}."
    views = combined_views(sweeps)
    if views:
        spec = {"views": views}
        blocks.append(card("Accuracy against cost, all sweeps", plot_html("combined", spec, note)))
    text = '<section class="overview">\n' + "\n".join(blocks) + "\n</section>"
    return Content(text, {"combined": {"views": views}} if views else {})


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _plotly() -> str:
    """The source of plotly.js, from the Python package."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
