"""Sweeps that nobody ran, for the tests of the page: an invented search with learning curves."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybench.experiment import flatten, tables
from raybench.results.rows import as_table
from raybench.techniques.prune import Prune
from raybench.techniques.quantize import Quantize
from trainers.pruning import base

OBJECTIVES = {"accuracy": "max", "model_bytes": "min"}


def written(
    folder: Path,
    *,
    trials: int = 60,
    epochs: int = 6,
    name: str = "invented",
    objectives: dict[str, str] = OBJECTIVES,
    params: dict[str, Any] | None = None,
    **more: object,
) -> Path:
    """The folder of a sweep; some trials are stopped early, some fail, one runs.

    Args:
        params: further parameters of every trial.
        more: further columns of every trial.
    """
    about = {"family": "pruning", "sweep": name, "objectives": objectives}
    of_trials, of_epochs = tables.schemas(about)
    rows, curves = [], []
    for number in range(trials):
        draw = random.Random(f"{name} {number}")
        row, reported = _trial(number, draw, epochs, last=number == trials - 1)
        row |= {"sweep": name, "trial": f"{name}-{number:04d}", **more}
        row["params"] = json.dumps({**row["params"], **(params or {})})
        rows.append(row)
        curves += [{"sweep": name, "trial": row["trial"], "number": number, **r} for r in reported]
    _write(folder / name / "trials" / "trials.parquet", as_table(rows, of_trials))
    _write(folder / name / "epochs" / "epochs-00000.parquet", as_table(curves, of_epochs))
    return folder / name


def _trial(
    number: int, draw: random.Random, epochs: int, *, last: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lr, sparsity = 10 ** draw.uniform(-2, 0), draw.uniform(0.3, 0.95)
    model, bits = draw.choice(["resnet20", "resnet44"]), draw.choice([0, 4, 8])
    params: dict[str, Any] = {"lr": lr, "sparsity": sparsity, "model": model, "quantize": bits > 0}
    if bits:
        params["bits"] = bits
    experiment = replace(
        base,
        model=model,
        recipe=replace(base.recipe, lr=lr, epochs=epochs),
        prune=Prune(final_sparsity=sparsity),
        quantize=Quantize(bits=bits) if bits else None,
    )
    best = 0.93 - 0.2 * sparsity**4 - 0.05 * abs(math.log10(lr) + 1) - draw.random() * 0.05
    best += 0.01 * (model == "resnet44") - 0.02 * (bits == 4)
    size = 1_100_000 * (1 - 0.9 * sparsity) * (bits or 32) / 32 * (1 + (model == "resnet44"))
    status = "RUNNING" if last else draw.choices(["COMPLETE", "PRUNED", "FAILED"], [7, 2, 0.2])[0]
    length = epochs if status == "COMPLETE" else max(1, epochs // 3)
    seconds = draw.uniform(2, 4) * (1 + (model == "resnet44"))
    reported = [
        {
            "epoch": epoch,
            "accuracy": best * (1 - 0.75 * math.exp(-5 * epoch / epochs)) - draw.random() * 0.01,
            "model_bytes": int(size),
            "loss": 2.3 * math.exp(-3 * epoch / epochs),
            "s_per_epoch": seconds,
            "train_s": seconds * epoch,
        }
        for epoch in range(1, length + 1)
    ]
    outcome = {"test_accuracy": reported[-1]["accuracy"] - 0.01} if status == "COMPLETE" else {}
    reasons = {"PRUNED": "behind the others", "FAILED": "diverged: the loss is nan"}
    row = {
        "number": number,
        **flatten(experiment),
        **reported[-1],
        **outcome,
        "status": status,
        "stop_reason": reasons.get(status),
        "params": params,
    }
    return row, reported


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
