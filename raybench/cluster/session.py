"""The Ray session: joining a cluster or starting Ray here, and the room for trials in it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
from ray._private import ray_constants

from raybench.cluster import SETTINGS, fit, joining, live_nodes
from raybench.cluster.demand import Demand
from raybench.cluster.fit import Needs
from raybench.cluster.guardian import Guardian
from raybench.cluster.room import LOOK_S, Room
from raybench.cluster.watchdog import watched

AUTOSCALED_S = 600.0  # time for a cloud to start a machine, and Ray on it
JOINING_S = 60.0  # time for the nodes of a cluster that was started by hand to join


@contextmanager
def session(watched_for: str = "", *, compare: bool = True) -> Iterator[None]:
    """Joins the cluster at RAY_ADDRESS, or starts Ray on this machine and stops it at the end.

    Args:
        watched_for: a command that ends with a one-line message if Ray dies; "" for one that
            watches Ray itself.
        compare: whether to refuse a cluster whose nodes have other versions than this process.

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
    # These loggers would print over raybench's table. Tune logs each lost trial as an error.
    for name, level in (("ray", logging.ERROR), ("ray.tune", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    # The raylet prints a paragraph per dead worker on standard output; raybench prints one line.
    ray._private.worker.print_worker_logs = lambda *_: None
    # Ray would end the process with a stack trace; raybench ends as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        if joins and compare:
            joining.require_same_versions()
        with watched(watched_for) if watched_for else nullcontext():
            yield
    finally:
        sys.stdout.flush()
        ray.shutdown()
        os.environ.pop(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, None)
        if guardian is not None:
            guardian.close()


def _reachable_from_others(reachable: bool) -> None:
    """Sets whether the Ray that is started next can be part of a cluster.

    A Ray for this process alone listens only on the loopback interface; otherwise its ports would
    be open to the network. This is Ray's default on Windows and macOS.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = str(int(reachable))  # for its processes
    ray_constants.ENABLE_RAY_CLUSTER = reachable  # Ray has already read the variable


def room_for(
    *,
    workers: int = 1,
    stages: int = 1,
    together: bool = False,
    whole_gpus: bool = False,
    gpus: float | None = None,
    max_concurrent: int | None = None,
    wait_s: float | None = None,
) -> tuple[Room, Demand]:
    """The room for trials in this session's cluster, and the demand that requests more.

    Args:
        workers: workers of one trial; each takes a CPU.
        stages: stages of one trial; a trial has several workers or several stages, never both.
        together: whether all stages must be on one node.
        whole_gpus: whether the stages use NCCL; several workers on GPUs always do.
        gpus: GPUs of each worker or stage; None means 1 where the cluster has GPUs, else 0.
        max_concurrent: most concurrent trials.
        wait_s: how long to wait for room; None for as long as nodes usually take to start.

    Raises:
        ValueError: no trial fits, and none will.
    """
    here = not os.environ.get("RAY_ADDRESS")
    types = None if here else live_nodes.node_types()
    needs = Needs(
        parts=max(workers, stages),
        gpus=fit.default_gpus(live_nodes.live_nodes(), types) if gpus is None else gpus,
        together=together,
        kind="worker" if stages == 1 else "stage",
    )
    fit.require_sensible(needs, whole_gpus=workers > 1 or whole_gpus)
    if here:
        wait_s = 0.0  # no other node can join
    elif wait_s is None:
        wait_s = AUTOSCALED_S if types or live_nodes.autoscales() else JOINING_S
    room = Room(needs, nodes=live_nodes.live_nodes, most=max_concurrent, wait_s=wait_s, types=types)
    return room, Demand(needs, here=here)


def wait_for_room(workers: int, stages: int, transport: str, gpus: float | None) -> float:
    """Waits until one trial has room; returns the GPUs of each of its workers or stages.

    Raises:
        ValueError: it does not fit, or had no room for as long as nodes usually take to start.
    """
    together, whole_gpus = transport == "shm", stages > 1 and transport == "nccl"
    room, demand = room_for(
        workers=workers, stages=stages, together=together, whole_gpus=whole_gpus, gpus=gpus
    )
    with demand:
        announced = False
        while not room.slots:
            demand.tell(1, 0)
            if (error := room.wait(True, demand.hopeless)) is not None:
                raise error
            if room.waits and not announced:
                print(f"raybench: {room.waiting}", file=sys.stderr, flush=True)
                announced = True
            time.sleep(LOOK_S)
            room.look()
    return room.needs.gpus


def expected_slots(gpus: float | None, max_concurrent: int | None) -> int:
    """Concurrent one-worker trials of the cluster at RAY_ADDRESS, once it has grown.

    If Ray does not tell which nodes may start, and there is no room yet, it is `max_concurrent`.

    Raises:
        ValueError: no trial fits, and none will.
    """
    with session():
        room, _ = room_for(gpus=gpus, max_concurrent=max_concurrent, wait_s=JOINING_S)
        return room.expected or max_concurrent or 1
