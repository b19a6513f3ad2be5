"""A node joins under a running sweep: how soon does a trial run on it?"""

from __future__ import annotations

import time
from functools import partial
from statistics import median

from raybench.bench.cluster_parts import waiting_space
from raybench.bench.cluster_parts.driven import Driven, until, with_process
from raybench.bench.cluster_parts.lost_nodes import TITLES
from raybench.bench.machines import Machine, Machines

JOINS = 3
USED_S = 120.0
claims = {"join_used_s": "at most 10"}


def measure(joins: int = JOINS) -> dict[str, float]:
    """Median seconds from Ray's start on a node to a trial's actor on it; infinite if none came."""
    times: list[float] = []
    with Machines() as cluster:
        cluster.head(cpus=0)
        cluster.node(cpus=1)
        cluster.ready()
        driven = Driven(cluster, waiting_space, 100_000, "--keep", "none")
        if not until(lambda: driven.epochs() > 0, USED_S, driven):
            raise RuntimeError(f"the sweep does not begin: {driven.log[-500:]}")
        for _ in range(joins):
            node = cluster.node(cpus=1)
            cluster.ready()
            began = time.monotonic()
            used = until(partial(_runs_a_trial, cluster, node), USED_S, driven)
            times.append(time.monotonic() - began if used else float("inf"))
        driven.interrupt()
    return {"join_used_s": median(times), "join_used_s_max": max(times), "joins": joins}


def _runs_a_trial(cluster: Machines, node: Machine) -> bool:
    return node in with_process(cluster, TITLES["one_worker"])
