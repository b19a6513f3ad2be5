"""Stages on Ray actors, which are reused from trial to trial.

    trainer                           actor of each stage
    Staged(experiment)  ───────────▶  begin: blocks, or the stage's part of a checkpoint; links
    epoch(number)       ───────────▶  one call per epoch: steps, messages between neighbours
                        ◀───────────  report, and the stage's part of the state in Ray's store
    close()             ───────────▶  end: releases the links

If a stage dies, the links of its neighbours break and their calls end with PeerLost. Only the dead
stage gets a new actor. All stages then load their state from the end of the last epoch, and the
current epoch is run again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.placement_group import (
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raybench.cluster.object_store import Mailbox
from raybench.cluster.stage_actor import Meeting, StageActor
from raybench.data import Images
from raybench.experiment import Experiment
from raybench.parallel.pipeline.stage import State
from raybench.parallel.pipeline.transport import PeerLost
from raybench.training.runner import Diverged
from raybench.training.staged import Report, merged

FREE_S = 4.0  # deadline for the cluster to have room for the stages
ROOM_S = 20.0  # deadline to place a lost node's stages on other nodes
READY_S = 120.0  # deadline for a stage to start, or to begin a trial
BALANCE_S = 600.0  # deadline for all blocks to be timed
LEAVE_S = 10.0  # deadline for the others to notice a dead stage; after it they are replaced too
RESTARTS = 3  # most consecutive restarts without a finished epoch


class Pool:
    """Warm actors in one placement group: in a sweep the trial's, else a new one.

    Raises:
        ValueError: the cluster has no room for so many stages, or none now.
    """

    def __init__(self, stages: int, together: bool) -> None:
        self.session = ray.get_runtime_context().get_job_id()
        self.stages, self.together = stages, together
        group = get_current_placement_group()
        self._owned = None
        if group is None or group.bundle_count < stages:
            group = self._owned = _reserved(stages, together)
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
_CUTS: dict[tuple[Any, ...], list[int]] = {}  # a model is balanced once per process


def pool(stages: int, together: bool) -> Pool:
    """Actors for this many stages; those of the last trial are reused if there are enough."""
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    session = ray.get_runtime_context().get_job_id()
    for warm in _POOLS:
        fits = warm.stages >= stages and (warm.together or not together)
        if warm.session == session and fits:
            return warm
        warm.close()
    _POOLS.clear()
    _POOLS.append(Pool(stages, together))
    return _POOLS[0]


def release() -> None:
    """Ends the warm actors and releases their resources."""
    while _POOLS:
        _POOLS.pop().close()


def process_ids() -> list[int]:
    """Process ids of the warm actors in stage order; tests use it to kill a stage."""
    calls = [actor.__ray_call__.remote(lambda _: os.getpid()) for actor in _POOLS[0].actors]
    return [int(pid) for pid in ray.get(calls)]


class Staged:
    """An experiment's stages on actors.

    Raises:
        ValueError: the model cannot be cut like this, or the cluster has no room for the stages.
    """

    def __init__(self, experiment: Experiment, images: Images, state: State | None) -> None:
        pipeline = experiment.pipeline
        self.restarts = 0
        self._experiment = experiment
        self._pool = pool(pipeline.stages, pipeline.transport == "shm")
        self._mailbox: Any = None
        self._saved: list[Any] = [state and ray.put(state)] * pipeline.stages
        try:
            self.cuts = self._balanced()
            self._begin()
        except (RayError, PeerLost):  # stages were lost: the next trial gets new actors
            release()
            raise

    @property
    def _actors(self) -> list[Any]:
        return self._pool.actors[: self._experiment.pipeline.stages]

    def epoch(self, number: int) -> list[Report]:
        """One epoch of all stages, restarted if a stage dies.

        Raises:
            Diverged: a stage saw a loss or a tensor that is not finite.
            PeerLost: stages died repeatedly.
        """
        for _ in range(RESTARTS + 1):
            calls = [actor.epoch.remote(number) for actor in self._actors]
            reports, gone = self._gathered([report for report, _ in calls])
            if not gone:
                self._saved = [state for _, state in calls]
                return reports
            self.restarts += 1
            self._end()
            for rank in gone:
                self._pool.renew(rank)
            try:
                if not self._pool.is_placed():
                    raise PeerLost("a stage of a lost node finds no room")
                self._begin()
            except (RayError, PeerLost):
                release()
                raise
        raise PeerLost(f"stages died {RESTARTS + 1} times in epoch {number}")

    def state(self) -> State:
        return merged(ray.get(self._saved))

    def close(self) -> None:
        """Ends the trial; the actors are kept for the next one."""
        with contextlib.suppress(RayError):
            ray.get([actor.end.remote() for actor in self._actors], timeout=LEAVE_S)
        self._end()

    def _balanced(self) -> list[int]:
        experiment, pipeline, recipe = (
            self._experiment,
            self._experiment.pipeline,
            self._experiment.recipe,
        )
        sizes = (
            experiment.data,
            experiment.image_size,
            recipe.batch // pipeline.chunks,
            recipe.precision,
        )
        key = (experiment.model, experiment.start_from, pipeline.stages, pipeline.cuts, *sizes)
        if key not in _CUTS:
            first = self._actors[0]
            _CUTS[key] = _got([first.cuts.remote(experiment.to_json())], BALANCE_S)[0]
        return _CUTS[key]

    def _begin(self) -> None:
        """Resets all stages to the end of the last epoch, or to the start, with new links."""
        pipeline = self._experiment.pipeline
        host, port = _got([self._actors[0].meet.remote()], READY_S)[0]
        if pipeline.transport == "object_store":
            self._mailbox = Mailbox.remote()  # type: ignore[attr-defined]
        meeting = Meeting(host, port, uuid.uuid4().hex, self._mailbox)
        _got(
            [
                actor.begin.remote(self._experiment.to_json(), rank, self.cuts, meeting, saved)
                for rank, (actor, saved) in enumerate(zip(self._actors, self._saved, strict=True))
            ],
            READY_S,
        )

    def _end(self) -> None:
        if self._mailbox is not None:
            ray.kill(self._mailbox)  # stages that wait for it get an error
            self._mailbox = None

    def _gathered(self, calls: list[Any]) -> tuple[list[Report], list[int]]:
        """The reports, and the ranks of the stages to replace; if there are any, no reports.

        A stage's death ends the calls of its neighbours with PeerLost, and then those of their
        neighbours.
        """
        waiting, broken = list(calls), False
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=LEAVE_S if broken else None)
            if broken and not ready:
                break
            if not broken and any(isinstance(_outcome(call), BaseException) for call in ready):
                broken = True
                self._end()
        outcomes = [None if call in waiting else _outcome(call) for call in calls]
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in errors:
            if isinstance(error, Diverged):
                raise Diverged(_first_line(error)) from error
        for error in errors:
            if not isinstance(error, PeerLost | RayActorError):
                raise error
        if errors or waiting:
            silent = [o is None or isinstance(o, RayActorError) for o in outcomes]
            return [], [rank for rank, is_silent in enumerate(silent) if is_silent] or [-1]
        return [outcome for outcome in outcomes if isinstance(outcome, Report)], []


def _outcome(call: Any) -> Any:
    """The result of a call that has ended, or its error."""
    try:
        return ray.get(call)
    except RayError as error:
        return error


def _got(calls: list[Any], deadline_s: float) -> list[Any]:
    """The results of the calls; raybench's own errors are raised unchanged.

    Raises:
        PeerLost: the deadline passed, for example because a lost stage could not be placed.
    """
    try:
        return list(ray.get(calls, timeout=deadline_s))
    except GetTimeoutError as error:
        raise PeerLost(f"stages did not answer within {deadline_s:g} s") from error
    except ValueError as error:  # Ray derives its class from the cause's and adds a traceback
        raise ValueError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    """The first line of a stage's error, without Ray's traceback."""
    return str(getattr(error, "cause", error)).splitlines()[0]


def _reserved(stages: int, together: bool) -> Any:
    has = ray.cluster_resources()
    cpus, gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
    each = 1.0 if gpus else 0.0
    if cpus < stages or (each and gpus < stages):
        raise ValueError(
            f"{stages} stages need a CPU{' and a GPU' if each else ''} each, but the cluster has "
            f"{cpus:g} CPUs and {gpus:g} GPUs: take fewer pipeline.stages"
        )
    bundle = {"CPU": 1.0} | ({"GPU": each} if each else {})
    group = placement_group([bundle] * stages, strategy="STRICT_PACK" if together else "PACK")
    try:
        ray.get(group.ready(), timeout=FREE_S)
    except GetTimeoutError as error:
        remove_placement_group(group)
        raise ValueError(
            f"{stages} stages got no room in the cluster within {FREE_S:g} s: others use its "
            f"{cpus:g} CPUs{', or no single node has enough' if together else ''}"
        ) from error
    return group
