"""Pool: the warm actors of pipelines, and their room in the cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import (
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raybench.cluster import fit
from raybench.cluster.fit import Needs
from raybench.cluster.live_nodes import live_nodes
from raybench.cluster.stage_actor import StageActor

FREE_S = 4.0  # deadline for the cluster to have room for the stages
ROOM_S = 20.0  # deadline to place a lost node's stages on other nodes


class Pool:
    """Warm actors in one placement group: in a sweep the trial's, else a new one.

    Raises:
        ValueError: the cluster has no room for so many stages, or none now.
    """

    def __init__(self, stages: int, together: bool, gpus: float | None) -> None:
        self.session = ray.get_runtime_context().get_job_id()
        self.stages, self.together, self.gpus = stages, together, gpus
        group = get_current_placement_group()
        self._owned = None
        if group is None or group.bundle_count < stages:
            group = self._owned = _reserved(stages, together, gpus)
        self._group = group
        self._gpus = float(group.bundle_specs[-1].get("GPU", 0.0))
        self.actors = [self._actor() for _ in range(stages)]

    def _actor(self) -> Any:
        where = PlacementGroupSchedulingStrategy(self._group)
        return StageActor.options(  # type: ignore[attr-defined]
            num_cpus=1, num_gpus=self._gpus, scheduling_strategy=where
        ).remote()

    def renew(self, rank: int) -> None:
        """Replaces an actor that has died or hangs."""
        ray.kill(self.actors[rank])
        self.actors[rank] = self._actor()

    def is_placed(self) -> bool:
        """Whether Ray places the stages of a lost node again within `ROOM_S`."""
        end = time.monotonic() + ROOM_S
        while placement_group_table(self._group)["state"] != "CREATED":
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the session may be over
            for actor in self.actors:
                ray.kill(actor)
            if self._owned is not None:
                remove_placement_group(self._owned)


_POOLS: list[Pool] = []  # at most one per process


def pool(stages: int, together: bool, gpus: float | None = None) -> Pool:
    """Actors for this many stages; those of the last trial are reused if there are enough.

    Args:
        together: whether all must be on one node.
        gpus: GPUs of each; None means 1 where the cluster has GPUs, else 0.
    """
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    session = ray.get_runtime_context().get_job_id()
    for warm in _POOLS:
        fits = warm.stages >= stages and (warm.together or not together)
        if warm.session == session and fits and warm.gpus == gpus:
            return warm
        warm.close()
    _POOLS.clear()
    _POOLS.append(Pool(stages, together, gpus))
    return _POOLS[0]


def release() -> None:
    """Ends the warm actors and releases their resources."""
    while _POOLS:
        _POOLS.pop().close()


def process_ids() -> list[int]:
    """Process ids of the warm actors in stage order; tests use it to kill a stage."""
    calls = [actor.__ray_call__.remote(lambda _: os.getpid()) for actor in _POOLS[0].actors]
    return [int(pid) for pid in ray.get(calls)]


def _reserved(stages: int, together: bool, gpus: float | None) -> Any:
    nodes = live_nodes()
    each = fit.default_gpus(nodes, None) if gpus is None else gpus
    needs = Needs(parts=stages, gpus=each, together=together, kind="stage")
    if not fit.slots(nodes, needs):
        raise ValueError(
            f"a pipeline needs {needs}, but {fit.holdings(nodes)}: take fewer pipeline.stages"
        )
    bundle = {"CPU": 1.0} | ({"GPU": each} if each else {})
    group = placement_group([bundle] * stages, strategy="STRICT_PACK" if together else "PACK")
    try:
        ray.get(group.ready(), timeout=FREE_S)
    except GetTimeoutError as error:
        remove_placement_group(group)
        raise ValueError(
            f"a pipeline of {needs} had no room within {FREE_S:g} s, because others use it; "
            f"{fit.holdings(nodes)}"
        ) from error
    return group
