"""The space of the grids: width, learning rate, sparsity and bits of a small network.

All parameters have few values: 180 configurations.
"""

from __future__ import annotations

from dataclasses import replace

from optuna.trial import Trial

from raybench.experiment import Experiment
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from trainers.pruning import base

objectives = {"accuracy": "max", "model_bytes": "min"}
EPOCHS = 9


def digits(trial: Trial) -> Experiment:
    """A third of the digits: 63 steps; in the first ones the accuracy stays at chance."""
    return replace(_small(trial), data="digits", subset=1 / 3)


def cifar10(trial: Trial) -> Experiment:
    """2,000 images of CIFAR-10 at 16 x 16 pixels."""
    small = _small(trial)
    recipe = replace(small.recipe, crop=2)
    return replace(small, data="cifar10", subset=0.04, image_size=16, recipe=recipe)


def _small(trial: Trial) -> Experiment:
    width = 8 * 2 ** trial.suggest_int("doublings", 0, 2)
    lr = 0.01 * 4 ** trial.suggest_int("lr_step", 0, 3)
    prune = None
    if trial.suggest_categorical("pruned", [False, True]):
        prune = Prune(final_sparsity=trial.suggest_float("sparsity", 0.5, 0.95, step=0.15))
    bits = trial.suggest_categorical("bits", [32, 4, 2])
    return replace(
        base,
        model=f"raybench.bench.grids.network:small_{width}",
        prune=prune,
        quantize=Quantize(bits=bits) if bits < 32 else None,
        recipe=replace(base.recipe, epochs=EPOCHS, lr=lr),
    )
