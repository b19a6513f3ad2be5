"""Monarch: ViTs and Mixers whose linear layers are products of block-diagonal matrices.

Reference: a student project trained ViT-S/16, ViT-B/16 and an MLP-Mixer, dense and with Monarch
matrices, on CIFAR-10 on V100s, and measured a speed-up for ViT-S alone.
"""

from __future__ import annotations

import pandas as pd

from raybench.experiment import Experiment, Recipe

base = Experiment(
    family="monarch",
    model="vit_small_patch16_224",
    recipe=Recipe(epochs=8, batch=64, optimizer="adamw", lr=5e-4, weight_decay=0.05, warmup=0.15),
)
"""Dense ViT-S; patches of 4 at 32 pixels, of 16 at 224. `monarch=Monarch()` structures it."""

objectives = {"accuracy": "max", "s_per_epoch": "min"}


REFERENCE = {  # (model, structured) -> accuracy, speed-up, parameters, FLOPs (multiply-adds)
    ("vit_small_patch16_224", False): (68.01, None, "48.8M", "9.9G"),
    ("vit_small_patch16_224", True): (78.16, 1.87, "19.6M", "3.9G"),
    ("vit_base_patch16_224", False): (78.6, None, "89.6M", "17.6G"),
    ("vit_base_patch16_224", True): (74.69, None, "33.0M", "5.91G"),
    ("mixer_b16_224", False): (78.9, None, "59.9M", "12.6G"),
    ("mixer_b16_224", True): (75.4, None, "20.9M", "5.0G"),
}


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Model by its layers: accuracy, speed-up of training, parameters and multiply-adds.

    The speed-up is the dense twin's median seconds an epoch over the row's, empty where the sweep
    has no dense twin. FLOPs are multiply-adds, as papers count them, of one image.
    """
    done = trials[trials["status"] == "COMPLETE"].copy()
    if done.empty:
        return pd.DataFrame()
    done["layers"] = [_layers(row) for row in done.to_dict("records")]
    rows = []
    for (model, layers), found in done.groupby(["model", "layers"]):
        dense = done[(done["model"] == model) & (done["layers"] == "dense")]
        accuracy = 100 * found["test_accuracy"].astype(float)
        seconds = float(found["s_per_epoch"].median())
        twin = float(dense["s_per_epoch"].median()) if len(dense) else None
        kind = None if layers.startswith("low-rank") else layers != "dense"
        known = REFERENCE.get((model, kind)) if kind is not None else None
        reference = known or (None,) * 4
        rows.append(
            {
                "model": model,
                "layers": layers,
                "trials": len(found),
                "test accuracy": round(accuracy.mean(), 2),
                "±": round(accuracy.std(ddof=1), 2) if len(found) > 1 else None,
                "to dense": round(accuracy.mean() - 100 * dense["test_accuracy"].mean(), 2) + 0.0
                if len(dense)
                else None,
                "s/epoch": round(seconds, 1),
                "speed-up": round(twin / seconds, 2) if twin else None,
                "parameters": f"{found['parameters'].median() / 1e6:.1f}M",
                "FLOPs": f"{found['flops'].median() / 2e9:.2f}G",
                "factors": found["factors"].iloc[0] or None,
                "reference: accuracy": reference[0],
                "reference: speed-up": reference[1],
                "reference: parameters": reference[2],
                "reference: FLOPs": reference[3],
            }
        )
    return pd.DataFrame(rows)


def _layers(row: dict[str, object]) -> str:
    """dense, monarch 4 both, monarch 4 both sparse_to_dense 0.8, or low-rank 4 both."""

    def said(name: str) -> bool:
        value = row[f"{name}.blocks"]
        return value is not None and value is not pd.NA and value != 0

    if said("monarch"):
        parts = ["monarch", row["monarch.blocks"], row["monarch.layers"]]
        if row["monarch.mode"] != "from_scratch":
            parts += [row["monarch.mode"], row["monarch.switch_at"]]
        return " ".join(str(part) for part in parts)
    if said("low_rank"):
        return f"low-rank {row['low_rank.blocks']} {row['low_rank.layers']}"
    return "dense"
