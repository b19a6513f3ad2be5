"""The plots of a report, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from io import StringIO

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raybench.reports.attribution import Attribution
from raybench.results.front import front
from raybench.results.read import Results

AGAINST = {"sparsity": "sparsity", "model_bytes": "bytes of the stored file"}
MOST_CURVES = 500
COLORS = ("#3b6ea5", "#c1553b", "#5a9367", "#8a5a9e")


def all_plots(results: Results) -> Iterator[tuple[str, str]]:
    """Title and SVG of each plot that the columns allow."""
    complete = results.trials[results.trials["status"] == "COMPLETE"]
    for column, label in AGAINST.items():
        if column in complete and complete[column].notna().any():
            yield f"Accuracy against {label}", _scatter(results, complete, column, label)
    if not results.epochs.empty:
        yield "Validation accuracy by epoch", _curves(results)


def _scatter(results: Results, complete: pd.DataFrame, column: str, label: str) -> str:
    figure, axes = _axes(label, "validation accuracy")
    for color, (model, rows) in zip(COLORS, complete.groupby("model"), strict=False):
        axes.scatter(rows[column], rows["accuracy"], color=color, label=str(model), zorder=3)
    best = front(results.trials, results.objectives)
    if column in results.objectives and len(best) > 1:
        best = best.sort_values(column)
        axes.plot(best[column], best["accuracy"], color="#999", label="Pareto front", zorder=2)
    axes.legend(frameon=False, loc="lower right")
    return _svg(figure)


def _curves(results: Results) -> str:
    figure, axes = _axes("epoch", "validation accuracy")
    complete = set(results.trials.loc[results.trials["status"] == "COMPLETE", "number"])
    curves = _by_trial(results.epochs)
    shown = set(list(curves)[:: math.ceil(len(curves) / MOST_CURVES)])
    for ended, color, width, label in (
        (False, "#bbb", 0.8, "stopped early or failed"),
        (True, COLORS[0], 1.5, "complete"),
    ):
        lines = [line for n, line in curves.items() if n in shown and (n in complete) == ended]
        axes.add_collection(LineCollection(lines, colors=color, linewidths=width))
        axes.plot([], [], color=color, label=label)
    axes.autoscale()
    title = f"{len(shown)} of {len(curves):,} trials" if len(shown) < len(curves) else None
    axes.legend(frameon=False, loc="lower right", title=title)
    return _svg(figure)


def _by_trial(epochs: pd.DataFrame) -> dict[int, NDArray[np.float64]]:
    """Epoch and accuracy of each trial: (epochs, 2)."""
    points = epochs[["number", "epoch", "accuracy"]].dropna().to_numpy(dtype=float)
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    starts = np.flatnonzero(np.diff(points[:, 0])) + 1
    pieces = np.split(points, starts) if len(points) else []
    return {int(piece[0, 0]): piece[:, 1:] for piece in pieces}


def attributed(attributions: Sequence[Attribution]) -> str:
    """The effect of each ingredient with its interval: one line each, the first one on top."""
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(attributions)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    kinds = (("points", "accuracy, points", 0), ("smaller", "times smaller", 1))
    for axes, (name, label, nothing) in zip(
        panels, (*kinds, ("faster", "times faster", 1)), strict=True
    ):
        effects = [getattr(one, name) for one in attributions]
        axes.errorbar(
            [one.mean for one in effects],
            range(len(attributions)),
            xerr=[
                [one.mean - one.low for one in effects],
                [one.high - one.mean for one in effects],
            ],
            fmt="o",
            color=COLORS[0],
        )
        axes.axvline(nothing, color="#999", linewidth=0.8)
        axes.set_xlabel(label)
        axes.grid(color="#eee", axis="x")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(attributions)), [one.ingredient for one in attributions])
    panels[0].invert_yaxis()
    return _svg(figure)


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#eee")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    text = StringIO()
    # No date, so that the same results give the same file.
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
