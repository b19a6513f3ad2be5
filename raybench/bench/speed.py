"""Time to a target accuracy: the usual recipe over the speed recipe, ResNet-20 on CIFAR-10."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

from raybench import data
from raybench.bench.subject import has_cifar10
from raybench.experiment import Experiment
from raybench.hardware import gpu
from raybench.training import process
from raybench.training.loop import fit
from raybench.training.replicated import Replicated
from raybench.training.runner import Trained
from trainers import speed

SEEDS = (0, 1, 2)
SHARE = 1 / 3  # of the training images, so that an epoch takes about a minute on a core
BELOW = 0.01  # the target is the usual recipe's own final accuracy minus one point

claims = {"speed_ratio": "reach 2.0"}


@dataclass(frozen=True)
class Point:
    """The state of a run after an epoch; `seconds` are those of training alone."""

    seconds: float
    accuracy: float


class OwnTime(Replicated):
    """Measures epochs in processor time, which does not depend on the machine's load.

    On a GPU the kernels run asynchronously, so there it is wall-clock time.
    """

    def epoch(self, number: int) -> Trained:
        began = time.process_time()
        trained = super().epoch(number)
        own_s = time.process_time() - began
        return trained if gpu.available() else replace(trained, seconds=own_s)


def measure() -> dict[str, float]:
    """`speed_ratio`: seconds of training to the target, plain over speed; median over the seeds.

    Seconds are processor time of one thread. The two runs of a seed alternate after each epoch, so
    that both see the same load. A speed recipe that misses the target counts as a ratio of 0.
    """
    process.prepare(threads=1)
    of_seeds = [_against(seed) for seed in SEEDS]
    figures = {name: median(one[name] for one in of_seeds) for name in of_seeds[0]}
    ratios = [one["speed_ratio"] for one in of_seeds]
    return figures | {
        "speed_ratio_min": min(ratios),
        "speed_ratio_max": max(ratios),
        "seeds": len(SEEDS),
    }


def _against(seed: int) -> dict[str, float]:
    runs = {"plain": _points(speed.plain, seed), "speed": _points(speed.base, seed)}
    curves: dict[str, list[Point]] = {name: [] for name in runs}
    while runs:
        for name, points in list(runs.items()):
            point = next(points, None)
            if point is None:
                del runs[name]
                continue
            curves[name].append(point)
            line = f"{name}, seed {seed}: {point.accuracy:.4f} after {point.seconds:.1f} s"
            print(line, file=sys.stderr, flush=True)
    target = curves["plain"][-1].accuracy - BELOW
    plain_s, speed_s = (seconds_to(curves[name], target) for name in ("plain", "speed"))
    assert plain_s is not None
    return {
        "speed_ratio": plain_s / speed_s if speed_s else 0.0,
        "target_accuracy": target,
        "plain_s": plain_s,
        "speed_s": curves["speed"][-1].seconds if speed_s is None else speed_s,
        "plain_accuracy": curves["plain"][-1].accuracy,
        "speed_accuracy": curves["speed"][-1].accuracy,
    }


def seconds_to(curve: list[Point], target: float) -> float | None:
    """Training seconds until the first epoch that reaches the target; None if none does."""
    return next((point.seconds for point in curve if point.accuracy >= target), None)


def _points(base: Experiment, seed: int) -> Iterator[Point]:
    name = "cifar10" if has_cifar10() else "digits"
    experiment = replace(base, data=name, subset=SHARE, seed=seed)
    for epoch in fit(experiment, data.load(experiment), begin=OwnTime):
        yield Point(epoch.metrics["train_s"], epoch.metrics["accuracy"])
