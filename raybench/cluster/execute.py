"""Running a sweep's trials with Ray Tune."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import warnings
from functools import partial

from ray import tune
from threadpoolctl import threadpool_limits

from raybench.cluster.files import served
from raybench.cluster.losses import every_loss_an_actors
from raybench.cluster.scheduler import Heartbeat, SweepScheduler
from raybench.cluster.searcher import SweepSearcher
from raybench.cluster.trial import TrialActor
from raybench.cluster.watchdog import Watchdog
from raybench.cluster.workers import WorkersActor
from raybench.search.progress import Progress, left
from raybench.search.sweep import Sweep

FLUSH_S = 20.0  # for what is not yet at the results' address, once Ray is gone


def execute(
    sweep: Sweep,
    progress: Progress,
    *,
    workers: int,
    gpus: float,
    concurrent: int,
    stages: int = 1,
    silent_s: float | None = None,
) -> None:
    """Runs trials until the sweep has no more; an interrupt ends it after the current events.

    Args:
        stages: the largest number of stages of a trial; every slot holds a CPU for each of them.
        silent_s: longest time without a report of any trial before Ray counts as gone.

    Raises:
        OSError: the results could no longer be written.
        RuntimeError: Ray ended the run.
    """
    searcher = SweepSearcher(sweep, threads=1, say=progress.say)
    heartbeat = Heartbeat(searcher, progress)
    if stages > 1:
        # The trial itself drives the stages and evaluates between their epochs; it holds no CPU.
        # The stages run in its placement group, which ends with the slot.
        bundle = {"CPU": 1.0, "GPU": gpus} if gpus else {"CPU": 1.0}
        trainable = tune.with_resources(
            TrialActor, tune.PlacementGroupFactory([{}] + [bundle] * stages)
        )
    elif workers == 1:
        trainable = tune.with_resources(TrialActor, {"CPU": 1, "GPU": gpus})
    else:
        # The slot's worker group holds the CPUs for the whole sweep. The slot itself must hold
        # something; one byte of memory takes nothing away from its workers.
        trainable = tune.with_resources(
            tune.with_parameters(WorkersActor, gpus=gpus), {"CPU": 0, "memory": 1}
        )
    with tempfile.TemporaryDirectory(prefix="raybench-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own deprecations
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=SweepScheduler(searcher),
                num_samples=-1,  # the searcher decides when the sweep ends
                reuse_actors=True,
                max_concurrent_trials=concurrent,
            ),
            run_config=tune.RunConfig(
                name=sweep.name,
                storage_path=scratch,  # nothing of Tune's is kept
                verbose=0,
                callbacks=[heartbeat],
                stop=heartbeat,
                # Epoch.save writes our checkpoints every 15 s; Tune would add one at the end.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        with (
            served(sweep.folder, sweep.folder / ".state" / "seen") as searcher.home,
            Watchdog(partial(_give_up, sweep, progress, scratch), silent_s) as watchdog,
        ):
            heartbeat.heard = watchdog.heard
            # The search's small matrices would take the cores from the trials: 48 ms a trial
            # instead of 22.
            with every_loss_an_actors(), threadpool_limits(limits=1):
                tuner.fit()
    if searcher.failure is not None:
        raise searcher.failure


def _give_up(sweep: Sweep, progress: Progress, scratch: str, what: str) -> None:
    """Ends this process from the watchdog's thread; the main thread would wait for Ray forever."""
    with contextlib.suppress(Exception):
        sweep.store.snapshot()
        sweep.store.flush(FLUSH_S)
    with contextlib.suppress(Exception):
        progress.__exit__()
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"raybench.tune: {what}; {left(sweep)}", file=sys.stderr, flush=True)
    os._exit(130)
