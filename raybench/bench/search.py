"""What the search brings: its front's hypervolume against random search's, at equal epochs."""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import raybench
from raybench.cluster.execute import execute
from raybench.cluster.session import session
from raybench.progress import Progress
from raybench.results.front import hypervolume
from raybench.space import Overrides, Space, load
from raybench.sweep import Sweep
from trainers import super_model

SPACE = Path(raybench.__file__).parents[1] / "search_spaces" / "super_model.py"
TRIALS = 29  # full ones: the search of the reference project
EPOCHS = 9
SUBSET = 1 / 3
ROUNDS = 2
WORSE = 0.05  # of accuracy below the plain network, of which nothing counts any more

claims = {"ratio": "reach 1.3"}


class Budgeted(Sweep):
    """A sweep that ends when its trials have trained for so many epochs together.

    `rows` are the trials that were complete by then.
    """

    budget = TRIALS * EPOCHS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.spent = 0
        self.rows: list[dict[str, Any]] = []

    def ask(self) -> Any:
        return super().ask() if self.spent < self.budget else None

    def report(self, number: int, epoch: int, metrics: dict[str, Any]) -> bool:
        self.spent += 1
        return super().report(number, epoch, metrics)

    def finish(self, number: int, status: str, stop_reason: str | None = None) -> None:
        super().finish(number, status, stop_reason)
        row = self.store.trials[number]
        if row["status"] == "COMPLETE" and self.spent <= self.budget:
            self.rows.append(row)


def measure() -> dict[str, float]:
    """`search_spaces/super_model.py` on a third of digits' training images, 9 epochs a trial.

    A front's hypervolume is over three gains on the plain ResNet-20 in fp32 of as many epochs:
    accuracy above 5 points less than its own, and the logarithms of its bytes and its milliseconds
    over the trial's. Random search has 29 full trials; the search, TPE with early stopping, has as
    many epochs, and its trials that were complete by then count.
    """
    overrides = Overrides(epochs=EPOCHS, data="digits", subset=SUBSET)
    found: dict[str, list[float]] = {"searched": [], "random": []}
    trials: dict[str, list[int]] = {"searched": [], "random": []}
    with tempfile.TemporaryDirectory() as scratch, session():
        for number in range(ROUNDS):
            of = replace(overrides, seed=number)
            space = load(SPACE, of)
            plain = _plain(of)
            for side in found:
                sweep = _sweep(Path(scratch) / f"{side}{number}", space, of, side)
                gains = [_gains(row, plain) for row in sweep.rows]
                found[side].append(hypervolume([[-g for g in gain] for gain in gains], [0.0] * 3))
                trials[side].append(len(sweep.store.trials))
                said = f"{side} {number}: hypervolume {found[side][-1]:.3f}, "
                said += f"{len(sweep.rows)} of {trials[side][-1]} trials complete"
                print(said, file=sys.stderr)
    pairs = zip(found["searched"], found["random"], strict=True)
    ratios = [ours / theirs if theirs else math.inf for ours, theirs in pairs]
    return {
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "hypervolume": median(found["searched"]),
        "random_hypervolume": median(found["random"]),
        "trials": median(trials["searched"]),
        "random_trials": median(trials["random"]),
        "rounds": ROUNDS,
    }


def _plain(overrides: Overrides) -> dict[str, Any]:
    """What the plain network reaches: the point from which gains are counted."""
    *_, last = super_model.train(overrides.apply(super_model.base))
    return last.metrics


def _gains(row: dict[str, Any], plain: dict[str, Any]) -> list[float]:
    return [
        row["accuracy"] - (plain["accuracy"] - WORSE),
        math.log(plain["model_bytes"] / row["model_bytes"]),
        math.log(plain["latency_ms"] / row["latency_ms"]),
    ]


def _sweep(folder: Path, space: Space, overrides: Overrides, side: str) -> Budgeted:
    searched = side == "searched"
    sweep = Budgeted(
        folder,
        space,
        trials=10 * TRIALS if searched else TRIALS,
        overrides=overrides,
        keep="none",
        early_stopping=searched,
        sampler="tpe" if searched else "random",
    )
    with Progress(sweep) as progress:
        execute(sweep, progress, workers=1, gpus=0.0, concurrent=2)
    sweep.close()
    return sweep
