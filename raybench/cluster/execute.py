"""Running a sweep's trials with Ray Tune."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection
from functools import partial

from ray import tune
from threadpoolctl import threadpool_limits

from raybench.cluster import fit
from raybench.cluster.demand import Demand
from raybench.cluster.files import served
from raybench.cluster.losses import every_loss_an_actors
from raybench.cluster.scheduler import Heartbeat, SweepScheduler
from raybench.cluster.searcher import SweepSearcher
from raybench.cluster.session import room_for
from raybench.cluster.trial import TrialActor
from raybench.cluster.tune_loop import never_blocking
from raybench.cluster.watchdog import Watchdog
from raybench.cluster.workers import WorkersActor
from raybench.search.progress import Progress, left
from raybench.search.sweep import Sweep

FLUSH_S = 20.0  # deadline to copy the rest to the results' address after Ray has died


def execute(
    sweep: Sweep,
    progress: Progress,
    *,
    workers: int = 1,
    stages: int = 1,
    transports: Collection[str] = (),
    gpus: float | None = None,
    max_concurrent: int | None = None,
    wait_s: float | None = None,
    silent_s: float | None = None,
    resized: Callable[[int], None] = lambda slots: None,
) -> None:
    """Runs trials until the sweep has no more; an interrupt ends it after the current events.

    Args:
        workers: the largest number of workers of a trial.
        stages: the largest number of stages of a trial; every slot reserves a CPU for each one.
        transports: transports by which stages exchange activations.
        gpus: GPUs of each worker or stage; None means 1 where the cluster has GPUs, else 0.
        max_concurrent: most concurrent trials; None for as many as fit into the cluster.
        wait_s: how long to wait for room when no trial has any; None for the cluster's default.
        silent_s: time without a report of any trial after which Ray counts as dead.
        resized: called with the number of slots whenever it changes.

    Raises:
        ValueError: no trial fits into the cluster.
        OSError: the results could no longer be written.
        RuntimeError: Ray ended the run, or no trial has room any more.
    """
    together = "shm" in transports
    room, demand = room_for(
        workers=workers,
        stages=stages,
        together=together,
        whole_gpus="nccl" in transports,
        gpus=gpus,
        max_concurrent=max_concurrent,
        wait_s=wait_s,
    )
    gpus = room.needs.gpus
    if idle := fit.idle_nodes(room.nodes, room.needs):
        progress.say(
            f"{len(idle)} of {len(room.nodes)} nodes run no trial: a trial needs {room.needs}, and "
            "they have too few GPUs; --gpus 0 uses the CPUs of all nodes instead"
        )
    searcher = SweepSearcher(sweep, room, threads=1, say=progress.say)
    heartbeat = Heartbeat(searcher, progress, demand, resized)
    if stages > 1:
        # The trial's actor calls the stages and evaluates between their epochs; it reserves no
        # CPU. The stages run in its placement group, which ends with the slot.
        bundle = {"CPU": 1.0, "GPU": gpus} if gpus else {"CPU": 1.0}
        trainable = tune.with_resources(
            TrialActor,
            tune.PlacementGroupFactory(
                [{}] + [bundle] * stages, strategy="STRICT_PACK" if together else "PACK"
            ),
        )
    elif workers == 1:
        trainable = tune.with_resources(TrialActor, {"CPU": 1, "GPU": gpus})
    else:
        # The slot's worker group reserves the CPUs for the whole sweep. Tune requires that the
        # slot itself reserves something: one byte of memory does not reduce its workers' share.
        trainable = tune.with_resources(
            tune.with_parameters(WorkersActor, gpus=gpus), {"CPU": 0, "memory": 1}
        )
    with tempfile.TemporaryDirectory(prefix="raybench-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's deprecation warnings
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=SweepScheduler(searcher),
                num_samples=-1,  # the searcher decides when the sweep ends
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=scratch,  # Tune's files are deleted
                verbose=0,
                callbacks=[heartbeat],
                stop=heartbeat,
                # Epoch.save writes checkpoints every 15 s; Tune would add one at the end.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        give_up = partial(_give_up, sweep, progress, demand, scratch)
        with (
            served(sweep.folder, sweep.folder / ".state" / "seen") as searcher.home,
            demand,
            Watchdog(give_up, silent_s) as watchdog,
        ):
            heartbeat.heard = watchdog.heard
            # With more threads the search's small matrices slow the trials down: 48 ms per trial
            # instead of 22.
            with every_loss_an_actors(), never_blocking(), threadpool_limits(limits=1):
                tuner.fit()
    if searcher.failure is not None:
        raise searcher.failure


def _give_up(sweep: Sweep, progress: Progress, demand: Demand, scratch: str, what: str) -> None:
    """Ends this process from the watchdog's thread, because the main thread waits for Ray."""
    with contextlib.suppress(Exception):
        sweep.store.snapshot()
        sweep.store.flush(FLUSH_S)
    with contextlib.suppress(Exception):
        progress.__exit__()
    demand.withdraw()
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"raybench.tune: {what}; {left(sweep)}", file=sys.stderr, flush=True)
    os._exit(130)
