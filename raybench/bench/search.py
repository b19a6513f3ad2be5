"""Hypervolume of the search's front over that of random search, at equal epochs."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import raybench
from raybench.cluster.execute import execute
from raybench.cluster.session import session
from raybench.results.front import hypervolume
from raybench.search.overrides import Overrides
from raybench.search.progress import Progress
from raybench.search.space import load
from raybench.search.sweep import Sweep
from raybench.training.trainer import train
from trainers import super_model

SPACE = Path(raybench.__file__).parents[1] / "search_spaces" / "super_model.py"
TRIALS = 29  # full trials, as in the reference project's search
EPOCHS = 9
SUBSET = 1 / 3
ROUNDS = 2
START_EPOCHS = 3 * EPOCHS  # for the search's initial network; part of its budget
CHANCE = 0.1  # accuracy of guessing one of ten digits

SIDES = ("search", "random")

claims = {"ratio": "reach 1.3"}


class Budgeted(Sweep):
    """A sweep that ends, with its running trials, after `budget` epochs of all trials together.

    `rows` are the trials that are complete by then; `when` the epochs of all trials until each.
    """

    def __init__(self, *args: Any, budget: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.budget, self.spent = budget, 0
        self.rows: list[dict[str, Any]] = []
        self.when: list[int] = []

    def ask(self) -> Any:
        return super().ask() if self.spent < self.budget else None

    def report(self, number: int, epoch: int, metrics: dict[str, Any]) -> bool:
        self.spent += 1
        stopped = super().report(number, epoch, metrics)
        return stopped or self.spent > self.budget

    def finish(
        self,
        number: int,
        status: str,
        stop_reason: str | None = None,
        traceback: str | None = None,
    ) -> None:
        super().finish(number, status, stop_reason, traceback)
        row = self.store.trials[number]
        if row["status"] == "COMPLETE" and self.spent <= self.budget:
            self.rows.append(row)
            self.when.append(self.spent)


def measure() -> dict[str, float]:
    """`search_spaces/super_model.py` on a third of digits' training images, 9 epochs per trial.

    In these 63 steps many networks learn nothing; with all images nearly every network is accurate,
    which makes the task too easy. Random search has 29 full trials, which start from fresh weights.
    The search, with early stopping, has as many epochs. It spends 27 of them on one plain network,
    from which its trials start. Only trials that are complete by the end count. The hypervolume of
    a front is over three gains: accuracy above chance, and the logarithms of the bytes and of the
    milliseconds of the plain ResNet-20 in fp32 over the trial's. `ideal_ratio` is the ratio for a
    network that is always correct, with the fewest bytes and milliseconds of any trial of any
    round: roughly an upper bound.
    """
    overrides = Overrides(epochs=EPOCHS, data="digits", subset=SUBSET)
    volumes: dict[str, list[float]] = {side: [] for side in SIDES}
    trials: dict[str, list[int]] = {side: [] for side in SIDES}
    plains, rows = [], []
    with tempfile.TemporaryDirectory() as scratch, session():
        for number in range(ROUNDS):
            folder, of = Path(scratch) / str(number), replace(overrides, seed=number)
            start = folder / "start.safetensors"
            plains.append(plain := _plain(of, start))
            for side in SIDES:
                sweep = _sweep(folder / side, of, side, start)
                rows += sweep.rows
                volumes[side].append(volume(sweep.rows, plain))
                trials[side].append(len(sweep.store.trials))
                line = f"{side} {number}: hypervolume {volumes[side][-1]:.3f}, "
                line += f"{len(sweep.rows)} of {trials[side][-1]} trials complete"
                print(line, file=sys.stderr)
    best = [volume([ideal(rows)], plain) for plain in plains]
    ratios = _ratios(volumes["search"], volumes["random"])
    return {
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ideal_ratio": median(_ratios(best, volumes["random"])),
        **{f"{side}_hypervolume": median(volumes[side]) for side in SIDES},
        **{f"{side}_trials": median(trials[side]) for side in SIDES},
        "rounds": ROUNDS,
    }


def volume(rows: list[dict[str, Any]], plain: dict[str, Any]) -> float:
    """The hypervolume of the trials' gains over the plain network and over chance."""
    losses = [
        [
            CHANCE - row["accuracy"],
            math.log(row["model_bytes"] / plain["model_bytes"]),
            math.log(row["latency_ms"] / plain["latency_ms"]),
        ]
        for row in rows
    ]
    return hypervolume(losses, [0.0] * 3)


def ideal(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A trial that is always correct, with the fewest bytes and milliseconds of any."""
    least = {name: min(row[name] for row in rows) for name in ("model_bytes", "latency_ms")}
    return {"accuracy": 1.0, **least}


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [our / their if their else math.inf for our, their in zip(ours, theirs, strict=True)]


def _plain(overrides: Overrides, start: Path) -> dict[str, Any]:
    """Trains and stores the plain network; returns its metrics."""
    of = replace(overrides, epochs=START_EPOCHS)
    *_, last = train(of.apply(super_model.base), store=start)
    return last.metrics


def _sweep(folder: Path, overrides: Overrides, side: str, start: Path) -> Budgeted:
    os.environ["RAYBENCH_TEACHER"] = ""
    os.environ["RAYBENCH_START"] = str(start) if side == "search" else ""
    space = load(SPACE, overrides)  # the space reads these variables
    budget = TRIALS * EPOCHS
    if side == "random":
        space = replace(space, enqueue=())  # enqueued trials would be prior knowledge
    sweep = Budgeted(
        folder,
        space,
        trials=TRIALS if side == "random" else 10 * TRIALS,
        overrides=overrides,
        keep="none",
        early_stopping=side != "random",
        sampler="random" if side == "random" else "model",
        budget=budget - START_EPOCHS if side == "search" else budget,
    )
    with Progress(sweep) as progress:
        execute(sweep, progress, workers=1, gpus=0.0, max_concurrent=2)
    sweep.close()
    return sweep
