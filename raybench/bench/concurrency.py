"""Two concurrent trials against one, on two cores: is the throughput twice as high?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from raybench.bench import real_space
from raybench.bench.timed import run
from raybench.cluster.session import session
from raybench.search.overrides import Overrides
from raybench.search.space import Space, load

ROUNDS = 3
TRIALS = 8

claims = {"ratio": "reach 1.8"}


def measure() -> dict[str, float]:
    """Ratio of whole trials per minute, medians of interleaved rounds."""
    overrides = Overrides(epochs=2, subset=1.0)
    space = load(Path(str(real_space.__file__)), overrides)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch, session():
        for number in range(ROUNDS):
            for concurrent in (1, 2):
                folder = Path(scratch) / f"{concurrent}-{number}"
                rates[concurrent].append(_rate(folder, space, overrides, concurrent))
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "trials_per_min_1": median(rates[1]),
        "trials_per_min_2": median(rates[2]),
        "rounds": ROUNDS,
    }


def _rate(folder: Path, space: Space, overrides: Overrides, concurrent: int) -> float:
    """Whole trials per minute, without the first trial of each worker.

    The first trials include the start of the workers, which happens once per sweep.
    """
    trials = TRIALS + concurrent
    sweep = run(folder, space, overrides, trials=trials, workers=1, concurrent=concurrent)
    return 60 * TRIALS / (sweep.ends[-1] - sweep.ends[concurrent - 1])
