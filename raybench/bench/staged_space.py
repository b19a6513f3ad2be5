"""Does a pipeline recover when its stages are killed?"""

from dataclasses import replace

from raybench.experiment import Pipeline
from trainers.pipeline import base

objectives = {"accuracy": "max"}


def space(trial):  # type: ignore[no-untyped-def]
    recipe = replace(base.recipe, epochs=4, batch=32, crop=2, precision="fp32")
    return replace(
        base,
        model="resnet20",
        image_size=16,
        recipe=replace(recipe, lr=trial.suggest_float("lr", 0.01, 0.3, log=True)),
        pipeline=Pipeline(stages=2, chunks=4, cuts="4", transport="shm"),
    )
