"""Ray itself: joining a cluster or starting one here, and how many trials fit into it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
from ray._private import ray_constants

from raybench.cluster import SETTINGS, joining
from raybench.cluster.guardian import Guardian
from raybench.cluster.watchdog import watched


@contextmanager
def session(watched_for: str = "", *, compare: bool = True) -> Iterator[None]:
    """Joins the cluster of RAY_ADDRESS, or starts Ray on this machine and stops it at the end.

    Args:
        watched_for: a command that ends with one line if Ray is gone; "" for one that watches
            Ray by itself.
        compare: whether a cluster whose nodes have other versions than this process is refused.

    Raises:
        ValueError: RAY_ADDRESS is a Ray Client address, whose driver cannot see local files; or
            no cluster answers there.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise ValueError(
            f"RAY_ADDRESS is {address}: raybench writes its tables where it runs, so submit it to "
            "the cluster with `ray job submit --working-dir . -- python -m raybench.tune …`"
        )
    joins = bool(address)
    if joins:
        joining.require_answer(address)
    # A submitted job already has its runtime environment and cannot change it.
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    passed = [*SETTINGS, "RAYBENCH_DATA", "RAYBENCH_CACHE", "RAYBENCH_COMMIT"]
    environment = {name: os.environ[name] for name in passed if name in os.environ}
    guardian = None if joins else Guardian()
    _reachable_from_others(joins)
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if joins else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": environment} if joins and not submitted else None,
        )
    except BaseException as error:
        if guardian is not None:
            guardian.close()
        if advice := joining.refusal(address, error):
            raise ValueError(advice) from error
        raise
    # These loggers would print over our own table. Tune logs each lost trial as its own error.
    for name, level in (("ray", logging.ERROR), ("ray.tune", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    # The raylet prints a paragraph about each dead worker on standard output; we print one line.
    ray._private.worker.print_worker_logs = lambda *_: None
    # Ray would end the process with its own stack trace; we end as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        if joins and compare:
            joining.require_same_versions()
        with watched(watched_for) if watched_for else nullcontext():
            yield
    finally:
        sys.stdout.flush()
        ray.shutdown()
        if guardian is not None:
            guardian.close()


def _reachable_from_others(reachable: bool) -> None:
    """Whether the Ray that is started next takes part in a cluster.

    A Ray of this process's own listens on the loopback interface alone; otherwise its ports would
    be open to the network. Ray decides so by itself on Windows and macOS.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = str(int(reachable))  # for its processes
    ray_constants.ENABLE_RAY_CLUSTER = reachable  # Ray has read the variable already


def concurrency(workers: int, gpus: float | None, wanted: int | None) -> tuple[int, float]:
    """How many trials run at once, and the GPUs of each worker.

    Args:
        workers: workers of one trial; each takes a CPU.
        gpus: GPUs of one worker; None means 1 where the cluster has GPUs, else 0.
        wanted: trials at once, or None for as many as the cluster holds.

    Raises:
        ValueError: no trial fits, or fewer than `wanted` fit.
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"--concurrent is {wanted}: 1 or more trials run at once")
    has = ray.cluster_resources()
    cpus, all_gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
    each = gpus if gpus is not None else (1.0 if all_gpus else 0.0)
    fits = int(cpus // workers)
    if each:
        fits = min(fits, int(all_gpus / each) // workers)
    if 0 < each < 1 and workers > 1:
        raise ValueError(
            f"{workers} workers of {each:g} GPU each: every parallel.strategy uses NCCL on GPUs, "
            "which needs a whole GPU per worker; take --gpus 1, or --gpus 0 for gloo"
        )
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
    return fits if wanted is None else wanted, each
