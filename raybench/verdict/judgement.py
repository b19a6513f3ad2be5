"""Judgement: pays, does not pay or undecided, for every arm against the baseline.

    goal            pays                                  does not pay
    accuracy        more accurate                         no gain of 0.2 points
    bytes, latency, smaller or faster by 2 %, and no      not smaller or faster by 2 %, or more
    train_time,     more than `within` points less        than `within` points less accurate
    memory          accurate

Both are claims about means over paired seeds, tested by t tests. Holm's method corrects for the
number of arms. Any other arm is undecided, with the number of seeds that would decide it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from raybench.reports.effect import Effect, effect, times
from raybench.verdict.arms import Run
from raybench.verdict.statistics import (
    CLAIM,
    Differences,
    holm,
    p_above,
    p_below,
    seeds_needed,
)

Goal = Literal["bytes", "latency", "train_time", "memory", "accuracy"]
GOALS: tuple[Goal, ...] = get_args(Goal)
Verdict = Literal["pays", "does not pay", "undecided"]

LEAST_POINTS = 0.2
"""A gain of fewer points of accuracy does not count."""
LEAST_RATIO = 0.98
"""A ratio to the baseline's bytes, seconds or milliseconds above this does not count as a gain."""
COLUMNS: dict[Goal, str] = {
    "bytes": "model_bytes",
    "memory": "memory_bytes",
    "train_time": "s_per_epoch",
}
"""The columns of a trial from which the ratio to the baseline comes; latency is measured later."""
NO_GAIN: dict[Goal, str] = {
    "bytes": "its file is not smaller",
    "memory": "it needs no less memory",
    "train_time": "it trains no faster",
    "latency": "it is no faster",
}
"""The reason if an arm's ratio is not better."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a run."""

    complete: bool
    accuracy: float = math.nan
    """On the validation images; all choices use it."""
    test_accuracy: float = math.nan
    model_bytes: float = math.nan
    memory_bytes: float = math.nan
    s_per_epoch: float = math.nan
    wall_s: float = math.nan


@dataclass(frozen=True)
class Paired:
    """An arm compared with the baseline, seed by seed."""

    points: Differences
    """Test accuracy above the baseline's, in points."""
    logs: Mapping[Goal, Differences]
    """Logarithms of the ratios to the baseline; less is better."""
    failed: int = 0
    """Seeds for which one side has no model."""

    def gain(self, goal: Goal) -> Differences | None:
        """The logarithms of the goal's ratios; None if they are unknown."""
        logs = self.logs.get(goal)
        return logs if logs is not None and len(logs) and np.isfinite(logs).all() else None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The verdict on an arm."""

    arm: tuple[str, ...]
    verdict: Verdict
    why: str
    points: Effect
    """Test accuracy above the baseline's, in points."""
    ratio: Effect | None
    """The goal's ratio to the baseline; less is better. None for accuracy, or if it is unknown."""
    p_pays: float
    """Adjusted by Holm's method, like the next one."""
    p_not: float
    more: int | None = None
    """Seeds that would decide an undecided arm; None: more than a study allows."""
    failed: int = 0


def paired(history: Mapping[Run, Outcome | None], run: Run, base: Run, seeds: int) -> Paired:
    """The seeds 1 to `seeds` of a run for which both sides have a model."""
    sides = [
        (history.get(_seeded(run, seed)), history.get(_seeded(base, seed)))
        for seed in range(1, seeds + 1)
    ]
    ended = [(one, other) for one, other in sides if one is not None and other is not None]
    both = [(one, other) for one, other in ended if one.complete and other.complete]
    points = [100 * (one.test_accuracy - other.test_accuracy) for one, other in both]
    logs: dict[Goal, Differences] = {
        goal: np.array([math.log(getattr(a, name) / getattr(b, name)) for a, b in both])
        for goal, name in COLUMNS.items()
    }
    return Paired(np.array(points), logs, len(ended) - len(both))


def judge(
    goal: Goal,
    within: float,
    pairs: Mapping[tuple[str, ...], Paired],
    measured: Mapping[tuple[str, ...], Differences] | None = None,
) -> dict[tuple[str, ...], Judged]:
    """The verdicts on all arms together.

    Args:
        within: points of accuracy that may be lost, for every goal but accuracy.
        measured: logarithms of the goal's ratios to the baseline that were measured alone;
            they replace those of the trials.
    """
    arms = list(pairs)
    gains = {arm: (measured or {}).get(arm, pairs[arm].gain(goal)) for arm in arms}
    pays = holm([_p_pays(goal, within, pairs[arm].points, gains[arm]) for arm in arms])
    fails = holm([_p_not(goal, within, pairs[arm].points, gains[arm]) for arm in arms])
    judged = {}
    for arm, p_pays, p_not in zip(arms, pays, fails, strict=True):
        points, gain = pairs[arm].points, gains[arm]
        verdict: Verdict = "undecided"
        if p_pays <= CLAIM:
            verdict = "pays"
        elif p_not <= CLAIM:
            verdict = "does not pay"
        more = None
        if verdict == "undecided":
            more = _more(goal, within, points, CLAIM / max(1, len(arms)))
        judged[arm] = Judged(
            arm=arm,
            verdict=verdict,
            why=_why(goal, within, verdict, points, gain, more),
            points=effect(points),
            ratio=None if gain is None or goal == "accuracy" else times(gain),
            p_pays=p_pays,
            p_not=p_not,
            more=more,
            failed=pairs[arm].failed,
        )
    return judged


def _p_pays(goal: Goal, within: float, points: Differences, gain: Differences | None) -> float:
    if goal == "accuracy":
        return p_above(points, 0.0)
    smaller = 0.0 if gain is None else p_below(gain, math.log(LEAST_RATIO))
    return max(p_above(points, -within), smaller)


def _p_not(goal: Goal, within: float, points: Differences, gain: Differences | None) -> float:
    if goal == "accuracy":
        return p_below(points, LEAST_POINTS)
    not_smaller = 1.0 if gain is None else p_above(gain, math.log(LEAST_RATIO))
    return min(1.0, 2 * min(p_below(points, -within), not_smaller))  # either one is enough


def _why(
    goal: Goal,
    within: float,
    verdict: Verdict,
    points: Differences,
    gain: Differences | None,
    more: int | None,
) -> str:
    """The reason in a few words."""
    if verdict == "undecided":
        if len(points) < 2:
            return "fewer than two seeds have a model on both sides"
        if goal != "accuracy" and gain is None:
            return f"its {goal} was not measured"
        if more is None or not more:
            return "over 1,000 seeds would be needed"
        return "1 more seed would decide" if more == 1 else f"{more} more seeds would decide"
    if goal == "accuracy":
        return "more accurate" if verdict == "pays" else f"no gain of {LEAST_POINTS:g} points"
    points_lost = f"{within:g} point{'' if within == 1 else 's'}"
    if verdict == "pays":
        return f"loses at most {points_lost}"
    if p_below(points, -within) <= CLAIM:
        return f"loses more than {points_lost}"
    return NO_GAIN[goal]


def _more(goal: Goal, within: float, points: Differences, level: float) -> int | None:
    """How many additional seeds would decide about the accuracy."""
    margin = -within
    if goal == "accuracy":
        # The nearer of the two claims: above 0, or below the least gain.
        above = len(points) and points.mean() > LEAST_POINTS / 2
        margin = 0.0 if above else LEAST_POINTS
    needed = seeds_needed(points, margin, level)
    return None if needed is None else max(1, needed - len(points))


def _seeded(run: Run, seed: int) -> Run:
    return Run(run.settings, run.lr_step, run.epochs, seed)
