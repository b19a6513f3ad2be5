"""Single runs: the rows that `raybench.train` appends, in results/FAMILY-runs."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from raybench.experiment import Experiment, flatten, preset, tables
from raybench.results import core, failures, schema
from raybench.results.remote.place import opened
from raybench.results.rows import Row
from raybench.results.store import Store
from raybench.training import measure

LOCK_S = 60.0  # deadline for another run to finish writing its row


def name_of(experiment: Experiment) -> str:
    """The name of the folder of its family's runs."""
    return f"{experiment.family}-runs"


def keep(
    results: str,
    experiment: Experiment,
    data_sha256: str,
    epochs: list[Row],
    failure: Exception | None,
) -> tuple[Path, int]:
    """Appends a run as `record` does, in the folder or at the address of all results.

    Returns:
        The folder with the run's row, and its number there.

    Raises:
        ValueError, OSError: as in `record`; or the address can no longer be written. The row is
            then in this machine's folder `results`.
    """
    name = name_of(experiment)
    folder: Path | None = None
    try:
        with opened(results, name, command="train", models=False, wait_s=LOCK_S) as place:
            folder = place.folder
            number = record(folder, experiment, data_sha256, epochs, failure)
    except (ValueError, OSError) as error:
        if folder is not None:
            raise
        folder = Path("results", name)
        record(folder, experiment, data_sha256, epochs, failure)
        raise type(error)(f"{error}; the row of this run is in {folder}") from error
    return folder, number


def record(
    folder: Path,
    experiment: Experiment,
    data_sha256: str,
    epochs: list[Row],
    failure: Exception | None = None,
) -> int:
    """Appends a run to the tables of its family's runs; returns its number there.

    Args:
        epochs: the metrics of each epoch.
        failure: what ended the run before its last epoch.

    Raises:
        ValueError: another run holds the folder for a minute, or a row is not valid.
        OSError: the disk cannot be written.
    """
    about = {
        "family": experiment.family,
        "sweep": folder.name,
        "objectives": getattr(preset.load(experiment.family), "objectives", {"accuracy": "max"}),
    }
    (folder / ".state").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".state" / "lock", timeout=LOCK_S):
            store = Store(folder, *tables.schemas(about))
            for remark in store.remarks:
                print(f"raybench.train: {remark}", file=sys.stderr)
            number = max(store.trials, default=-1) + 1
            row = schema.started(folder.name, number, experiment.key(), flatten(experiment), {})
            identity = {name: row[name] for name in core.IDENTITY}
            for epoch in epochs:
                store.put_epoch({**identity, **epoch})
            provenance = {**measure.machine(), **measure.provenance()}
            outcome = {"status": "COMPLETE", "stop_reason": None, "data_sha256": data_sha256}
            if failure is not None:
                trace = "".join(traceback.format_exception(failure))
                outcome |= {
                    "status": "FAILED",
                    "stop_reason": f"{type(failure).__name__}: {failure}",
                    "failure": failures.keep(folder, number, trace),
                }
            last = epochs[-1] if epochs else {}
            threads = torch.get_num_threads()
            store.put_trial({**row, **last, **provenance, **outcome, "threads": threads})
            store.close()
    except Timeout as error:
        raise ValueError(f"another run held {folder} for {LOCK_S:g} s") from error
    return number
