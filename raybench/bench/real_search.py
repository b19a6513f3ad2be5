"""A real sweep on CIFAR-10: how soon does its front reach that of random search?

The space is that of the recorded grid, but every trial trains, on Ray, in two slots. Both sides
have the epochs of 60 full trials. The figures are those of the simulated bench, by the same box.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from raybench.bench.grids import cifar10_space
from raybench.bench.search import Budgeted
from raybench.bench.simulated_search import FULL_TRIALS, Run, Trace, volumes
from raybench.cluster.execute import execute
from raybench.cluster.session import session
from raybench.search.overrides import Overrides
from raybench.search.progress import Progress
from raybench.search.space import load

GRID = "cifar10"
SLOTS = 2
SEEDS = (0,)

claims = {"real_share": "at most 0.6", "real_ratio": "reach 1"}


def measure() -> dict[str, float]:
    """Medians of the seeds. `real_share` is the part of the budget after which random search's
    final hypervolume is reached, 2 if it is not; `real_ratio` the final hypervolume over
    random's."""
    pairs: list[tuple[Trace, Trace]] = []
    with tempfile.TemporaryDirectory() as scratch, session():
        for seed in SEEDS:
            search, random = (_trace(Path(scratch), side, seed) for side in ("model", "random"))
            pairs.append((search, random))
            line = f"seed {seed}: hypervolume {search.final:.3f}, of random {random.final:.3f}"
            print(line, file=sys.stderr, flush=True)
    ratios = [search.final / random.final for search, random in pairs]
    return {
        "real_share": median(search.share_to(random.final) for search, random in pairs),
        "real_ratio": median(ratios),
        "real_ratio_min": min(ratios),
        "real_ratio_max": max(ratios),
        "real_trials": median(search.trials for search, _ in pairs),
        "real_trials_random": median(random.trials for _, random in pairs),
        "seeds": len(SEEDS),
    }


def _trace(scratch: Path, sampler: str, seed: int) -> Trace:
    """One sweep; its models are not kept."""
    overrides = Overrides(seed=seed)
    space = load(Path(str(cifar10_space.__file__)), overrides)
    budget = FULL_TRIALS * space.examples[0].recipe.epochs
    sweep = Budgeted(
        scratch / f"{sampler}-{seed}",
        space,
        trials=budget,
        overrides=overrides,
        keep="none",
        early_stopping=sampler != "random",
        sampler=sampler,
        budget=budget,
    )
    with Progress(sweep) as progress:
        execute(sweep, progress, workers=1, gpus=0.0, max_concurrent=SLOTS)
    sweep.close()
    run = Run(scenario=GRID, task=GRID, method=sampler, seed=seed)
    spent = tuple(epochs / budget for epochs in sweep.when)
    return Trace(spent, tuple(volumes(sweep.rows, run)), len(sweep.store.trials))
