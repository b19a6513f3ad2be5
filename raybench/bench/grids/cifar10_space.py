"""The grid of CIFAR-10 as a space: 180 configurations of a small network."""

from raybench.bench.grids.space import cifar10

objectives = {"accuracy": "max", "model_bytes": "min"}


def space(trial):  # type: ignore[no-untyped-def]
    return cifar10(trial)
