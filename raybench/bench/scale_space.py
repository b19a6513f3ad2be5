"""Does the engine's time per trial stay the same after 5,000 trials?"""

from raybench.experiment import Experiment, Recipe

objectives = {"accuracy": "max", "model_bytes": "min"}


def space(trial):  # type: ignore[no-untyped-def]
    optimizer = trial.suggest_categorical("optimizer", ["sgd", "adamw"])
    return Experiment(
        family="raybench.bench.trivial",
        model=trial.suggest_categorical("model", ["resnet20", "resnet44"]),
        recipe=Recipe(
            epochs=9,
            optimizer=optimizer,
            momentum=trial.suggest_float("momentum", 0.5, 0.99) if optimizer == "sgd" else 0.9,
            lr=trial.suggest_float("lr", 0.001, 1.0, log=True),
            batch=trial.suggest_int("batch", 1, 64),
        ),
    )
