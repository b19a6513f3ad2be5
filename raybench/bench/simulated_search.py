"""The search on simulated curves: how soon it reaches what random search reaches.

The test: hypervolume of the objectives, costs by their logarithms, in the box between the 10 %
quantile and the best of 400 random configurations; a budget of 60 full trials, counted in epochs;
4 slots. Only complete trials count.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from raybench.bench.search_peers import engine, random_params
from raybench.results.front import hypervolume, on_front
from raybench.search.simulation.curves import Problem
from raybench.search.simulation.scenario import Scenario, folder_of
from raybench.search.simulation.slots import Complete, simulate

BOX = 400  # random configurations that give the box
QUANTILE = 0.1
FULL_TRIALS = 60
SLOTS = 4
NEVER = 2.0  # share of the budget where random's hypervolume is not reached
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Run:
    """One search of one task."""

    scenario: str
    task: str
    method: str
    seed: int
    slots: int = SLOTS
    objectives: int = 2


@dataclass(frozen=True)
class Trace:
    """The hypervolume after each complete trial."""

    spent: tuple[float, ...]
    """Shares of the budget."""
    volumes: tuple[float, ...]
    trials: int

    @property
    def final(self) -> float:
        return self.volumes[-1] if self.volumes else 0.0

    def share_to(self, volume: float) -> float:
        """Share of the budget after which this hypervolume is reached; `NEVER` where it is not."""
        reached = [at for at, here in zip(self.spent, self.volumes, strict=True) if here >= volume]
        return reached[0] if reached else NEVER


def traces(runs: Sequence[Run], processes: int = 2) -> dict[Run, Trace]:
    """Runs all of them, in several processes."""
    with ProcessPoolExecutor(processes) as pool:
        return dict(zip(runs, pool.map(trace, runs, chunksize=1), strict=True))


def trace(run: Run) -> Trace:
    """Simulates one search."""
    problem = _problem(run.scenario, run.task, run.objectives)
    budget = FULL_TRIALS * problem.epochs
    deciding = engine(run.method, problem, run.seed)
    last = -1

    def curve(task):  # type: ignore[no-untyped-def]
        nonlocal last
        last = task.number
        return problem.curve(task.params)

    complete = simulate(deciding, curve, slots=run.slots, budget=budget)
    return Trace(
        tuple(one.spent / budget for one in complete),
        tuple(_volumes(complete, run, problem)),
        last + 1,
    )


@cache
def _scenario(name: str) -> Scenario:
    return Scenario(folder_of(name))


@cache
def _problem(scenario: str, task: str, objectives: int) -> Problem:
    problem = _scenario(scenario).problem(task)
    kept = dict(list(problem.objectives.items())[:objectives])
    return replace(problem, objectives=kept, costs=problem.costs & kept.keys())


@cache
def _box(scenario: str, task: str, objectives: int) -> tuple[NDArray[np.float64], ...]:
    """The worst and the best corner, of gains that are better when larger."""
    problem = _problem(scenario, task, objectives)
    last = [problem.curve(p).at(problem.epochs) for p in random_params(problem, BOX, seed=12345)]
    gains = np.array([_gains(problem, metrics) for metrics in last])
    return np.quantile(gains, QUANTILE, axis=0), gains.max(0)


def _gains(problem: Problem, metrics: dict[str, float]) -> list[float]:
    values = [
        math.log(metrics[name]) if name in problem.costs else metrics[name]
        for name in problem.objectives
    ]
    ways = problem.objectives.values()
    return [value if way == "max" else -value for value, way in zip(values, ways, strict=True)]


def _volumes(complete: Sequence[Complete], run: Run, problem: Problem) -> list[float]:
    worst, best = _box(run.scenario, run.task, run.objectives)
    front: list[list[float]] = []
    volumes: list[float] = []
    for one in complete:
        gains = (np.array(_gains(problem, one.metrics)) - worst) / np.maximum(best - worst, 1e-12)
        # A single objective counts as it is: beyond the best of the 400, too.
        point = [-float(gain) for gain in (np.clip(gains, 0, 1) if len(gains) > 1 else gains)]
        front.append(point)
        kept = on_front(front, ["min"] * len(point))
        front = [each for each, on in zip(front, kept, strict=True) if on]
        volumes.append(hypervolume(front, [0.0] * len(point)) if len(point) > 1 else -min(front)[0])
    return volumes


def figures(
    scenario: str, tasks: Sequence[str], seeds: int, methods: Sequence[str], objectives: int = 2
) -> dict[str, dict[str, float]]:
    """By method: medians over the tasks, of medians over the seeds."""
    every = product(tasks, methods, range(seeds))
    runs = [
        Run(scenario=scenario, task=t, method=m, seed=s, objectives=objectives) for t, m, s in every
    ]
    done = traces(runs, int(os.environ.get("PROCESSES", "2")))

    def of(task: str, method: str) -> list[Trace]:
        return [d for run, d in done.items() if (run.task, run.method) == (task, method)]

    targets = {t: float(np.median([d.final for d in of(t, "random")])) for t in tasks}
    table = {}
    for method in methods:
        shares = [np.median([d.share_to(targets[t]) for d in of(t, method)]) for t in tasks]
        ratios = [np.median([d.final for d in of(t, method)]) / targets[t] for t in tasks]
        table[method] = {
            "share": float(np.median(shares)),
            "share_mean": float(np.mean(shares)),
            "ratio": float(np.median(ratios)),
            "trials": float(np.mean([d.trials for t in tasks for d in of(t, method)])),
        }
    return table
