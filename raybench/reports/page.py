"""The report as one HTML page, with its plots inline."""

from __future__ import annotations

import html

from raybench.reports import attribution, plots
from raybench.reports.summary import family_table, front_table, headline
from raybench.reports.text import cell
from raybench.reports.verdict import Verdict
from raybench.results.read import Results


def as_html(
    results: Results,
    threshold: float = 0.75,
    *,
    attributed: bool = False,
    verdict: Verdict | None = None,
) -> str:
    """The whole report as one page with its plots inline; the verdict of a study on top."""
    tables = [("Pareto front", front_table(results))]
    attributions = attribution.attribute(results) if attributed else []
    if attributions:
        tables.append((attribution.TITLE, attribution.table(attributions)))
    table = family_table(results, threshold)
    if table is not None:
        tables.insert(0, (f"{results.about['family']}", table))
    body = [f"<h1>{html.escape(results.about['sweep'])}</h1>"]
    if verdict is not None:
        body.append(f"<p><strong>{html.escape(verdict.sentence)}</strong></p>")
        tables[:0] = verdict.tables.items()
    body += [f"<pre>{html.escape(headline(results))}</pre>"]
    if verdict is not None:
        body += [f"<p>{html.escape(reason)}</p>" for reason in verdict.reasons]
    for title, frame in tables:
        shown = frame.map(cell).to_html(index=False, border=0)
        body.append(f"<h2>{html.escape(title)}</h2>{shown}")
    drawn = [(attribution.TITLE, plots.attributed(attributions))] if attributions else []
    for title, svg in [*drawn, *plots.all_plots(results)]:
        body.append(f"<h2>{html.escape(title)}</h2>{svg}")
    return _PAGE.format(title=html.escape(results.about["sweep"]), body="\n".join(body))


_PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
td, th {{ padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right }}
svg {{ max-width: 100%; height: auto }}
</style>
{body}
"""
