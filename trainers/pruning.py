"""Pruning: ResNet-20 and ResNet-44, dense against sparse.

Reference: a student project pruned both networks on CIFAR-10 by the rules of TensorFlow Model
Optimization and found 60 % to be the highest sparsity that keeps the validation accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from raybench import data
from raybench.experiment import Experiment, Recipe
from raybench.loop import Epoch, fit
from raybench.techniques.prune import Prune

base = Experiment(
    family="pruning",
    model="resnet20",
    recipe=Recipe(epochs=10, batch=128, lr=0.2, weight_decay=5e-4, warmup=0.15),
)

one_shot = Prune(schedule="constant", begin=1.0)
"""The baseline without retraining: dense training, then one cut after the last step."""

columns: dict[str, type] = {
    "sparsity": float,  # zeros among the weights of convolutions and linear layers, of the file
}


def train(
    experiment: Experiment, *, resume: Path | None = None, store: Path | None = None
) -> Iterator[Epoch]:
    """One run; `sparsity` is 0 for a dense one."""
    for epoch in fit(experiment, data.load(experiment), resume=resume, store=store):
        yield replace(epoch, metrics={"sparsity": 0.0} | epoch.metrics)
