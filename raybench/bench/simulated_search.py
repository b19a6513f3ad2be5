"""Searches on simulated curves: how soon each one reaches the result of random search.

The measure is the hypervolume of the objectives, with logarithms of costs, in the box between the
10 % quantile and the best of 400 random configurations. The budget is 60 full trials, counted in
epochs, with 4 slots. Only complete trials count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from raybench.bench.grids.shipped import FOLDER, NAMES
from raybench.bench.search_peers import engine, random_params
from raybench.results.front import hypervolume, on_front
from raybench.results.log import Record
from raybench.results.read import is_sweep
from raybench.search import prior
from raybench.search.forecast import places
from raybench.search.simulation.curves import Curve, Problem, late_start
from raybench.search.simulation.memory_sweep import MemorySweep
from raybench.search.simulation.recorded import Recorded
from raybench.search.simulation.scenario import Scenario, folder_of
from raybench.search.simulation.slots import simulate

BOX = 400  # random configurations that define the box
QUANTILE = 0.1
FULL_TRIALS = 60
SLOTS = 4
NEVER = 2.0  # share of the budget if the target hypervolume is never reached
PROCESSES = 2
MEDIAN = 0.5
ALIKE = 100  # random configurations that determine which tasks are neighbours


@dataclass(frozen=True, kw_only=True)
class Run:
    """One search of one task."""

    scenario: str
    task: str
    method: str
    seed: int
    slots: int = SLOTS
    objectives: int = 2
    late: bool = False
    """Whether the first third of the curves is noise."""
    constrained: bool = False
    """Whether the last objective must be no worse than the median of random configurations."""
    warm: str = ""
    """The task of an earlier search whose results this one starts with."""
    misled: bool = False
    """Whether the earlier results are reversed, so that the worst configurations look best."""
    length: float = 1.0
    """Length of the search in budgets."""


@dataclass(frozen=True)
class Trace:
    """The hypervolume after each complete trial."""

    spent: tuple[float, ...]
    """Share of the budget spent by the end of each trial."""
    volumes: tuple[float, ...]
    trials: int

    @property
    def final(self) -> float:
        return self.volumes[-1] if self.volumes else 0.0

    def until(self, share: float) -> Trace:
        """The trace up to a share of the budget."""
        count = sum(at <= share for at in self.spent)
        return Trace(self.spent[:count], self.volumes[:count], self.trials)

    def share_to(self, volume: float) -> float:
        """Share of the budget after which this hypervolume is reached; `NEVER` if it is not."""
        reached = [at for at, here in zip(self.spent, self.volumes, strict=True) if here >= volume]
        return reached[0] if reached else NEVER


def traces(runs: Sequence[Run]) -> dict[Run, Trace]:
    """Traces of the runs, computed in several processes."""
    with ProcessPoolExecutor(PROCESSES, initializer=_one_thread) as pool:
        return dict(zip(runs, pool.map(trace, runs, chunksize=1), strict=True))


def _one_thread() -> None:
    """One thread for BLAS, as in a real sweep; two took 2 to 6 times the processor time."""
    threadpool_limits(limits=1)


def runs(
    scenario: str, tasks: Iterable[str], seeds: int, methods: Sequence[str], **options: Any
) -> list[Run]:
    """One run per task, method and seed."""
    return [
        Run(scenario=scenario, task=task, method=method, seed=seed, **options)
        for task in tasks
        for method in methods
        for seed in range(seeds)
    ]


def neighbour(name: str, task: str) -> str:
    """The other task with the most similar ranks of random configurations; its least similar
    objective counts."""

    def alike(other: str) -> float:
        both = (_places(name, task), _places(name, other))
        return min(
            float(np.corrcoef(one, two)[0, 1]) for one, two in zip(both[0], both[1], strict=True)
        )

    return max((one for one in scenario(name).tasks if one != task), key=alike)


@cache
def _places(name: str, task: str) -> list[NDArray[np.float64]]:
    """Ranks of some random configurations in each objective."""
    problem = scenario(name).problem(task)
    ends = [
        problem.curve(one).at(problem.epochs) for one in random_params(problem, ALIKE, seed=12345)
    ]
    return [places(np.array([one[objective] for one in ends])) for objective in problem.objectives]


def trace(run: Run) -> Trace:
    """Simulates one search."""
    problem = _problem(run)
    budget = FULL_TRIALS * problem.epochs
    constraints = _constraints(run)
    deciding = engine(run.method, problem, run.seed, constraints, _prior(run))
    asked = 0

    def curve(task: Any) -> Curve:
        nonlocal asked
        asked += 1
        return problem.curve(task.params)

    length = round(run.length * budget)
    complete = simulate(deciding, curve, slots=run.slots, budget=length)
    spent = tuple(one.spent / budget for one in complete)
    return Trace(spent, tuple(volumes([one.metrics for one in complete], run)), asked)


def _prior(run: Run) -> list[Record]:
    """The record that a warm search starts with."""
    if not run.warm:
        return []
    older = replace(run, task=run.warm, warm="", misled=False, length=1.0, seed=run.seed + 1000)
    problem = _problem(older)
    sweep = engine(run.method, problem, older.seed)
    assert isinstance(sweep, MemorySweep)
    budget = FULL_TRIALS * problem.epochs
    simulate(sweep, lambda task: problem.curve(task.params), slots=run.slots, budget=budget)
    trials = prior.of_records(sweep.records, problem.objectives)
    if run.misled:
        order = sorted(range(len(trials)), key=lambda place: trials[place]["values"])
        values = [trials[place]["values"] for place in order]
        for place, value in zip(order, reversed(values), strict=True):
            trials[place] = {**trials[place], "values": value}
    return [("prior", 0.0, {"sweeps": [trials]})]


@cache
def scenario(name: str) -> Scenario | Recorded:
    """A recorded grid, the folder of one of our sweeps, or a folder under $RAYBENCH_YAHPO.

    Raises:
        ValueError: there is none with this name.
    """
    if name in NAMES:
        return Recorded(FOLDER / name)
    if is_sweep(Path(name)):
        return Recorded(Path(name))
    return Scenario(folder_of(name))


def _problem(run: Run) -> Problem:
    problem = scenario(run.scenario).problem(run.task)
    kept = dict(list(problem.objectives.items())[: run.objectives])
    problem = replace(problem, objectives=kept, costs=problem.costs & kept.keys())
    return late_start(problem) if run.late else problem


@cache
def _random_ends(name: str, task: str) -> tuple[dict[str, float], ...]:
    """Final metrics of random configurations, or of all if there are few."""
    problem = scenario(name).problem(task)
    params = problem.every or random_params(problem, BOX, seed=12345)
    return tuple(problem.curve(one).at(problem.epochs) for one in params)


def _constraints(run: Run) -> dict[str, str]:
    if not run.constrained:
        return {}
    problem = _problem(run)
    name, way = list(problem.objectives.items())[-1]
    middle = np.quantile([one[name] for one in _random_ends(run.scenario, run.task)], MEDIAN)
    return {name: f"{'<=' if way == 'min' else '>='} {float(middle)!r}"}


def _gains(problem: Problem, metrics: Mapping[str, float]) -> NDArray[np.float64]:
    """The objectives, larger is better."""
    values = [
        math.log(metrics[name]) if name in problem.costs else metrics[name]
        for name in problem.objectives
    ]
    signs = [1 if way == "max" else -1 for way in problem.objectives.values()]
    return np.array(values) * signs


def volumes(complete: Sequence[Mapping[str, float]], run: Run) -> list[float]:
    """The front's hypervolume after each complete trial of a search, from their metrics."""
    problem = _problem(run)
    ends = np.array([_gains(problem, one) for one in _random_ends(run.scenario, run.task)])
    worst, best = np.quantile(ends, QUANTILE, axis=0), ends.max(0)
    if run.constrained:  # trials beyond the limit have no volume
        worst[-1] = np.quantile(ends[:, -1], MEDIAN)
    front: list[list[float]] = []
    hypervolumes: list[float] = []
    for one in complete:
        gains = (_gains(problem, one) - worst) / np.maximum(best - worst, 1e-12)
        # A single objective is not clipped: it may exceed the best of the 400.
        point = [-float(gain) for gain in (np.clip(gains, 0, 1) if len(gains) > 1 else gains)]
        front.append(point)
        kept = on_front(front, ["min"] * len(point))
        front = [each for each, on in zip(front, kept, strict=True) if on]
        several = len(point) > 1
        hypervolumes.append(hypervolume(front, [0.0] * len(point)) if several else -min(front)[0])
    return hypervolumes
