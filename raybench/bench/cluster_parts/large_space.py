"""Trials of three epochs with states of 350 MB."""

from raybench.experiment import Experiment, Recipe

objectives = {"accuracy": "max"}


def space(trial):  # type: ignore[no-untyped-def]
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    return Experiment(
        family="raybench.bench.cluster_parts.large",
        model="resnet20",
        recipe=Recipe(
            epochs=3,
            optimizer=optimizer,
            momentum=trial.suggest_float("momentum", 0.5, 0.99) if optimizer == "sgd" else 0.9,
            lr=trial.suggest_float("lr", 0.001, 1.0, log=True),
        ),
    )
