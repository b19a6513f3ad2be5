"""The strategies family's table: memory and samples per second of each strategy."""

from __future__ import annotations

import pandas as pd

from raybench.reports.varied import completed, plain, varied

REFERENCE = {  # (plugin, samples per worker) -> samples per second, maximum memory in GB
    ("torch_ddp", 8): (43.7168, 1.80),
    ("torch_ddp_fp16", 8): (60.1283, 1.91),
    ("low_level_zero", 8): (47.1534, 1.65),
    ("gemini", 8): (28.0425, 0.66317),
    ("torch_ddp", 32): (66.7630, 2.34),
    ("torch_ddp_fp16", 32): (153.6898, 2.25),
    ("low_level_zero", 32): (143.5798, 1.66),
    ("gemini", 32): (110.6582, 0.66317),
}
REFERENCE_ACCURACY = "85.94 / 97.66 / 98.44"  # by epoch; the reference does not name the plugin
PLUGINS = {"zero1": "low_level_zero", "zero2": "low_level_zero", "zero3_offload": "gemini"}


SHOWN = (
    "model",
    *(f"parallel.{name}" for name in ("strategy", "checkpointing", "workers")),
    *(f"recipe.{name}" for name in ("batch", "precision")),
)
"""Inputs that the table shows. If other inputs vary, it has a row for each of their values."""
HELD = ("parameters_bytes", "gradients_bytes", "optimizer_bytes", "buffers_bytes")


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per plugin and batch, as in the reference project, with its figures for comparison.

    Throughput is the median over the trials, memory the maximum; accuracies by epoch are means on
    the validation split. `threshold` is ignored. The precision is the one that was used; rows in
    fp16 and in bf16 both show the reference's fp16 figures.
    """
    done = completed(trials)
    if done.empty:
        return pd.DataFrame()
    done["workers"] = done["parallel.workers"].astype(int)
    done["samples"] = done["recipe.batch"].astype(int) // done["workers"]
    ways = ["model", "parallel.strategy", "precision_used", "parallel.checkpointing"]
    extra = varied(done, SHOWN)
    rows = []
    for key, group in done.groupby([*ways, "samples", "workers", *extra], dropna=False):
        model, strategy, precision, checkpointing, samples, workers, *more = key
        curve = epochs[epochs["number"].isin(group["number"])]
        by_epoch = 100 * curve.groupby("epoch")["accuracy"].mean().astype(float)
        counted, expected = _sum(group, ""), _sum(group, "theory_")
        mixed = precision in ("float16", "bfloat16")
        ddp = "torch_ddp_fp16" if mixed else "torch_ddp"
        plugin = ddp if strategy == "ddp" else PLUGINS.get(strategy, "")
        per_s, most = REFERENCE.get((plugin, samples), (None, None))
        rows.append(
            {
                "model": model,
                "plugin": strategy + (", checkpointing" if checkpointing else ""),
                "precision": precision,
                "workers": workers,
                "batch per worker": samples,
                **plain(more, extra),
                "trials": len(group),
                "samples/s": _short(group["samples_per_s"].median()),
                "maximum memory GB": _short(group["peak_memory_bytes"].max() / 1e9),
                "states MB": _short(counted / 1e6),
                "in theory MB": _short(expected / 1e6),
                "activations MB": _short(group["activations_bytes"].max() / 1e6),
                "sent MB a step": _short(group["sent_bytes_per_step"].median() / 1e6),
                "waiting %": _short(100 * _share(group, "waiting_s")),
                "communication %": _short(100 * _share(group, "communication_s")),
                "accuracy by epoch, %": " / ".join(f"{value:.2f}" for value in by_epoch),
                "reference: plugin": plugin if per_s else None,
                "reference: samples/s": per_s,
                "reference: memory GB": most,
                "reference: accuracy, %": REFERENCE_ACCURACY if per_s else None,
            }
        )
    return pd.DataFrame(rows)


def _sum(group: pd.DataFrame, prefix: str) -> float:
    """Bytes of all states of a worker."""
    return sum(float(group[prefix + name].max()) for name in HELD)


def _share(group: pd.DataFrame, part: str) -> float:
    """A part's share of the time of a probed step."""
    parts = ("compute_s", "communication_s", "waiting_s")
    whole = sum(group[name].astype(float) for name in parts)
    return float((group[part].astype(float) / whole).median())


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")
