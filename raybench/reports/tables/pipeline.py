"""The pipeline family's table: the gain from chunks, and whether a pipeline pays on the same cores.

The reference's table has one row per model and number of chunks. This one also compares ways to
use the same cores: stages, data-parallel workers, the threads of one process. The reference
measured on GPUs and does not give their number: compare its speed-ups, not its seconds.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from raybench.reports.varied import alike, completed, plain, varied

REFERENCE = {  # (model, chunks) -> accuracy, seconds per batch of 512
    ("mobilenet_v2", 1): (92.79, 0.52),
    ("mobilenet_v2", 2): (93.14, 0.37),
    ("mobilenet_v2", 4): (93.09, 0.29),
    ("mobilenet_v2", 8): (92.94, 0.26),
    ("resnet18", 1): (92.87, 0.37),
    ("resnet18", 2): (92.43, 0.28),
    ("resnet18", 4): (92.78, 0.25),
    ("resnet18", 8): (92.92, 0.22),
    ("vgg11", 1): (89.11, 0.161),
    ("vgg11", 2): (90.03, 0.158),
    ("vgg11", 4): (88.82, 0.147),
    ("vgg11", 8): (88.50, 0.100),
}
PLAIN = {"bits": 32, "transport": "gloo", "link_mb_s": 0.0, "batch_norm": "corrected"}
"""Default values, which the table leaves out."""
SHOWN = (
    "model",
    *(f"recipe.{name}" for name in ("batch", "precision")),
    "parallel.workers",
    *(f"pipeline.{name}" for name in ("stages", "chunks", "schedule", "cuts", *PLAIN)),
)
"""Inputs that the table shows. If other inputs vary, it has a row for each of their values."""


def table(trials: pd.DataFrame, epochs: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per model, batch, precision, way to run and number of chunks; times are medians.

    `speed-up` compares with the same way at 1 chunk, as in the reference. `to others` is the time
    of the fastest way without stages on the same number of cores, divided by the row's: above 1 the
    pipeline pays. Both are empty if the sweep has nothing to compare with. Accuracies are those of
    the test split; `best` is that of the trial with the highest validation accuracy.
    """
    done = completed(trials[trials["s_per_batch"].notna()])
    if done.empty:
        return pd.DataFrame()
    done["way"] = [_way(row, row["pipeline.chunks"]) for row in done.to_dict("records")]
    done["way of 1"] = [_way(row, 1) for row in done.to_dict("records")]
    done["cores"] = [_cores(row) for row in done.to_dict("records")]
    done["staged"] = done["pipeline.stages"] > 1
    same = ["model", "recipe.batch", "precision_used", "cores"]
    # Rows without stages come first: rows with stages are compared with them.
    extra = varied(done, SHOWN)
    keys = ["staged", "way", "way of 1", "pipeline.chunks"]
    rows = []
    for key, group in done.groupby([*same, *keys, *extra], dropna=False):
        model, batch, precision, cores, staged, way, way_of_1, chunks, *more = key
        seconds = float(group["s_per_batch"].median())
        near = done[(done[same] == [model, batch, precision, cores]).all(axis=1)]
        of_1 = near[(near["way"] == way_of_1) & (near["pipeline.chunks"] == 1)]
        of_1 = alike(of_1, group.iloc[0], extra)
        whole = float(of_1["s_per_batch"].median()) if chunks > 1 and len(of_1) else None
        others = alike(near[~near["staged"]], group.iloc[0], extra)
        fastest = others.groupby(["way", "pipeline.chunks"])["s_per_batch"].median().min()
        accuracy = 100 * group["test_accuracy"].astype(float)
        best = group["accuracy"].astype(float).idxmax()
        as_sent = staged and (group["pipeline.bits"] == PLAIN["bits"]).all()
        reference = REFERENCE.get((model, chunks)) if as_sent else None
        rows.append(
            {
                "model": model,
                "batch": batch,
                "precision": precision,
                "cores": cores,
                "runs as": way,
                "chunks": chunks,
                **plain(more, extra),
                "trials": len(group),
                "test accuracy, %": round(accuracy.mean(), 2),
                "±": round(accuracy.std(ddof=1), 2) if len(group) > 1 else None,
                "best, %": round(float(accuracy[best]), 2),
                "s/batch": round(seconds, 4),
                "speed-up": round(whole / seconds, 2) if whole else None,
                "to others": round(fastest / seconds, 2) if staged and len(others) else None,
                "bubble predicted %": _median(100 * group["bubble_predicted"], 1),
                "bubble %": _median(100 * group["bubble"], 1),
                "imbalance": _median(group["imbalance"], 3),
                "cuts": " | ".join(sorted(set(group["cuts"].dropna()))) or None,
                "MB/step": _median(group["wire_bytes_per_step"] / 1e6, 3),
                "reference: accuracy, %": reference[0] if reference else None,
                "reference: s/batch": reference[1] if reference else None,
                "reference: speed-up": round(REFERENCE[model, 1][1] / reference[1], 2)
                if reference
                else None,
            }
        )
    return pd.DataFrame(rows)


def _way(row: dict[str, Any], chunks: int) -> str:
    """How a trial ran, or would have run with `chunks`: its settings that are not defaults."""
    stages, workers = int(row["pipeline.stages"]), int(row["parallel.workers"])
    parts = []
    if stages > 1:
        parts.append(f"{stages} stages")
        if chunks > 1:
            parts.append(row["pipeline.schedule"])
        if row["pipeline.bits"] != PLAIN["bits"]:
            parts.append(f"{row['pipeline.bits']} bits")
        if row["pipeline.transport"] != PLAIN["transport"]:
            parts.append(row["pipeline.transport"])
        if row["pipeline.link_mb_s"] != PLAIN["link_mb_s"]:
            parts.append(f"link of {row['pipeline.link_mb_s']:g} MB/s")
    elif workers > 1:
        parts.append(f"{workers} workers, ddp")
    else:
        threads = int(row["threads"])
        parts.append("1 thread" if threads == 1 else f"{threads} threads")
    if chunks > 1 and row["pipeline.batch_norm"] != PLAIN["batch_norm"]:
        parts.append(f"batch norm {row['pipeline.batch_norm']}")
    return ", ".join(parts)


def _cores(row: dict[str, Any]) -> int:
    """Cores used by a trial: one thread per stage or worker."""
    several = max(int(row["pipeline.stages"]), int(row["parallel.workers"]))
    return several if several > 1 else int(row["threads"])


def _median(values: pd.Series, digits: int) -> float | None:
    """The rounded median; None if the column is empty."""
    present = values.dropna().astype(float)
    return round(float(present.median()), digits) if len(present) else None
