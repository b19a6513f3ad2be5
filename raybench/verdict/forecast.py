"""Forecast: how many trials a study will run and how long, by running its policy in virtual time.

Outcomes are drawn at random. Techniques change bytes, memory and seconds as in their short runs.
Their effect on accuracy is unknown, so it is drawn as well. The noise of a seed is that of a test
split of this size. A budget ends the simulated study as it ends a real one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import numpy as np

from raybench.verdict.arms import Run
from raybench.verdict.costs import Cost
from raybench.verdict.judgement import Outcome
from raybench.verdict.outcome import Measured, verdicts
from raybench.verdict.policy import Design, History, state
from raybench.verdict.study import MARGIN, expected_s

DRAWS = 11
EFFECT = (-0.01, 0.02)  # mean and spread of a technique's effect on accuracy
ACCURACY = 0.95  # assumed for a model whose accuracy is not known yet


@dataclass(frozen=True)
class Forecast:
    """Medians over a few draws."""

    trials: int
    trials_s: float
    """From the first trial's start to the last one's end."""
    arms: int
    """The arms that are measured alone at the end, including the baseline."""


def forecast(
    design: Design,
    costs: Mapping[str, Cost],
    seconds: dict[str, float],
    *,
    slots: int,
    test_images: int,
    limit_s: float = math.inf,
) -> Forecast:
    """The expected trials and seconds of a study.

    Args:
        seconds: seconds of a trial of each technique's arm; the baseline has the name "".
        limit_s: the time for trials.
    """
    spread = math.sqrt(2 * ACCURACY * (1 - ACCURACY) / test_images)
    drawn = [
        _drawn(design, costs, seconds, slots, spread, limit_s, np.random.default_rng(number))
        for number in range(DRAWS)
    ]
    return Forecast(
        trials=round(median(one.trials for one in drawn)),
        trials_s=median(one.trials_s for one in drawn),
        arms=round(median(one.arms for one in drawn)),
    )


def _drawn(
    design: Design,
    costs: Mapping[str, Cost],
    seconds: dict[str, float],
    slots: int,
    spread: float,
    limit_s: float,
    draw: np.random.Generator,
) -> Forecast:
    effects = {name: draw.normal(*EFFECT) for name in design.settings}
    history: dict[Run, Outcome | None] = {}
    running: list[tuple[float, int, Run]] = []
    now, order, over = 0.0, 0, False
    while True:
        wanted = [] if over else state(design, history).wanted
        for run in wanted[: slots - len(running)]:
            took = expected_s(seconds, run.arm) * run.epochs / design.epochs
            if MARGIN * took > limit_s - now:
                over = True
                break
            history[run] = None
            order += 1
            heapq.heappush(running, (now + took, order, run))
        if not running:
            return Forecast(len(history), now, _arms(design, history))
        now, _, run = heapq.heappop(running)
        mean = ACCURACY + sum(effects[name] for name in run.arm)
        history[run] = _outcome(run, costs, mean + draw.normal(0, spread / 2**0.5, size=2))


def _outcome(run: Run, costs: Mapping[str, Cost], accuracies: np.ndarray) -> Outcome:
    base = costs[""]

    def of(name: str) -> float:
        value = float(getattr(base, name))
        return value * math.prod(getattr(costs[one], name) / value for one in run.arm)

    return Outcome(
        complete=True,
        accuracy=float(accuracies[0]),
        test_accuracy=float(accuracies[1]),
        model_bytes=of("model_bytes"),
        memory_bytes=of("counted_bytes"),
        s_per_epoch=of("step_s"),
    )


def _arms(design: Design, history: History) -> int:
    judged, _ = verdicts(design, history, Measured())
    return 1 + sum(one.verdict != "does not pay" for one in judged.values())
