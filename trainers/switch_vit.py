"""Switch-ViT: a ViT against the same ViT with a mixture of experts in place of its feed-forwards.

Reference: a student project trained both on CIFAR-10 (patch 4, `d_model` 300, batch 256, 350
epochs, 4 GPUs) running the experts one after another: 64 experts took 11 times as long.
"""

from __future__ import annotations

from raybench.experiment import Experiment, Recipe
from raybench.reports.tables.switch_vit import table as table  # of the report

base = Experiment(
    family="switch_vit",
    model="vit300",
    recipe=Recipe(epochs=8, batch=64, optimizer="adamw", lr=5e-4, weight_decay=0.05, warmup=0.15),
)
"""The dense ViT, patch 4, 12 blocks, 12.8 M parameters; `switch=Switch()` adds the experts."""

objectives = {"accuracy": "max", "s_per_epoch": "min"}
