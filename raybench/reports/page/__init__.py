"""The report as one interactive page that needs no network: `document`, `as_html` for one sweep."""

from __future__ import annotations

from raybench.reports.chapter import Chapter
from raybench.reports.page.document import document as document
from raybench.reports.verdict import Verdict
from raybench.results.read import Results

__all__ = ["as_html", "document"]


def as_html(results: Results, threshold: float = 0.75, *, verdict: Verdict | None = None) -> str:
    """The page of one sweep; with the verdict of a study at the top."""
    return document([Chapter(results=results, threshold=threshold, verdict=verdict)])
