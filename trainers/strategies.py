"""Parallel strategies: the memory and the samples per second of each.

Reference: a student project fine-tuned a pretrained ViT on Beans through ColossalAI's plugins, on
one GPU, where ZeRO shards nothing; those packages pin a torch version of 2024. Here the strategies
use torch's own parts, work with any number of workers, and all train the same model.
"""

from __future__ import annotations

from raybench.experiment import Experiment, Parallel, Recipe
from raybench.reports.tables.strategies import table as table  # of the report

base = Experiment(
    family="strategies",
    model="vit_base_patch16_224",
    data="beans",
    image_size=224,
    recipe=Recipe(
        epochs=3, batch=16, optimizer="adamw", lr=1e-4, weight_decay=0.05, crop=4, warmup=0.1
    ),
    parallel=Parallel(workers=2),
)
"""Two workers of 8 images each, the reference's smaller batch. Weights are fresh;
`--start-from timm:hub` downloads pretrained ones, `timm:FILE` has them in a file."""

objectives = {"samples_per_s": "max", "memory_bytes": "min"}
