"""Ray itself: joining a cluster or starting one here, and what it holds."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Read by Ray when it is imported or when its processes start, so they stand before the import.
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # our own table instead of Tune's
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative --data paths keep their meaning in workers
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # Train looks at its workers' results every 2 s otherwise; ours come by another way.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_worker_niceness": "0",  # 15 by default: it would distort every ratio to plain torch
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no progress.csv, result.json, tfevents a trial
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own snapshots: the study and the rows are ours
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402


@contextmanager
def session() -> Iterator[None]:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine and ends it again.

    Raises:
        ValueError: RAY_ADDRESS is a Ray Client address, which hides the driver's files.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise ValueError(
            f"RAY_ADDRESS is {address}: raybench writes its tables where it runs, so hand it to "
            "the cluster with `ray job submit --working-dir . -- python -m raybench.tune …`"
        )
    joins = bool(address)
    # A job that was submitted has its runtime environment already, and may not change it.
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    passed = [*SETTINGS, "RAYBENCH_DATA", "RAYBENCH_CACHE", "RAYBENCH_COMMIT"]
    environment = {name: os.environ[name] for name in passed if name in os.environ}
    ray.init(
        address=address or "local",
        include_dashboard=None if joins else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        runtime_env={"env_vars": environment} if joins and not submitted else None,
    )
    # Said once a process otherwise, on top of our own table.
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        sys.stdout.flush()
        ray.shutdown()


def concurrency(workers: int, gpus: float | None, wanted: int | None) -> tuple[int, float]:
    """How many trials run at once, and the GPUs of each worker.

    Args:
        workers: of one trial; each takes a CPU.
        gpus: of one worker; None is 1 where the cluster has any, else 0.
        wanted: as many, or None for what the cluster holds.

    Raises:
        ValueError: not one trial fits, or fewer than `wanted`.
    """
    has = ray.cluster_resources()
    cpus, all_gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
    each = gpus if gpus is not None else (1.0 if all_gpus else 0.0)
    fits = int(cpus // workers)
    if each:
        fits = min(fits, int(all_gpus / each) // workers)
    if fits < 1:
        raise ValueError(
            f"a trial of {workers} worker(s) with 1 CPU and {each:g} GPU each does not fit into "
            f"the cluster, which has {cpus:g} CPUs and {all_gpus:g} GPUs; take fewer --workers"
        )
    if wanted is not None and wanted > fits:
        raise ValueError(
            f"--concurrent {wanted} does not fit: the cluster holds {fits} trial(s) of "
            f"{workers} worker(s) at once"
        )
    return wanted or fits, each
