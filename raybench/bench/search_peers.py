"""The methods that the simulated bench compares: ours, and those of other libraries."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import Trial

from raybench.results.front import ranks
from raybench.results.log import Record
from raybench.search.decisions import Decisions
from raybench.search.simulation.curves import Params, Problem
from raybench.search.simulation.memory_sweep import MemorySweep, Simulated
from raybench.search.simulation.slots import Engine

ETA = 3  # of MOASHA


OURS: dict[str, dict[str, Any]] = {
    "ours": {"sampler": "model", "early_stopping": True, "evidence": 5},
    "ours_full": {"sampler": "model", "early_stopping": False, "evidence": 5},
    "before": {"sampler": "tpe", "early_stopping": True, "evidence": 5},
    "random": {"sampler": "random", "early_stopping": False, "evidence": 5},
    "random_rungs": {"sampler": "random", "early_stopping": True, "evidence": 0},
}
"""The sweep's decisions with different samplers and rungs; `before` has TPE, for which all stopped
trials are equally bad."""


def engine(
    method: str,
    problem: Problem,
    seed: int,
    constraints: Mapping[str, str] | None = None,
    records: Sequence[Record] = (),
) -> Engine:
    """A method's engine for a problem, which resumes from records.

    Raises:
        KeyError: the method is unknown.
    """
    if method in SAMPLERS:
        return PlainStudy(SAMPLERS[method](seed), problem)
    if method == "moasha":
        return Moasha(problem, seed)
    decisions = Decisions(
        problem.objectives, problem.epochs, seed=seed, constraints=constraints, **OURS[method]
    )
    return MemorySweep(decisions, problem.suggest, records=records)


SAMPLERS = {
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
}


class PlainStudy:
    """An Optuna study without early stopping."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, problem: Problem) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        ways = [
            StudyDirection.MAXIMIZE if way == "max" else StudyDirection.MINIMIZE
            for way in problem.objectives.values()
        ]
        self._study = optuna.create_study(sampler=sampler, directions=ways)
        self._problem = problem
        self._trials: dict[int, Trial] = {}
        self._metrics: dict[int, dict[str, float]] = {}

    def ask(self) -> Simulated:
        trial = self._study.ask()
        params = self._problem.suggest(trial)
        self._trials[trial.number] = trial
        return Simulated(trial.number, params)

    def report(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        self._metrics[number] = dict(metrics)
        return False

    def finish(self, number: int, status: str, stop_reason: str | None = None) -> None:
        metrics = self._metrics.pop(number)
        self._study.tell(self._trials.pop(number), [metrics[n] for n in self._problem.objectives])


class Moasha:
    """Random configurations with early stopping by MO-ASHA with an epsilon-net, as in Syne Tune.

    Source: Schmucker et al. 2021, arXiv 2106.12639.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self._problem = problem
        self._study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        levels = range(math.ceil(math.log(problem.epochs, ETA)))
        self._rungs: dict[int, list[tuple[int, list[float]]]] = {ETA**level: [] for level in levels}

    def ask(self) -> Simulated:
        trial = self._study.ask()
        return Simulated(trial.number, self._problem.suggest(trial))

    def report(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        if epoch not in self._rungs or epoch == self._problem.epochs:
            return False
        rung = self._rungs[epoch]
        insort(rung, (number, [metrics[name] for name in self._problem.objectives]))
        points = [values for _, values in rung]
        place = [one for one, _ in rung].index(number)
        best = max(1, math.ceil(len(rung) / ETA))
        return place not in _epsilon_net(points, list(self._problem.objectives.values()), best)

    def finish(self, number: int, status: str, stop_reason: str | None = None) -> None:
        """Does nothing: only reports matter."""


def _epsilon_net(points: Sequence[Sequence[float]], ways: Sequence[str], count: int) -> list[int]:
    """The first `count` indices by non-domination rank; within a rank, each is the farthest from
    those before it."""
    rank = np.array(ranks(points, ways))
    scaled = np.array(points, float)
    scaled = (scaled - scaled.min(0)) / np.maximum(np.ptp(scaled, axis=0), 1e-12)
    order: list[int] = []
    for level in range(rank.max() + 1):
        left = np.flatnonzero(rank == level)
        gaps = np.full(len(left), np.inf)
        for _ in range(min(len(left), count - len(order))):
            farthest = int(np.argmax(gaps))
            order.append(int(left[farthest]))
            away = np.linalg.norm(scaled[left] - scaled[left[farthest]], axis=-1)
            gaps = np.minimum(gaps, away)
            gaps[farthest] = -1.0
    return order


def random_params(problem: Problem, count: int, seed: int) -> list[Params]:
    """Random configurations of a problem."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [problem.suggest(study.ask()) for _ in range(count)]
