"""Switch-ViT: a ViT against the same ViT with a mixture of experts for its feed-forwards.

Reference: a student project trained both on CIFAR-10 (patch 4, `d_model` 300, batch 256, 350
epochs, 4 GPUs) with one pass over the experts after another: 64 experts took 11 times as long.
"""

from __future__ import annotations

import pandas as pd

from raybench.experiment import Experiment, Recipe

base = Experiment(
    family="switch_vit",
    model="vit300",
    recipe=Recipe(epochs=8, batch=64, optimizer="adamw", lr=5e-4, weight_decay=0.05, warmup=0.15),
)
"""The dense ViT, patch 4, 12 blocks, 12.8 M parameters; `switch=Switch()` adds the experts."""

objectives = {"accuracy": "max", "s_per_epoch": "min"}


REFERENCE = {  # experts -> parameters, highest accuracy (epoch), first above 75 %, seconds an epoch
    0: (12_798_490, "81.36 (345)", 31, 11.8, 4.6),
    32: (238_732_426, "79.04 (321)", 33, 68.86, 4.98),
    64: (464_669_962, "78.8 (328)", 49, 130.52, 5.18),
}
REFERENCE_COLUMNS = ("parameters", "highest (epoch)", "epoch > 75 %", "training s", "inference s")


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Model by experts, as the reference project has it, and its figures beside ours.

    The highest accuracy is the best seed's on the validation split, as is the first epoch above
    `threshold`; the test accuracy is a mean over the trials, scored once at their ends.
    """
    done = trials[trials["status"] == "COMPLETE"].copy()
    if done.empty:
        return pd.DataFrame()
    done["experts"] = done["switch.experts"].fillna(0).astype(int)
    above = f"epoch > {100 * threshold:g} %"
    rows = []
    for (model, experts), found in done.groupby(["model", "experts"]):
        curve = epochs[epochs["number"].isin(found["number"])]
        best = curve.loc[curve["accuracy"].astype(float).idxmax()]
        passed = curve[curve["accuracy"].astype(float) > threshold]["epoch"]
        test = 100 * found["test_accuracy"].astype(float)
        rows.append(
            {
                "model": f"switch-{model}" if experts else model,
                "experts": experts or None,
                "trials": len(found),
                "parameters": int(found["parameters"].max()),
                "highest (epoch)": f"{100 * best['accuracy']:.2f} ({best['epoch']})",
                above: int(passed.min()) if len(passed) else None,
                "test accuracy": round(test.mean(), 2),
                "±": round(test.std(ddof=1), 2) if len(test) > 1 else None,
                "training s": round(float(found["s_per_epoch"].median()), 2),
                "inference s": round(float(found["inference_s"].median()), 2),
                "dropped %": _worst(100 * found["dropped_share"]),
                "dead": _worst(found["dead_experts"]),
            }
            | {
                f"reference: {name}": value
                for name, value in zip(
                    REFERENCE_COLUMNS, REFERENCE.get(experts, [None] * 5), strict=True
                )
            }
        )
    whole = ("experts", above, "reference: parameters", f"reference: {REFERENCE_COLUMNS[2]}")
    return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


def _worst(values: pd.Series) -> float | None:
    """The largest of a column, None where it is empty."""
    return round(float(values.max()), 2) if values.notna().any() else None
