"""The figures of the simulated searches: shares, ratios, and comparisons of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from raybench.bench.simulated_search import Run, Trace

LEVEL = 0.05

Done = Mapping[Run, Trace]


def of(done: Done, method: str, task: str) -> list[Trace]:
    """The traces of a method on a task, ordered by seed."""
    runs = [run for run in done if (run.method, run.task) == (method, task)]
    return [done[run] for run in sorted(runs, key=lambda run: run.seed)]


def tasks(done: Done) -> list[str]:
    return list(dict.fromkeys(run.task for run in done))


def targets(done: Done, method: str = "random") -> dict[str, float]:
    """A method's final hypervolume by task: the median over the seeds."""
    return {t: float(np.median([one.final for one in of(done, method, t)])) for t in tasks(done)}


def share(done: Done, method: str, target: Mapping[str, float]) -> float:
    """Share of the budget needed for the targets: the median over tasks of medians over seeds."""
    shares = [
        np.median([one.share_to(target[t]) for one in of(done, method, t)]) for t in tasks(done)
    ]
    return float(np.median(shares))


def ratio(done: Done, method: str, target: Mapping[str, float]) -> float:
    """Final hypervolume divided by the targets: the median over tasks of medians over seeds."""
    ratios = [
        np.median([one.final for one in of(done, method, t)]) / max(target[t], 1e-9)
        for t in tasks(done)
    ]
    return float(np.median(ratios))


def compared(done: Done, method: str, peers: Sequence[str]) -> dict[str, float]:
    """`wins`: number of peers that the method beats, by Wilcoxon's test over the tasks with Holm's
    correction. `losses`: number of peers with a higher mean."""
    means = {
        name: np.array([np.mean([one.final for one in of(done, name, t)]) for t in tasks(done)])
        for name in (method, *peers)
    }
    gaps = {name: means[method] - means[name] for name in peers}
    chances = {
        name: float(stats.wilcoxon(gap, alternative="greater").pvalue) if gap.any() else 1.0
        for name, gap in gaps.items()
    }
    wins = 0
    for left, name in zip(range(len(peers), 0, -1), sorted(peers, key=chances.get), strict=True):  # type: ignore[arg-type]
        if chances[name] * left > LEVEL:
            break
        wins += 1
    return {
        "wins": wins,
        "losses": sum(float(gap.mean()) < 0 for gap in gaps.values()),
        "peers": len(peers),
        **{f"wins_p_{name}": chance for name, chance in chances.items()},
    }
