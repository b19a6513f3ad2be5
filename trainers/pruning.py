"""Pruning: ResNet-20 and ResNet-44, dense against sparse.

Reference: a student project pruned both networks on CIFAR-10 by the rules of TensorFlow Model
Optimization and found 60 % to be the highest sparsity that keeps the validation accuracy.
"""

from __future__ import annotations

from raybench.experiment import Experiment, Recipe
from raybench.reports.tables.pruning import table as table  # of the report
from raybench.techniques.prune import Prune

base = Experiment(
    family="pruning",
    model="resnet20",
    recipe=Recipe(epochs=8, batch=64, lr=0.1, weight_decay=5e-4, warmup=0.2),
)

one_shot = Prune(schedule="constant", begin=1.0)
"""The baseline without retraining: dense training, then one cut after the last step."""

objectives = {"accuracy": "max", "model_bytes": "min"}
