"""How long does a sweep take if its trials take no time?"""

from raybench.experiment import Experiment, Recipe

objectives = {"accuracy": "max"}


def space(trial):  # type: ignore[no-untyped-def]
    return Experiment(
        family="raybench.bench.trivial",
        model=trial.suggest_categorical("model", ["resnet20", "resnet44"]),
        recipe=Recipe(
            epochs=1,
            lr=trial.suggest_float("lr", 0.001, 1.0, log=True),
            momentum=trial.suggest_float("momentum", 0.5, 0.99),
            batch=trial.suggest_int("batch", 1, 64),
        ),
    )
