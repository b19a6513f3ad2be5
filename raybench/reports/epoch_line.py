"""The line that `raybench.train` prints about an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raybench.experiment import Experiment, preset, tables
from raybench.reports.percent import ACCURACIES
from raybench.results.rows import Row

SHOWN = ("loss", "accuracy", "model_bytes", "images_per_s", "test_accuracy")


def epoch_line(experiment: Experiment, number: int, metrics: Row) -> str:
    """The epoch's number, then its usual metrics, the objectives and the techniques' columns."""
    shown = (_short(name, value) for name, value in _shown(experiment, metrics))
    return f"epoch {number}/{experiment.recipe.epochs}  {'  '.join(shown)}"


def _shown(experiment: Experiment, metrics: Row) -> Iterator[tuple[str, Any]]:
    objectives = getattr(preset.load(experiment.family), "objectives", {})
    reported = (name for name in tables.technique_columns() if not name.endswith("_coverage"))
    for name in dict.fromkeys([*SHOWN, *objectives, *reported]):
        if isinstance(metrics.get(name), int | float):
            yield name, metrics[name]


def _short(name: str, value: Any) -> str:
    if name in ACCURACIES:
        return f"{name} {100 * value:.2f} %"
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value:,}"
