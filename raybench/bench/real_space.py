"""How soon does a real training run take its first step?"""

from dataclasses import replace

from trainers.pruning import base

objectives = {"accuracy": "max"}


def space(trial):  # type: ignore[no-untyped-def]
    recipe = replace(
        base.recipe, epochs=1, batch=32, lr=trial.suggest_float("lr", 0.001, 0.1, log=True)
    )
    return replace(base, subset=0.06, recipe=recipe)
