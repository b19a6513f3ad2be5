"""One experiment on its own group of workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raybench.cluster import trial
from raybench.cluster.trial import Job
from raybench.cluster.workers import WorkerGroup
from raybench.experiment import Experiment


def run_once(
    experiment: Experiment,
    gpus: float,
    checkpoint: Path,
    store: Path | None,
    *,
    every_epoch: bool,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Epoch number and metrics of one experiment on its own worker group.

    Raises:
        RuntimeError: the training failed; the message is the trial's `stop_reason`.
    """
    job = Job(
        experiment=experiment.to_json(),
        checkpoint=str(checkpoint.absolute()),
        model=str(store.absolute()) if store else None,
        threads=1,
        every_epoch=every_epoch,
    )
    group = WorkerGroup(experiment.parallel.workers, gpus)
    try:
        group.start(job)
        last = False
        while not last:
            report = json.loads(group.next_report()["report"])
            if "failed" in report:
                raise trial.raised(report)
            yield report["epoch"], report["metrics"]
            last = report["last"]
    finally:
        group.close()
