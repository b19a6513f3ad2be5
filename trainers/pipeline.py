"""Pipeline: a model in stages on Ray actors; each batch is sent through them in chunks.

Reference: a student project trained MobileNetV2, ResNet-18 and VGG-11 on CIFAR-10 in 1 to 8 chunks
(batch 512, lr 0.2, 100 epochs). With 4 bits between the stages and lr 0.4 it "got nan": a constant
tensor has no range to divide by.
"""

from __future__ import annotations

from raybench.experiment import Experiment, Pipeline, Recipe
from raybench.reports.tables.pipeline import table as table  # of the report

base = Experiment(
    family="pipeline",
    model="resnet18",
    recipe=Recipe(epochs=10, batch=512, lr=0.2, weight_decay=1e-4, warmup=0.2),
    pipeline=Pipeline(stages=2, chunks=4),
)
"""The reference's recipe: SGD with momentum, cosine after a warm-up of a fifth of the epochs."""

objectives = {"accuracy": "max", "s_per_batch": "min"}
