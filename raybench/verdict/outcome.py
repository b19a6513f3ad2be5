"""Outcome: a study's verdicts and figures as tables, for the terminal and for verdict.parquet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from raybench.reports.effect import Effect, times
from raybench.verdict.judgement import Goal, Judged, Outcome, Paired, judge, paired
from raybench.verdict.policy import (
    BASELINE,
    Arm,
    Design,
    History,
    equal_time_run,
    seed_runs,
    state,
)
from raybench.verdict.statistics import Differences

RATIOS = ("bytes", "latency_1", "latency_64", "train_time", "memory")
"""The figures of every arm that are shown as ratios to the baseline."""
OF_GOAL: dict[Goal, str] = {
    "bytes": "bytes",
    "latency": "latency_1",
    "train_time": "train_time",
    "memory": "memory",
    "accuracy": "",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured alone, at the end: logarithms of ratios to the baseline, one per round."""

    ratios: Mapping[str, Mapping[Arm, Differences]] = field(default_factory=dict)
    """By `latency_1`, `latency_64`, `train_time`, and by arm."""
    latency_ms: Mapping[Arm, float] = field(default_factory=dict)
    """Median of the served graph for one image."""
    slower_in_int8: frozenset[Arm] = frozenset()
    """Arms whose int8 graph is slower than the same network in fp32."""
    without_graph: Mapping[Arm, str] = field(default_factory=dict)
    """Arms without an ONNX graph, with the reason."""


def seeds_of(history: History, design: Design, arm_run: Any) -> int:
    """The number of seeds of a run that have ended, without a gap from the first."""
    count = 0
    for run in seed_runs(arm_run, design.most_seeds):
        if history.get(run) is None:
            break
        count += 1
    return count


def verdicts(
    design: Design, history: History, measured: Measured
) -> tuple[dict[Arm, Judged], dict[Arm, Paired]]:
    """The verdict on every arm that has a setting, and its paired seeds."""
    now = state(design, history)
    base = now.chosen.get(BASELINE)
    if base is None:
        return {}, {}
    pairs = {
        arm: paired(history, run, base, seeds_of(history, design, run))
        for arm, run in now.chosen.items()
        if arm
    }
    alone = measured.ratios.get(OF_GOAL[design.goal])
    judged = judge(design.goal, design.within, pairs, alone)
    return judged, pairs


def table(
    design: Design, history: History, measured: Measured, reasons: Mapping[str, str]
) -> pd.DataFrame:
    """One row per arm, the baseline first, with all figures; `reasons` says why others do not fit.

    Columns: arm, verdict, why, seeds, test accuracy, differences in points and ratios to the
    baseline with their 95 % intervals, p-values, and the same differences at equal training time.
    """
    now = state(design, history)
    judged, pairs = verdicts(design, history, measured)
    rows: list[dict[str, Any]] = []
    for arm, run in now.chosen.items():
        ended = [history.get(one) for one in seed_runs(run, design.most_seeds)]
        complete = [one for one in ended if one is not None and one.complete]
        row: dict[str, Any] = {
            "arm": name_of(arm),
            "verdict": "baseline",
            "why": "",
            "seeds": len(complete),
            "test_accuracy": _mean(complete, "test_accuracy"),
            "model_bytes": _mean(complete, "model_bytes"),
            "memory_bytes": _mean(complete, "memory_bytes"),
            "latency_ms": measured.latency_ms.get(arm),
            "lr_step": run.lr_step,
            "settings": ", ".join(f"{name} {number}" for name, number in run.settings),
        }
        if arm:
            row |= _compared(design, history, measured, judged[arm], pairs[arm])
        rows.append(row)
    for arm, reason in now.without.items():
        rows.append({"arm": name_of(arm), "verdict": "failed", "why": reason})
    for name, reason in reasons.items():
        rows.append({"arm": name, "verdict": "does not fit", "why": reason})
    return pd.DataFrame(rows)


