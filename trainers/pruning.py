"""Pruning: ResNet-20 and ResNet-44, dense against sparse.

Reference: a student project pruned both networks on CIFAR-10 by the rules of TensorFlow Model
Optimization and found 60 % to be the highest sparsity that keeps the validation accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from raybench import data
from raybench.experiment import Experiment, Recipe
from raybench.loop import Epoch, fit
from raybench.techniques.prune import Prune

base = Experiment(
    family="pruning",
    model="resnet20",
    recipe=Recipe(epochs=8, batch=64, lr=0.1, weight_decay=5e-4, warmup=0.2),
)

one_shot = Prune(schedule="constant", begin=1.0)
"""The baseline without retraining: dense training, then one cut after the last step."""

objectives = {"accuracy": "max", "model_bytes": "min"}

columns: dict[str, type] = {
    "sparsity": float,  # zeros among the weights of convolutions and linear layers, of the file
}


def train(
    experiment: Experiment, *, resume: Path | None = None, store: Path | None = None
) -> Iterator[Epoch]:
    """One run; `sparsity` is 0 for a dense one."""
    for epoch in fit(experiment, data.load(experiment), resume=resume, store=store):
        yield replace(epoch, metrics={"sparsity": 0.0} | epoch.metrics)


REFERENCE = {  # accuracy against dense, said in words in the reference project, which has no table
    0.6: "kept",
    0.7: "-1 ResNet-44, -3 ResNet-20",
}


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Model by sparsity: accuracy over the seeds, against the dense twin, and the file's bytes.

    Sparsities of a random search are shown in bands of ten points. A difference compares means
    of test accuracies, in points, and is empty where the sweep has no dense twin.
    """
    done = trials[trials["status"] == "COMPLETE"].copy()
    if done.empty:
        return pd.DataFrame()
    done["asked"] = done["prune.final_sparsity"].fillna(0.0).astype(float)
    grid = done["asked"].nunique() <= 10
    done["band"] = done["asked"].round(3) if grid else (done["asked"] * 10 // 1) / 10
    rows = []
    for (model, band), found in done.groupby(["model", "band"]):
        dense = done[(done["model"] == model) & (done["asked"] == 0)]
        accuracy = 100 * found["test_accuracy"].astype(float)
        against = 100 * dense["test_accuracy"].astype(float).mean()
        percent = f"{100 * band:.4g} %" if grid else f"{100 * band:.0f}–{100 * band + 10:.0f} %"
        rows.append(
            {
                "model": model,
                "sparsity": "dense" if band == 0 and grid else percent,
                "trials": len(found),
                "test accuracy": round(accuracy.mean(), 2),
                "±": round(accuracy.std(ddof=1), 2) if len(found) > 1 else None,
                "best": round(accuracy.max(), 2),
                "to dense": round(accuracy.mean() - against, 2) if len(dense) else None,
                "file bytes": int(found["model_bytes"].median()),
                "smaller": round(
                    float(dense["model_bytes"].median() / found["model_bytes"].median()), 2
                )
                if len(dense)
                else None,
                "s/epoch": round(float(found["s_per_epoch"].median()), 1),
                "reference": REFERENCE.get(band, "") if grid else "",
            }
        )
    return pd.DataFrame(rows)
