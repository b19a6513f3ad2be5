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
CHANCE = 0.1  # accuracy of guessing one of ten digits

claims = {"ratio": "reach 1.3"}


class Budgeted(Sweep):
    """A sweep that ends when its trials have trained for so many epochs together: what is under
    way then stops.

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
        stopped = super().report(number, epoch, metrics)
        return stopped or self.spent > self.budget

    def finish(self, number: int, status: str, stop_reason: str | None = None) -> None:
        super().finish(number, status, stop_reason)
        row = self.store.trials[number]
        if row["status"] == "COMPLETE" and self.spent <= self.budget:
            self.rows.append(row)


def measure() -> dict[str, float]:
    """`search_spaces/super_model.py` on a third of digits' training images, 9 epochs a trial.

    That is 63 steps, in which many a network learns nothing: on all images nearly every one is
    right, and there is nothing to find. A front's hypervolume is over three gains: accuracy above
    chance, and the logarithms of the bytes and of the milliseconds of the plain ResNet-20 in fp32
    over the trial's. Random search has 29 full trials; the search, TPE with early stopping, has as
    many epochs, and its trials that were complete by then count. `headroom` is what all trials of
    a round together reach over random search: no ratio of that round can be found to be larger.
    """
    overrides = Overrides(epochs=EPOCHS, data="digits", subset=SUBSET)
    found: dict[str, list[float]] = {"searched": [], "random": [], "both": []}
    trials: dict[str, list[int]] = {"searched": [], "random": []}
    with tempfile.TemporaryDirectory() as scratch, session():
        plain = _plain(overrides)
        for number in range(ROUNDS):
            of = replace(overrides, seed=number)
            space = load(SPACE, of)
            rows: list[dict[str, Any]] = []
            for side in trials:
                sweep = _sweep(Path(scratch) / f"{side}{number}", space, of, side)
                rows += sweep.rows
                found[side].append(volume(sweep.rows, plain))
                trials[side].append(len(sweep.store.trials))
                said = f"{side} {number}: hypervolume {found[side][-1]:.3f}, "
                said += f"{len(sweep.rows)} of {trials[side][-1]} trials complete"
                print(said, file=sys.stderr)
            found["both"].append(volume(rows, plain))
    ratios = _ratios(found["searched"], found["random"])
    return {
        "ratio": median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "headroom": median(_ratios(found["both"], found["random"])),
        "hypervolume": median(found["searched"]),
        "random_hypervolume": median(found["random"]),
        "trials": median(trials["searched"]),
        "random_trials": median(trials["random"]),
        "rounds": ROUNDS,
    }


def volume(rows: list[dict[str, Any]], plain: dict[str, Any]) -> float:
    """The hypervolume of what some trials gain, from what the plain network has and from chance."""
    losses = [
        [
            CHANCE - row["accuracy"],
            math.log(row["model_bytes"] / plain["model_bytes"]),
            math.log(row["latency_ms"] / plain["latency_ms"]),
        ]
        for row in rows
    ]
    return hypervolume(losses, [0.0] * 3)


def _ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [our / their if their else math.inf for our, their in zip(ours, theirs, strict=True)]


def _plain(overrides: Overrides) -> dict[str, Any]:
    """Bytes and milliseconds of the plain network, which an epoch tells."""
    *_, last = super_model.train(replace(overrides, epochs=1).apply(super_model.base))
    return last.metrics


def _sweep(folder: Path, space: Space, overrides: Overrides, side: str) -> Budgeted:
    searched = side == "searched"
    if not searched:
        space = replace(space, enqueue=())  # what the search begins with is what others found
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
