"""One experiment on as many workers as the cluster has, while nodes join and leave.

    workers   4 4 4 ✗ │ 3 3 3 3 │ 4 4 …     ✗ one died during an epoch
    epochs    1 2 3   │ 4 5 6 7 │ 8 9 …     each starts from the checkpoint of the previous one

Every epoch is saved. A checkpoint of any strategy can be loaded by any number of workers, so the
loss of a worker costs at most one epoch. The global batch and the learning rate stay the same; each
worker's share of the batch changes. Each change needs a new TorchTrainer, which takes 13 to 25 s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from raybench.cluster import fit, live_nodes
from raybench.cluster.files import served_alone
from raybench.cluster.fit import Needs
from raybench.cluster.trial import Job, LostError, raised
from raybench.cluster.workers import DYING_S, WorkerGroup
from raybench.experiment import Experiment, elastic_counts

TRIES = 3  # consecutive groups that may die without finishing an epoch
AGAIN_S = 120.0  # deadline to replace lost workers if too few are left
OWN_FAILURES = ("diverged", "out_of_memory", "ValueError")


def run_elastic(
    experiment: Experiment,
    least: int,
    most: int,
    gpus: float,
    checkpoint: Path,
    store: Path | None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Epoch number and metrics of one experiment, on `least` to `most` workers.

    Raises:
        RuntimeError: the training failed, workers died repeatedly, or too few are left.
    """
    with served_alone(checkpoint, store) as home:
        job = Job(
            experiment=experiment.to_json(),
            checkpoint=str(checkpoint.absolute()),
            model=str(store.absolute()) if store else None,
            threads=1,
            every_epoch=True,
            home=home,
        )
        yield from _groups(experiment, job, elastic_counts(experiment, least, most), gpus)


def _groups(
    experiment: Experiment, job: Job, counts: list[int], gpus: float
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The epochs of successive groups."""
    deaths = 0
    while True:
        workers = _wait_for_workers(counts, gpus)
        parallel = replace(experiment.parallel, workers=workers)
        try:
            group = WorkerGroup(workers, gpus)
        except LostError:
            deaths += 1
            if deaths == TRIES:
                raise
            continue
        try:
            group.start(replace(job, experiment=replace(experiment, parallel=parallel).to_json()))
            while (epoch := _heard(group)) is not None:
                deaths = 0
                yield epoch["epoch"], epoch["metrics"]
                if epoch["last"]:
                    return
                if _fitting(counts, gpus) > workers:
                    break
            else:
                deaths += 1
        finally:
            group.close()
        if deaths == TRIES:
            raise RuntimeError(f"workers died {TRIES} times without finishing an epoch")


def _heard(group: WorkerGroup) -> dict[str, Any] | None:
    """The next epoch; None if a worker died."""
    report = group.hear()
    if report is None:
        return None
    content: dict[str, Any] = json.loads(report["report"])
    if "failed" not in content:
        return content
    # A worker that lost its peer during a step fails as well, and its group ends soon.
    if not content["failed"].startswith(OWN_FAILURES) and group.ended(DYING_S):
        return None
    raise raised(content)


def _fitting(counts: list[int], gpus: float) -> int:
    """The largest of the counts that fits into the cluster now; 0 for none."""
    fits = fit.slots(live_nodes.live_nodes(), Needs(gpus=gpus))
    return max((count for count in counts if count <= fits), default=0)


def _wait_for_workers(counts: list[int], gpus: float) -> int:
    end = time.monotonic() + AGAIN_S
    while not (fits := _fitting(counts, gpus)):
        if time.monotonic() > end:
            raise RuntimeError(
                f"the cluster has had room for fewer than {min(counts)} workers for {AGAIN_S:g} s; "
                "the checkpoint is saved, so the same command resumes"
            )
        time.sleep(1.0)
    return fits
