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
import uuid
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from raybench.cluster.object_store import Mailbox
from raybench.cluster.stage_actor import Meeting
from raybench.cluster.stage_pool import pool, release
from raybench.data import Images
from raybench.experiment import Experiment
from raybench.parallel.pipeline.stage import State
from raybench.parallel.pipeline.transport import PeerLost
from raybench.training.runner import Diverged
from raybench.training.staged import Report, merged

READY_S = 120.0  # deadline for a stage to start, or to begin a trial
BALANCE_S = 600.0  # deadline for all blocks to be timed
LEAVE_S = 10.0  # deadline for the others to notice a dead stage; after it they are replaced too
RESTARTS = 3  # most consecutive restarts without a finished epoch


_CUTS: dict[tuple[Any, ...], list[int]] = {}  # a model is balanced once per process


class Staged:
    """An experiment's stages on actors.

    Args:
        gpus: GPUs of each stage, outside a sweep; None means 1 where the cluster has GPUs, else 0.

    Raises:
        ValueError: the model cannot be cut like this, or the cluster has no room for the stages.
    """

    def __init__(
        self,
        experiment: Experiment,
        images: Images,
        state: State | None,
        *,
        gpus: float | None = None,
    ) -> None:
        pipeline = experiment.pipeline
        self.restarts = 0
        self._experiment = experiment
        self._pool = pool(pipeline.stages, pipeline.transport == "shm", gpus)
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
