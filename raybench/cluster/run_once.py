"""One experiment on its own group of workers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raybench.cluster import trial
from raybench.cluster.files import served_alone
from raybench.cluster.trial import Job
from raybench.cluster.workers import WorkerGroup
from raybench.experiment import Experiment
from raybench.search.sweep import RETRIES


def run_once(
    experiment: Experiment,
    gpus: float,
    checkpoint: Path,
    store: Path | None,
    *,
    every_epoch: bool,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Epoch number and metrics of one experiment on its own worker group.

    After the loss of a worker or a node another group resumes from the checkpoint.

    Raises:
        RuntimeError: the training failed, or its workers were lost repeatedly.
    """
    with served_alone(checkpoint, store) as home:
        job = Job(
            experiment=experiment.to_json(),
            checkpoint=str(checkpoint.absolute()),
            model=str(store.absolute()) if store else None,
            threads=1,
            every_epoch=every_epoch,
            home=home,
        )
        for tried in range(RETRIES + 1):
            for report in _reports(job, experiment.parallel.workers, gpus):
                if "lost" in report and tried < RETRIES:
                    print(f"raybench.train: {report['lost']}; it resumes", file=sys.stderr)
                    break
                if "failed" in report:
                    raise trial.raised(report)
                yield report["epoch"], report["metrics"]
                if report["last"]:
                    return


def _reports(job: Job, workers: int, gpus: float) -> Iterator[dict[str, Any]]:
    """The reports of a new group of workers, endlessly."""
    try:
        group = WorkerGroup(workers, gpus)
    except Exception as error:
        yield json.loads(trial.failure(error)["report"])
        return
    try:
        group.start(job)
        while True:
            yield json.loads(group.next_report()["report"])
    finally:
        group.close()