def _compared(
    design: Design, history: History, measured: Measured, one: Judged, pair: Paired
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "verdict": one.verdict,
        "why": one.why,
        "p_pays": one.p_pays,
        "p_not": one.p_not,
        "more_seeds": one.more,
        "failed_seeds": one.failed,
        **_told("points", one.points),
    }
    if one.arm in measured.without_graph:
        row["why"] += f"; {measured.without_graph[one.arm]}"
    if one.arm in measured.slower_in_int8:
        row["why"] += "; its int8 graph is slower than the same network in fp32"
    for name in RATIOS:
        alone = measured.ratios.get(name, {}).get(one.arm)
        logs = alone if alone is not None else pair.logs.get(name)  # type: ignore[call-overload]
        if logs is not None and len(logs) and np.isfinite(logs).all():
            row |= _told(f"{name}_ratio", times(logs))
    now = state(design, history)
    base = now.chosen[BASELINE]
    equal = equal_time_run(design, history, base, now.chosen[one.arm])
    if equal is not None and design.equal_time:
        again = paired(history, equal, base, design.seeds)
        if len(again.points):
            judged = judge(design.goal, design.within, {one.arm: again})[one.arm]
            row |= {"equal_time_epochs": equal.epochs, "equal_time_seeds": judged.points.seeds}
            row |= _told("equal_time_points", judged.points)
    return row


def name_of(arm: Arm) -> str:
    return " + ".join(arm) or "baseline"


def short_table(frame: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """The columns that fit into 80 characters: arm, verdict, accuracy and the goal's ratio."""
    shown = frame[frame["seeds"].notna()]
    columns: dict[str, Any] = {
        "arm": shown["arm"],
        "verdict": shown["verdict"],
        "seeds": [f"{count:.0f}" for count in _floats(shown, "seeds")],
        "points": _points(shown, "points"),
    }
    if ratio := OF_GOAL[goal]:
        columns[goal] = _ratios(shown, f"{ratio}_ratio")
    return pd.DataFrame(columns)


def equal_time_table(frame: pd.DataFrame) -> pd.DataFrame | None:
    """The differences at equal training time; None if nothing was compared."""
    if "equal_time_points" not in frame:
        return None
    shown = frame[frame["equal_time_points"].notna()]
    return pd.DataFrame(
        {
            "arm": shown["arm"],
            "epochs": shown["equal_time_epochs"].astype(int),
            "seeds": shown["equal_time_seeds"].astype(int),
            "points": _points(shown, "equal_time_points"),
        }
    )


def _floats(frame: pd.DataFrame, name: str) -> list[float]:
    if name not in frame:
        return [math.nan] * len(frame)
    return [math.nan if v is None else float(v) for v in frame[name].to_list()]


def _points(frame: pd.DataFrame, name: str) -> list[str]:
    """`-0.4 ± 0.3`: the mean and half of its 95 % interval."""
    pairs = zip(_floats(frame, name), _floats(frame, f"{name}_high"), strict=True)
    return ["" if math.isnan(mean) else f"{mean:+.1f} ± {high - mean:.1f}" for mean, high in pairs]


def _ratios(frame: pd.DataFrame, name: str) -> list[str]:
    """`× 0.52 (0.50–0.54)`; without the interval if both ends are equal."""
    texts = []
    bounds = (_floats(frame, f"{name}_low"), _floats(frame, f"{name}_high"))
    for mean, low, high in zip(_floats(frame, name), *bounds, strict=True):
        interval = f" ({low:.2f}–{high:.2f})" if f"{low:.2f}" != f"{high:.2f}" else ""
        texts.append("" if math.isnan(mean) else f"× {mean:.2f}{interval}")
    return texts


def _told(name: str, one: Effect) -> dict[str, float]:
    return {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}


def _mean(outcomes: list[Outcome], name: str) -> float:
    values = [getattr(one, name) for one in outcomes]
    return float(np.mean(values)) if values else math.nan
