"""The sweep as Tune's scheduler: every epoch's report, and the decision on it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raybench.cluster.searcher import SweepSearcher
from raybench.search.progress import Progress
from raybench.search.task import Task


class SweepScheduler(FIFOScheduler):
    """Passes results to the sweep, and its decisions back to Tune.

    A trainable of ours never ends by itself (`done`), so the last report comes here as well.
    """

    def __init__(self, searcher: SweepSearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        try:
            ends = self._take(self.searcher.tasks[trial.trial_id], result)
        except Exception as error:
            # Tune would take this for the trial's fault and go on; it is ours: a full disk.
            self.searcher.failure = error
            ends = True
        return TrialScheduler.STOP if ends else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Keeps what ended the actor for the searcher, which Tune tells next, without it."""
        with contextlib.suppress(Exception):  # of a class that cannot be made from its pickle
            # Trial.get_pickled_error looks where Tune copies the file once an hour.
            content = Path(str(trial.pickled_error_file)).read_bytes()
            self.searcher.errors[trial.trial_id] = cloudpickle.loads(content)

    def _take(self, task: Task, result: dict[str, Any]) -> bool:
        """Whether the trial ends with this result."""
        sweep, number = self.searcher.sweep, task.number
        said = json.loads(result["report"])
        if "environment" in result:
            queued = max(0.0, result["started"] - task.asked)
            sweep.note(number, queue_s=queued, **json.loads(result["environment"]))
        if "lost" in said:
            self.searcher.lose(number, said["lost"])
            return True
        if "failed" in said:
            sweep.finish(number, "FAILED", said["failed"], said.get("traceback"))
            return True
        stop = sweep.report(number, said["epoch"], said["metrics"])
        if said["last"]:
            sweep.finish(number, "COMPLETE")
        elif stop:
            sweep.finish(number, "PRUNED", f"below the best third after epoch {said['epoch']}")
        return bool(said["last"] or stop)

    def __deepcopy__(self, memo: dict[int, Any]) -> SweepScheduler:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (str, ("SweepScheduler",))


class Heartbeat(Callback, Stopper):
    """Called between Tune's events: writes snapshots, draws progress, ends a broken sweep."""

    def __init__(self, searcher: SweepSearcher, progress: Progress) -> None:
        self.searcher = searcher
        self.progress = progress
        self.heard: Callable[[], None] = lambda: None
        """Called at every sign of life of a trial."""

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
        self.progress.update()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.searcher.failure is not None or self.searcher.sweep.proposals.late

    def __deepcopy__(self, memo: dict[int, Any]) -> Heartbeat:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (str, ("Heartbeat",))
