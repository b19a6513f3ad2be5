"""Real training on small images, in two pipeline stages on two nodes."""

from dataclasses import replace

from raybench.experiment import Pipeline
from trainers.pipeline import base

objectives = {"accuracy": "max"}


def space(trial):  # type: ignore[no-untyped-def]
    recipe = replace(base.recipe, epochs=8, batch=32, crop=1, precision="fp32")
    return replace(
        base,
        model="resnet20",
        data="digits",
        image_size=8,
        subset=0.1,
        recipe=replace(recipe, lr=trial.suggest_float("lr", 0.01, 0.3, log=True)),
        pipeline=Pipeline(stages=2, chunks=4, cuts="4", transport="gloo"),
    )
