"""Speed: the shortest training time to a stated accuracy, for ResNet-20 and ResNet-18.

    python -m raybench.train --family speed --data cifar10
    python -m raybench.bench speed

`plain` is the usual recipe at this length. `base` is the speed recipe: fewer epochs with
linear decay; Muon for the hidden filters; smaller images at first; averaged weights; smoothed
labels.
Its parts are techniques, so `raybench.compare` can judge each of them. Sources: cifar10-airbench
(Jordan 2024), hlb-CIFAR10, EfficientNetV2.
"""

from __future__ import annotations

from dataclasses import replace

from raybench.experiment import Experiment, Recipe
from raybench.reports.tables.pruning import table as table  # of the report
from raybench.techniques.ema import Ema
from raybench.techniques.muon import Muon
from raybench.techniques.progressive import Progressive

plain = Experiment(
    family="speed",
    model="resnet20",
    recipe=Recipe(epochs=8, batch=128, lr=0.2, weight_decay=5e-4, warmup=0.1),
)

base = replace(
    plain,
    recipe=replace(
        plain.recipe, epochs=5, schedule="linear", warmup=0.2, label_smoothing=0.1, crop=2
    ),
    progressive=Progressive(first=0.5, until=0.8),
    muon=Muon(lr=0.1),
    ema=Ema(decay=0.95),
)

objectives = {"accuracy": "max", "train_s": "min"}
