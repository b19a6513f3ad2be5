"""Parallel strategies: what each costs in memory and gives in samples a second.

Reference: a student project fine-tuned a pretrained ViT on Beans through ColossalAI's plugins, on
one GPU, where ZeRO shards nothing, and whose packages pin a torch of 2024. Here the strategies are
torch's own parts, for any number of workers, and each trains the same model.
"""

from __future__ import annotations

import pandas as pd

from raybench.experiment import Experiment, Parallel, Recipe
from raybench.parallel import memory

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
"""Two workers of 8 images each, as the reference's smaller batch. Weights are fresh ones;
`--start-from timm:hub` downloads pretrained ones, `timm:FILE` has them in a file."""

objectives = {"samples_per_s": "max", "memory_bytes": "min"}
KINDS = (*memory.HELD, "activations_bytes")


REFERENCE = {  # plugin, samples a worker -> samples a second, maximum memory in GB
    ("torch_ddp", 8): (43.7168, 1.80),
    ("torch_ddp_fp16", 8): (60.1283, 1.91),
    ("low_level_zero", 8): (47.1534, 1.65),
    ("gemini", 8): (28.0425, 0.66317),
    ("torch_ddp", 32): (66.7630, 2.34),
    ("torch_ddp_fp16", 32): (153.6898, 2.25),
    ("low_level_zero", 32): (143.5798, 1.66),
    ("gemini", 32): (110.6582, 0.66317),
}
REFERENCE_ACCURACY = "85.94 / 97.66 / 98.44"  # by epoch; of which plugin is not told
PLUGINS = {"zero1": "low_level_zero", "zero2": "low_level_zero", "zero3_offload": "gemini"}


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Plugin by batch, as the reference project has it, and its figures beside ours.

    Throughput is the median over the trials, memory the largest; accuracies by epoch are means on
    the validation split. `threshold` has no meaning here. A plugin's precision is the one that was
    used, so that the reference's fp16 stands beside fp16 and bf16 alike.
    """
    done = trials[trials["status"] == "COMPLETE"].copy()
    if done.empty:
        return pd.DataFrame()
    done["workers"] = done["parallel.workers"].astype(int)
    done["samples"] = done["recipe.batch"].astype(int) // done["workers"]
    ways = ["model", "parallel.strategy", "precision_used", "parallel.checkpointing"]
    rows = []
    for key, found in done.groupby([*ways, "samples", "workers"], dropna=False):
        model, strategy, precision, checkpointing, samples, workers = key
        curve = epochs[epochs["number"].isin(found["number"])]
        by_epoch = 100 * curve.groupby("epoch")["accuracy"].mean().astype(float)
        counted, expected = _sum(found, ""), _sum(found, "theory_")
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
                "trials": len(found),
                "samples/s": _short(found["samples_per_s"].median()),
                "maximum memory GB": _short(found["peak_memory_bytes"].max() / 1e9),
                "states MB": _short(counted / 1e6),
                "in theory MB": _short(expected / 1e6),
                "activations MB": _short(found["activations_bytes"].max() / 1e6),
                "sent MB a step": _short(found["sent_bytes_per_step"].median() / 1e6),
                "waiting %": _short(100 * _share(found, "waiting_s")),
                "communication %": _short(100 * _share(found, "communication_s")),
                "accuracy by epoch": " / ".join(f"{value:.2f}" for value in by_epoch),
                "reference: plugin": plugin if per_s else None,
                "reference: samples/s": per_s,
                "reference: memory GB": most,
                "reference: accuracy": REFERENCE_ACCURACY if per_s else None,
            }
        )
    return pd.DataFrame(rows)


def _sum(found: pd.DataFrame, prefix: str) -> float:
    """All states of a worker, in bytes."""
    return sum(float(found[prefix + name].max()) for name in memory.HELD)


def _share(found: pd.DataFrame, part: str) -> float:
    """Of a probed step's time."""
    parts = ("compute_s", "communication_s", "waiting_s")
    whole = sum(found[name].astype(float) for name in parts)
    return float((found[part].astype(float) / whole).median())


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")
