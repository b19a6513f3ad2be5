"""The recommended recipe: the arm that pays most within the constraints, its files, a check."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from raybench import artefact
from raybench.experiment import Experiment, recipe_file
from raybench.results import whole
from raybench.verdict import fresh
from raybench.verdict.constraints import Constraint
from raybench.verdict.judgement import Goal
from raybench.verdict.outcome import OF_GOAL

NOTHING = "nothing pays for {}"
CHECK_S = 600.0  # deadline of the fresh process


@dataclass(frozen=True)
class Choice:
    """The recommended arm, or the nearest one if none meets the constraints."""

    arm: str
    meets: bool
    why: str


def choose(
    verdicts: pd.DataFrame,
    goal: Goal,
    constraints: Sequence[Constraint],
    never: frozenset[str] = frozenset(),
) -> Choice:
    """The arm that pays most and meets the constraints, else the baseline, else an undecided arm.

    Args:
        never: arms that are not recommended, such as int8 that is slower than fp32.
    """
    rows = verdicts[verdicts["test_accuracy"].notna()].copy()
    figures = {str(row["arm"]): figures_of(rows, str(row["arm"])) for _, row in rows.iterrows()}
    column = f"{OF_GOAL[goal]}_ratio" if OF_GOAL[goal] else "points"
    if column not in rows:  # latencies of a baseline without a graph
        rows[column] = math.nan
    ranked = rows[~rows["arm"].isin(never)].sort_values(column, ascending=goal != "accuracy")
    paying, undecided = (
        list(ranked[ranked["verdict"] == verdict]["arm"]) for verdict in ("pays", "undecided")
    )
    reasons = {
        **dict.fromkeys(paying, f"it pays for {goal}"),
        "baseline": "what pays does not meet the constraints" if paying else NOTHING.format(goal),
        **dict.fromkeys(undecided, "it meets the constraints; whether it pays is undecided"),
    }
    for arm, why in reasons.items():
        if all(one.holds(figures[arm]) for one in constraints):
            return Choice(arm, True, why)
    nearest = min(reasons, key=lambda arm: sum(one.excess(figures[arm]) for one in constraints))
    missed = [str(one) for one in constraints if not one.holds(figures[nearest])]
    return Choice(nearest, False, f"it misses {', '.join(missed)}")


def figures_of(verdicts: pd.DataFrame, arm: str) -> dict[str, float | None]:
    """The figures of an arm that a constraint can limit."""
    row = verdicts[verdicts["arm"] == arm].iloc[0]
    names = ("latency_ms", "model_bytes", "memory_bytes", "test_accuracy")
    figures = {name: _number(row.get(name)) for name in names}
    points = _number(row.get("points"))
    return {**figures, "accuracy_loss": 0.0 if points is None else -points}


def clear(folder: Path) -> None:
    """Deletes the files of an earlier recommendation, which may be outdated."""
    for path in [*folder.glob("recommended.*"), folder / fresh.RECIPE]:
        path.unlink(missing_ok=True)


def write(
    folder: Path, model: Path, experiment: Experiment, graph: bytes | None, told: Mapping[str, Any]
) -> None:
    """Writes recipe.json, the model's file and its ONNX graph into the study's folder."""
    suffix = ".packed" if artefact.is_packed(model) else ".safetensors"
    whole.copy(model, folder / f"recommended{suffix}")
    if graph is not None:
        artefact.write(graph, folder / fresh.GRAPH)
    recipe_file.write(folder / fresh.RECIPE, experiment, told)


def check(folder: Path) -> dict[str, float]:
    """The figures of the files, measured in a separate process.

    Raises:
        ValueError: that process failed; with the last line of its error.
    """
    command = [sys.executable, "-m", "raybench.verdict.fresh", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_S)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{folder}: the files were not read within {CHECK_S:g} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        raise ValueError(f"{folder}: the recommended model cannot be read again: {lines[-1]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
