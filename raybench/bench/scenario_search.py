"""The bench of the search on scenarios: each figure that is asked of it."""

from __future__ import annotations

import sys
import time
from typing import Any

from raybench.bench import search_figures as figures
from raybench.bench.search_peers import OURS
from raybench.bench.simulated_search import Run, runs, traces
from raybench.search.simulation.scenario import Scenario, folder_of

PEERS = ("nsga2", "tpe", "random_rungs", "moasha")
MANY_SLOTS = 64
TIMED = 10_000  # simulated trials

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
    "simulated_10000_s": "at most 60",
}


def measure(scenario: str, tasks: str, seeds: int) -> dict[str, Any]:
    """All figures of a scenario.

    Args:
        tasks: separated by commas, or `all`.

    Raises:
        ValueError: the scenario or a task is not there.
    """
    there = Scenario(folder_of(scenario))
    names = there.tasks if tasks == "all" else tasks.split(",")
    for name in names:
        there.problem(name)  # an unknown one is refused before anything runs

    began, trials = time.perf_counter(), 0

    def done(methods: tuple[str, ...], **options: Any) -> dict[Run, Any]:
        nonlocal trials
        of_these = traces(runs(scenario, names, seeds, methods, **options))
        trials += sum(one.trials for run, one in of_these.items() if run.method in OURS)
        print(f"{methods} {options}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        return of_these

    two = done(("random", "ours", "ours_full", "before", *PEERS))
    target = figures.targets(two)
    table: dict[str, Any] = {
        "share_to_random": figures.share(two, "ours", target),
        "hypervolume_ratio": figures.ratio(two, "ours", target),
        **figures.compared(two, "ours", PEERS),
    }
    for method in ("ours_full", "before", "random", *PEERS):
        table[f"share_{method}"] = figures.share(two, method, target)
        table[f"ratio_{method}"] = figures.ratio(two, method, target)
    one = done(("random", "ours"), objectives=1)
    table["share_to_random_1"] = figures.share(one, "ours", figures.targets(one))
    limited = done(("random", "ours"), constrained=True)
    table["constrained_ratio"] = figures.ratio(limited, "ours", figures.targets(limited))
    many = done(("ours",), slots=MANY_SLOTS)
    table["share_slots"] = figures.share(many, "ours", target)
    table["slots_ratio"] = table["share_slots"] / table["share_to_random"]
    cold = figures.targets(two, "ours")
    share = figures.share(two, "ours", cold)
    warm, misled = (
        traces(
            [
                Run(scenario=scenario, task=t, method="ours", seed=s, warm=n, misled=wrong)
                for t, n in zip(names, [*names[1:], names[0]], strict=True)
                for s in range(seeds)
            ]
        )
        for wrong in (False, True)
    )
    table["warm_share"] = figures.share(warm, "ours", cold) / share
    table["misled_share"] = figures.share(misled, "ours", cold) / share
    late = done(("random", "ours", "before"), late=True)
    table["late_share"] = figures.share(late, "ours", figures.targets(late))
    table["late_ratio"] = figures.ratio(late, "ours", figures.targets(late))
    table["late_ratio_before"] = figures.ratio(late, "before", figures.targets(late))
    timed = time.perf_counter()
    count = sum(one.trials for one in traces(runs(scenario, names[:4], 1, ("ours",))).values())
    table["simulated_10000_s"] = (time.perf_counter() - timed) / count * TIMED
    return {**table, "tasks": len(names), "seeds": seeds}
