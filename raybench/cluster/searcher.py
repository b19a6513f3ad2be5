"""The sweep as Tune's search algorithm."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from raybench.cluster.files import Home
from raybench.cluster.room import Room
from raybench.cluster.trial import LEAVING, Job, LostError, MovedError, lost, reason
from raybench.cluster.tune_loop import Actors
from raybench.search.sweep import Sweep
from raybench.search.task import Task


class SweepSearcher(Searcher):
    """Hands the sweep's Tasks to Tune; the sweep owns the study, its seeds and its states.

    Tune's OptunaSearch records stopped trials as complete, never ends trials with NaN, and repeats
    configurations after a restore.
    """

    def __init__(self, sweep: Sweep, room: Room, threads: int, say: Callable[[str], None]) -> None:
        super().__init__()
        self.sweep, self.room = sweep, room
        self._say = say
        self.threads = threads
        self.tasks: dict[str, Task] = {}  # by Tune's trial id
        self.errors: dict[str, BaseException] = {}
        """The error that ended an actor, by Tune's trial id, until Tune completes the trial."""
        self.home: Home | None = None
        """How workers access the files of the trials; None if all processes see them."""
        self.failure: Exception | None = None
        """The error in this process that ended the sweep, such as a full disk."""
        self.short = self.dry = False
        """`short`: no room for the next trial. `dry`: no trial was left to run."""
        self.actors: Actors | None = None

    def suggest(self, trial_id: str) -> Any:
        self.short = len(self.tasks) >= self.room.slots
        if self.short and self.failure is None and (self.tasks or self.sweep.unfinished):
            return None
        task = None
        try:
            if self.failure is None:
                task = self.sweep.ask()
        except Exception as error:
            self.failure = error
        self.dry = task is None
        if task is None:
            # A running trial may be lost and must then be handed out again.
            over = self.failure is not None or not self.tasks
            return Searcher.FINISHED if over else None
        self.tasks[trial_id] = task
        job = Job(
            experiment=task.experiment.to_json(),
            checkpoint=str(task.checkpoint),
            model=None if self.sweep.keep == "none" else str(task.model),
            threads=self.threads,
            home=self.home,
        )
        return job.config()

    @property
    def nothing_left(self) -> bool:
        """Whether all trials have been handed out; one of them may still be lost."""
        sweep = self.sweep
        return self.dry and (sweep.proposals.over or sweep.tally.trials >= sweep.trials)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        task = self.tasks.pop(trial_id)
        if not error:  # the scheduler has received the last result
            return
        cause = self.errors.pop(trial_id, None) or LostError("its worker process died")
        try:
            if isinstance(cause, MovedError):
                self.lose(task.number, LEAVING, counted=False)
            elif (what := lost(cause)) is not None:
                self.lose(task.number, what)
            else:
                trace = "".join(traceback.format_exception(cause))
                self.sweep.finish(task.number, "FAILED", reason(cause), trace)
        except Exception as broken:
            self.failure = broken

    def lose(self, number: int, what: str, *, counted: bool = True) -> None:
        """Records that a trial's worker or node is lost, or about to be."""
        if self.sweep.lost(number, what, counted=counted):
            self._say(f"trial {number} resumes from its last checkpoint: {what}")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Does nothing: the scheduler records the results, because it also gets the last one."""

    # Tune would pickle the searcher in order to resume; raybench resumes from the sweep's log.

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None: ...

    def __deepcopy__(self, memo: dict[int, Any]) -> SweepSearcher:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (str, ("SweepSearcher",))
