"""The monarch family's table: dense, Monarch and low-rank layers, beside the reference's."""

from __future__ import annotations

import pandas as pd

from raybench.reports.varied import alike, completed, plain, varied

REFERENCE = {  # (model, structured) -> accuracy, speed-up, parameters, FLOPs (multiply-adds)
    ("vit_small_patch16_224", False): (68.01, None, "48.8M", "9.9G"),
    ("vit_small_patch16_224", True): (78.16, 1.87, "19.6M", "3.9G"),
    ("vit_base_patch16_224", False): (78.6, None, "89.6M", "17.6G"),
    ("vit_base_patch16_224", True): (74.69, None, "33.0M", "5.91G"),
    ("mixer_b16_224", False): (78.9, None, "59.9M", "12.6G"),
    ("mixer_b16_224", True): (75.4, None, "20.9M", "5.0G"),
}


SHOWN = (
    "model",
    *(f"monarch.{name}" for name in ("blocks", "layers", "mode", "switch_at")),
    *(f"low_rank.{name}" for name in ("blocks", "layers")),
)
"""Inputs that the table shows. If other inputs vary, it has a row for each of their values."""


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per model and kind of layers: accuracy, training speed-up, parameters, FLOPs.

    The speed-up is the dense twin's median seconds per epoch divided by the row's; it is empty if
    the sweep has no dense twin. FLOPs are multiply-adds for one image, as papers count them.
    """
    done = completed(trials)
    if done.empty:
        return pd.DataFrame()
    done["layers"] = [_layers(row) for row in done.to_dict("records")]
    extra = varied(done, SHOWN)
    rows = []
    for (model, layers, *more), group in done.groupby(["model", "layers", *extra], dropna=False):
        dense = done[(done["model"] == model) & (done["layers"] == "dense")]
        dense = alike(dense, group.iloc[0], extra)
        accuracy = 100 * group["test_accuracy"].astype(float)
        seconds = float(group["s_per_epoch"].median())
        twin = float(dense["s_per_epoch"].median()) if len(dense) else None
        kind = None if layers.startswith("low-rank") else layers != "dense"
        published = REFERENCE.get((model, kind)) if kind is not None else None
        reference = published or (None,) * 4
        rows.append(
            {
                "model": model,
                "layers": layers,
                **plain(more, extra),
                "trials": len(group),
                "test accuracy, %": round(accuracy.mean(), 2),
                "±": round(accuracy.std(ddof=1), 2) if len(group) > 1 else None,
                "vs dense, points": round(accuracy.mean() - 100 * dense["test_accuracy"].mean(), 2)
                + 0.0
                if len(dense)
                else None,
                "s/epoch": round(seconds, 1),
                "speed-up": round(twin / seconds, 2) if twin else None,
                "parameters": f"{group['parameters'].median() / 1e6:.1f}M",
                "FLOPs": f"{group['flops'].median() / 2e9:.2f}G",
                "factors": group["factors"].fillna("").iloc[0] or None,
                "reference: accuracy, %": reference[0],
                "reference: speed-up": reference[1],
                "reference: parameters": reference[2],
                "reference: FLOPs": reference[3],
            }
        )
    return pd.DataFrame(rows)


def _layers(row: dict[str, object]) -> str:
    """dense, monarch 4 both, monarch 4 both sparse_to_dense 0.8, or low-rank 4 both."""

    def is_on(name: str) -> bool:
        value = row[f"{name}.blocks"]
        return value is not None and value is not pd.NA and value != 0

    if is_on("monarch"):
        parts = ["monarch", row["monarch.blocks"], row["monarch.layers"]]
        if row["monarch.mode"] != "from_scratch":
            parts += [row["monarch.mode"], row["monarch.switch_at"]]
        return " ".join(str(part) for part in parts)
    if is_on("low_rank"):
        return f"low-rank {row['low_rank.blocks']} {row['low_rank.layers']}"
    return "dense"
