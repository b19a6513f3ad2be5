"""The sweep as Tune's scheduler: it receives every epoch's report and may stop the trial."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayError, RpcError
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raybench.cluster.demand import Demand
from raybench.cluster.searcher import SweepSearcher
from raybench.cluster.tune_loop import Actors
from raybench.search.progress import Progress
from raybench.search.task import Task


class SweepScheduler(FIFOScheduler):
    """Passes results to the sweep, and the sweep's decisions to Tune.

    The trainables never end by themselves (`done`), so the last report arrives here as well.
    """

    def __init__(self, searcher: SweepSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Chooses none: Tune starts pending trials in order.

        A trial chosen here would get the actor of a trial that has just ended, and its own actor,
        still starting, would be stopped. With short trials, a new node would never be used.
        """
        self.searcher.actors = Actors(tune_controller._tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        try:
            ends = self._take(self.searcher.tasks[trial.trial_id], result)
        except Exception as error:
            # Tune would fail the trial and continue, but the driver has failed: e.g. a full disk.
            self.searcher.failure = error
            ends = True
        return TrialScheduler.STOP if ends else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Keeps the actor's error for the searcher, which Tune calls next without the error."""
        with contextlib.suppress(Exception):  # the error's class may not unpickle
            # Trial.get_pickled_error reads Tune's copy of the file, which is updated once an hour.
            content = Path(str(trial.pickled_error_file)).read_bytes()
            self.searcher.errors[trial.trial_id] = cloudpickle.loads(content)

    def _take(self, task: Task, result: dict[str, Any]) -> bool:
        """Whether the trial ends with this result."""
        sweep, number = self.searcher.sweep, task.number
        report = json.loads(result["report"])
        if "environment" in result:
            queued = max(0.0, result["started"] - task.asked)
            sweep.note(number, queue_s=queued, **json.loads(result["environment"]))
        if "lost" in report:
            self.searcher.lose(number, report["lost"])
            return True
        if "failed" in report:
            sweep.finish(number, "FAILED", report["failed"], report.get("traceback"))
            return True
        stop = sweep.report(number, report["epoch"], report["metrics"])
        if report["last"]:
            sweep.finish(number, "COMPLETE")
        elif stop:
            sweep.finish(number, "PRUNED", sweep.why_stopped(number))
        return bool(report["last"] or stop)

    def __deepcopy__(self, memo: dict[int, Any]) -> SweepScheduler:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (str, ("SweepScheduler",))


class Heartbeat(Callback, Stopper):
    """Called between Tune's events, ten times a second: writes snapshots, counts the slots,
    requests more of them, updates the progress display, and ends a broken sweep."""

    def __init__(
        self,
        searcher: SweepSearcher,
        progress: Progress,
        demand: Demand,
        resized: Callable[[int], None] = lambda slots: None,
    ) -> None:
        self.searcher, self.room = searcher, searcher.room
        self.progress, self.demand = progress, demand
        self._resized, self._slots = resized, -1
        self.heard: Callable[[], None] = lambda: None
        """Called whenever a trial starts or reports."""

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.heard()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Any, **info: Any
    ) -> None:
        self.heard()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        try:
            self.searcher.sweep.store.snapshot_if_due()
        except OSError as error:
            self.searcher.failure = error
        # If the GCS does not answer, the watchdog decides.
        with contextlib.suppress(RayError, RpcError):
            self._look_at_the_cluster()
        self.progress.update()

    def _look_at_the_cluster(self) -> None:
        searcher, room = self.searcher, self.room
        room.look()
        if room.slots != self._slots:
            self._slots = room.slots
            self._resized(room.slots)
        if self.demand.due:  # for a study `unfinished` is slow
            self.demand.tell(room.wanted(searcher.sweep.unfinished), room.slots)
        # If other jobs use all nodes, trials are handed out but their actors find no room.
        not_placed = searcher.actors is not None and not searcher.actors.begun
        stuck = not_placed if searcher.tasks else searcher.short and not room.slots
        if (error := room.wait(stuck, self.demand.hopeless)) is not None:
            searcher.failure = error
        if room.waits and not self.progress.waiting:
            self.progress.say(room.waiting)
        self.progress.waiting = f"waiting for room: a trial {room}" if room.waits else ""
        if stuck:
            self.heard()
        # At this point no trial is being assigned to an idle actor.
        fewer = len(searcher.tasks) >= room.slots
        if searcher.actors is not None and (fewer or searcher.nothing_left):
            searcher.actors.release_idle()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.searcher.failure is not None or self.searcher.sweep.proposals.late

    def __deepcopy__(self, memo: dict[int, Any]) -> Heartbeat:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (str, ("Heartbeat",))
