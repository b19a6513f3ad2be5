"""The row of one run by itself, in the tables of its family's runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from raybench.experiment import Experiment, flatten, preset, tables
from raybench.results import core, failures, schema
from raybench.results.rows import Row
from raybench.results.store import Store
from raybench.training import measure

LOCK_S = 60.0  # deadline for another run to finish writing its row


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended."""

    status: str
    reason: str | None
    """The error of one that failed, in one line."""
    trace: str | None


def record(
    folder: Path, experiment: Experiment, data_sha256: str, epochs: list[Row], ended: Ended
) -> list[str]:
    """Appends the run; returns remarks about the tables.

    Raises:
        ValueError: another run held the folder for too long.
    """
    module = preset.load(experiment.family)
    about = {
        "family": experiment.family,
        "sweep": folder.name,
        "objectives": getattr(module, "objectives", {"accuracy": "max"}),
    }
    (folder / ".state").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".state" / "lock", timeout=LOCK_S):
            store = Store(folder, *tables.schemas(about))
            number = max(store.trials, default=-1) + 1
            inputs = flatten(experiment)
            row = schema.started(folder.name, number, experiment.key(), inputs, {})
            identity = {name: row[name] for name in core.IDENTITY}
            for epoch in epochs:
                store.put_epoch({**identity, **epoch})
            outcome = {
                "status": ended.status,
                "stop_reason": ended.reason,
                "data_sha256": data_sha256,
                "threads": torch.get_num_threads(),
            }
            if ended.trace is not None:
                outcome["failure"] = failures.keep(folder, number, ended.trace)
            last = epochs[-1] if epochs else {}
            provenance = {**measure.machine(), **measure.provenance()}
            store.put_trial({**row, **last, **provenance, **outcome})
            store.close()
    except Timeout as error:
        raise ValueError(f"another run held {folder} for {LOCK_S:g} s") from error
    return store.remarks
