"""Speed: the shortest training time to a stated accuracy, for ResNet-20 and ResNet-18.

    python -m raybench.train --family speed --data cifar10
    python -m raybench.bench speed

`plain` is the usual recipe at this length, with the best learning rate on a third of CIFAR-10: 0.1
and 0.8 gave 70.5 and 69.9 % (one seed), 0.2 and 0.4 gave 71.7 and 73.0 (median of three). `base` is
the speed recipe: fewer epochs, decayed to their end; Muon for the hidden filters; smaller images at
first; averaged weights; smoothed labels.
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
    recipe=Recipe(epochs=8, batch=128, lr=0.4, weight_decay=5e-4, warmup=0.1),
)

base = replace(
    plain,
    recipe=replace(
        plain.recipe,
        epochs=5,
        batch=64,
        lr=0.2,
        schedule="linear",
        warmup=0.2,
        label_smoothing=0.1,
        crop=2,
    ),
    progressive=Progressive(first=0.5, until=0.8),
    muon=Muon(lr=0.1),
    ema=Ema(decay=0.95),
)

objectives = {"accuracy": "max", "train_s": "min"}
