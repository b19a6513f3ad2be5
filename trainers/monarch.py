"""Monarch: ViTs and Mixers whose linear layers are products of block-diagonal matrices.

Reference: a student project trained ViT-S/16, ViT-B/16 and an MLP-Mixer, dense and with Monarch
matrices, on CIFAR-10 on V100s, and measured a speed-up only for ViT-S.
"""

from __future__ import annotations

from raybench.experiment import Experiment, Recipe
from raybench.reports.tables.monarch import table as table  # of the report

base = Experiment(
    family="monarch",
    model="vit_small_patch16_224",
    recipe=Recipe(epochs=8, batch=64, optimizer="adamw", lr=5e-4, weight_decay=0.05, warmup=0.15),
)
"""Dense ViT-S; patches of 4 at 32 pixels, of 16 at 224. `monarch=Monarch()` structures it."""

objectives = {"accuracy": "max", "s_per_epoch": "min"}
