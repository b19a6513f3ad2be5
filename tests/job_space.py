"""The smallest sweep that trains: 129 digits of 8x8 pixels, for tests that submit it."""

from dataclasses import replace

from trainers.pruning import base

objectives = {"accuracy": "max", "model_bytes": "min"}
SMALL = replace(base.recipe, epochs=1, batch=32, crop=1, precision="fp32")


def space(trial):
    lr = trial.suggest_float("lr", 0.01, 0.3, log=True)
    return replace(base, image_size=8, subset=0.1, recipe=replace(SMALL, lr=lr))
