"""The search bench on scenarios: computes its figures."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

from raybench.bench import search_figures as figures
from raybench.bench.grids.shipped import NAMES
from raybench.bench.search_figures import Done
from raybench.bench.search_peers import OURS
from raybench.bench.simulated_search import FULL_TRIALS, Run, neighbour, runs, scenario, traces

PEERS = ("nsga2", "tpe", "random_rungs", "moasha")
MANY_SLOTS = 64
TIMED = 10_000  # at least so many simulated trials, so that the start counts little
NEARLY = 0.95
LONGER = 1.5  # budgets of a misled search, which may take longer than a cold one

claims = {
    "share_to_random": "at most 0.25",
    "hypervolume_ratio": "reach 1.15",
    "wins": "all but one",
    "losses": "0",
    "share_to_random_1": "at most 0.15",
    "constrained_ratio": "reach 1.2",
    "slots_ratio": "at most 1.3",
    "warm_share": "at most 0.5",
    "misled_share": "at most 1.15",
    "late_share": "at most 0.6",
    "late_ratio": "reach 1",
    "digits_share": "at most 0.6",
    "digits_ratio": "reach 1",
    "cifar10_share": "at most 0.6",
    "cifar10_ratio": "reach 1",
    "simulated_10000_s": "at most 60",
}


def measure(name: str, tasks: str, seeds: int) -> dict[str, Any]:
    """The figures of a scenario, and those of the recorded grids.

    Args:
        tasks: names separated by commas, or `all`.

    Raises:
        ValueError: the scenario or a task does not exist.
    """
    there = scenario(name)
    names = there.tasks if tasks == "all" else tasks.split(",")
    for task in names:
        there.problem(task)  # refuses an unknown task before any search runs
    of = partial(_done, name, names, seeds)
    methods = tuple(dict.fromkeys(("random", *OURS, *PEERS)))
    two = of(methods)
    target = figures.targets(two)
    table: dict[str, Any] = {
        "share_to_random": figures.share(two, "ours", target),
        "hypervolume_ratio": figures.ratio(two, "ours", target),
        **figures.compared(two, "ours", PEERS),
    }
    for method in methods:
        table[f"share_{method}"] = figures.share(two, method, target)
        table[f"ratio_{method}"] = figures.ratio(two, method, target)
        table[f"trials_{method}"] = median(
            one.trials for r, one in two.items() if r.method == method
        )
    one = of(("random", "ours"), objectives=1)
    table["share_to_random_1"] = figures.share(one, "ours", figures.targets(one))
    limited = of(("random", "ours"), constrained=True)
    table["constrained_ratio"] = figures.ratio(limited, "ours", figures.targets(limited))
    many = of(("ours",), slots=MANY_SLOTS)
    table["share_slots"] = figures.share(many, "ours", target)
    table["slots_ratio"] = table["share_slots"] / table["share_to_random"]
    if len(there.tasks) > 1:
        table |= _warm(name, names, seeds)
    late = of(("random", "ours", "before"), late=True)
    table["late_share"] = figures.share(late, "ours", figures.targets(late))
    table["late_ratio"] = figures.ratio(late, "ours", figures.targets(late))
    table["late_ratio_before"] = figures.ratio(late, "before", figures.targets(late))
    for grid in NAMES:
        done = _done(grid, scenario(grid).tasks, seeds, ("random", "ours", "before"))
        target = figures.targets(done)
        table[f"{grid}_share"] = figures.share(done, "ours", target)
        table[f"{grid}_ratio"] = figures.ratio(done, "ours", target)
        table[f"{grid}_ratio_before"] = figures.ratio(done, "before", target)
    began = time.perf_counter()
    timed = traces(runs(name, names, math.ceil(TIMED / FULL_TRIALS / len(names)), ("ours",)))
    count = sum(one.trials for one in timed.values())
    table["simulated_10000_s"] = (time.perf_counter() - began) / count * TIMED
    return {**table, "tasks": len(names), "seeds": seeds}


def _done(
    name: str, tasks: Sequence[str], seeds: int, methods: Sequence[str], **options: Any
) -> Done:
    began = time.perf_counter()
    of_these = traces(runs(name, tasks, seeds, methods, **options))
    took = time.perf_counter() - began
    print(f"{name}: {' '.join(methods)} {options or ''}: {took:.0f} s", file=sys.stderr)
    return of_these


def _warm(name: str, tasks: Sequence[str], seeds: int) -> dict[str, float]:
    """Shares of the budget to the cold search's result, over the cold search's own share.

    `_95`: to 95 % of that result, which depends less on the luck of the last trials.
    """
    near = {task: neighbour(name, task) for task in tasks}
    cold = _done(name, tasks, seeds, ("ours",), length=LONGER)
    target = figures.targets({run: one.until(1.0) for run, one in cold.items()}, "ours")
    nearly = {task: NEARLY * value for task, value in target.items()}
    table = {}
    for figure, wrong in (("warm_share", False), ("misled_share", True)):
        began = time.perf_counter()
        warm = traces(
            [
                Run(
                    scenario=name,
                    task=task,
                    method="ours",
                    seed=seed,
                    warm=near[task],
                    misled=wrong,
                    length=LONGER,
                )
                for task in tasks
                for seed in range(seeds)
            ]
        )
        print(f"{figure}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        for key, value in ((figure, target), (f"{figure}_95", nearly)):
            share = figures.share(cold, "ours", value)
            table[key] = figures.share(warm, "ours", value) / share
    return table
