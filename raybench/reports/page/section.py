"""A sweep's section of the page: its summary, plots and tables."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from raybench.reports import attribution
from raybench.reports.chapter import Chapter
from raybench.reports.page.curves import curves
from raybench.reports.page.effects import effects_view
from raybench.reports.page.importances import importances
from raybench.reports.page.parallel import parallel_view
from raybench.reports.page.scatter import front_views
from raybench.reports.page.sentence import counted, sentence
from raybench.reports.page.table import table
from raybench.reports.page.trial_names import trial_names
from raybench.reports.percent import in_percent
from raybench.reports.summary import front_table, front_title
from raybench.reports.varied import varied
from raybench.results.read import Results

MOST_ROWS = 2_000
"""Most rows in the table of all trials; a browser lays out 2,000 in a quarter of a second."""
HEIGHT = 420
"""Default height of a plot in pixels; reserved until it is drawn."""
OUTCOMES = ("test_accuracy", "model_bytes", "latency_ms", "s_per_epoch", "epoch")


@dataclass(frozen=True)
class Content:
    """The HTML of a part of the page, and what its script draws there."""

    html: str
    plots: dict[str, dict[str, Any]]
    """`views` or `curves`, by the id of the element."""
    names: list[str] = field(default_factory=list)
    """Hover text of each trial."""


def section(chapter: Chapter, place: int) -> Content:
    """The section of the sweep with this index on the page."""
    results = chapter.results
    plots: dict[str, dict[str, Any]] = {}
    blocks = [*_head(chapter)]

    def plot(kind: str, title: str, spec: dict[str, Any] | None, note: str = "") -> None:
        if spec is not None:
            plots[f"{kind}-{place}"] = spec
        blocks.append(card(title, plot_html(f"{kind}-{place}", spec, note)))

    if chapter.verdict is not None:
        blocks += [card(title, table(frame)) for title, frame in chapter.verdict.tables.items()]
    if views := front_views(results, place):
        note = "Drag to zoom, double-click to zoom out, point at a trial to see its parameters."
        plot("front", "Pareto front", {"views": views}, note)
    if chapter.attributions:
        plot("effects", attribution.TITLE, {"views": [effects_view(chapter.attributions)]})
    if drawn := curves(results, place):
        plot("curves", "Learning curves", drawn, _of_curves(drawn))
    bars, note = importances(results)
    plot("importances", "Parameter importances", bars and {"views": [bars]}, note)
    if lines := parallel_view(results):
        note = "Drag along an axis to keep only the trials in that range; click it to undo."
        plot("parallel", "Inputs and objectives of each trial", {"views": [lines]}, note)
    blocks += [card(title, table(frame)) for title, frame in _tables(chapter)]
    blocks.append(_all_trials(results))
    name = html.escape(results.about["sweep"])
    text = (
        f'<section id="sweep-{place}" aria-label="{name}">\n' + "\n".join(blocks) + "\n</section>"
    )
    return Content(text, plots, trial_names(results))


def card(title: str, body: str) -> str:
    """A titled part of a section."""
    return f'<article class="card">\n<h2>{html.escape(title)}</h2>\n{body}\n</article>'


def plot_html(name: str, spec: dict[str, Any] | None, note: str = "") -> str:
    """The element for a plot, with its controls and a note; without a plot only the note."""
    caption = f'<p class="note" id="{name}-note">{html.escape(note)}</p>' if note else ""
    if spec is None:
        return caption
    layout = spec["layout"] if "layout" in spec else spec["views"][0]["layout"]
    height = layout.get("height", HEIGHT)
    return (
        f'<div class="controls" id="{name}-controls"></div>\n{caption}\n'
        f'<div class="frame"><div class="plot" id="{name}" style="height:{height}px"></div></div>'
    )


def _head(chapter: Chapter) -> Iterator[str]:
    results, verdict = chapter.results, chapter.verdict
    yield f"<h1>{html.escape(results.about['sweep'])}</h1>"
    text = sentence(results) if verdict is None else verdict.sentence
    yield f'<p class="verdict">{html.escape(text)}</p>'
    counts = results.trials["status"].value_counts()
    preset = html.escape(str(results.about["family"]))
    yield f'<p class="counts">{preset}: {len(results.trials):,} trials, {counted(counts)}</p>'
    failed = results.trials[results.trials["status"] == "FAILED"]["stop_reason"].value_counts()
    reasons = [f"{count} failed: {reason}" for reason, count in failed.items()]
    if verdict is not None:
        reasons = [*verdict.reasons, *reasons]
    if reasons:
        items = "".join(f"<li>{html.escape(reason)}</li>" for reason in reasons)
        yield f'<ul class="reasons">{items}</ul>'


def _tables(chapter: Chapter) -> Iterator[tuple[str, pd.DataFrame]]:
    if chapter.family_table is not None:
        yield str(chapter.results.about["family"]), chapter.family_table
    if chapter.attributions:
        yield attribution.TITLE, attribution.table(list(chapter.attributions))
    yield front_title(chapter.results), front_table(chapter.results)


def _all_trials(results: Results) -> str:
    trials = results.trials
    outcomes = [n for n in OUTCOMES if n in trials and n not in results.objectives]
    outcomes = [name for name in outcomes if trials[name].notna().any()]
    shown = ["number", "status", *results.objectives, *outcomes, *varied(trials)]
    if trials["stop_reason"].notna().any():
        shown.append("stop_reason")
    return (
        f'<details class="card"><summary><h2>All {len(trials):,} trials</h2></summary>\n'
        f"{table(in_percent(trials[shown]), MOST_ROWS)}\n</details>"
    )


def _of_curves(drawn: dict[str, Any]) -> str:
    """How many curves the page shows; the script updates it after a selection."""
    held = len(drawn["curves"])
    text = f"{min(held, drawn['drawn']):,} of {drawn['of']:,} curves drawn"
    return text if held == drawn["of"] else f"{text}; the page holds {held:,}"
