"""Real training on small images, for `--workers 2` over two nodes."""

from dataclasses import replace

from trainers.strategies import base

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
    )
