"""The switch_vit family's table: a ViT with different numbers of experts, and the reference's."""

from __future__ import annotations

import pandas as pd

from raybench.reports.varied import completed, plain, varied

REFERENCE = {  # experts -> parameters, highest accuracy (epoch), epoch above 75 %, s per epoch
    0: (12_798_490, "81.36 (345)", 31, 11.8, 4.6),
    32: (238_732_426, "79.04 (321)", 33, 68.86, 4.98),
    64: (464_669_962, "78.8 (328)", 49, 130.52, 5.18),
}
REFERENCE_COLUMNS = (
    "parameters",
    "highest, % (epoch)",
    "epoch > 75 %",
    "training s",
    "inference s",
)


SHOWN = ("model", "switch.experts")
"""Inputs that the table shows. If other inputs vary, it has a row for each of their values."""


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per model and number of experts, with the reference project's figures.

    The highest accuracy and the first epoch above `threshold` are those of the best seed, on the
    validation split. The test accuracy is a mean over the trials, each scored once at its end.
    """
    done = completed(trials)
    if done.empty:
        return pd.DataFrame()
    done["experts"] = done["switch.experts"].fillna(0).astype(int)
    above = f"epoch > {100 * threshold:g} %"
    extra = varied(done, SHOWN)
    rows = []
    for (model, experts, *more), group in done.groupby(["model", "experts", *extra], dropna=False):
        curve = epochs[epochs["number"].isin(group["number"])]
        best = curve.loc[curve["accuracy"].astype(float).idxmax()]
        passed = curve[curve["accuracy"].astype(float) > threshold]["epoch"]
        test = 100 * group["test_accuracy"].astype(float)
        rows.append(
            {
                "model": f"switch-{model}" if experts else model,
                "experts": experts or None,
                **plain(more, extra),
                "trials": len(group),
                "parameters": int(group["parameters"].max()),
                "highest, % (epoch)": f"{100 * best['accuracy']:.2f} ({best['epoch']})",
                above: int(passed.min()) if len(passed) else None,
                "test accuracy, %": round(test.mean(), 2),
                "±": round(test.std(ddof=1), 2) if len(test) > 1 else None,
                "training s": round(float(group["s_per_epoch"].median()), 2),
                "inference s": round(float(group["inference_s"].median()), 2),
                "dropped %": _worst(100 * group["dropped_share"]),
                "dead": _worst(group["dead_experts"]),
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
    """The largest value of a column; None if it is empty."""
    return round(float(values.max()), 2) if values.notna().any() else None
