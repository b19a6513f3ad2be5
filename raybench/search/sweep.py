"""Sweep: the decisions and the state of a sweep, independent of what runs the trials.

    ask ──▶ Task ──▶ (a worker trains it) ──▶ report, report, … ──▶ finish
     │        ▲                                 │ stop?      │         │
     │        ╰─────────── lost: it goes on ────┼────────────╯         │
     ╰──────────────┬───────────────────────────┴──────────────────────╯
                    ▼
              .state/log ──▶ tally, rungs, sampling, Optuna's journal, Parquet

Every event is first a record of the log. The whole state is built from the records, one by one, so
opening and running a sweep use the same code, and they agree after any kill.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.trial import Trial

from raybench.experiment import Experiment, flatten, tables
from raybench.results import core, failures, recovery, schema
from raybench.results.rows import Row
from raybench.results.store import Store
from raybench.search import identity, prior
from raybench.search.decisions import Decisions
from raybench.search.journal import Journal
from raybench.search.kept_models import KeptModels
from raybench.search.overrides import Overrides
from raybench.search.proposals import Proposals, Proposer, outcome_of
from raybench.search.rungs import Rungs
from raybench.search.sampling import Sampling
from raybench.search.space import Space
from raybench.search.suggestions import suggested_values
from raybench.search.task import Task

RETRIES = 3  # times that a trial resumes after its worker was lost


class Sweep:
    """One named set of trials from one space, open in one process.

    Raises:
        ValueError: the folder holds another sweep, or another process has this one open.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        *,
        trials: int,
        overrides: Overrides,
        keep: str = "best",
        early_stopping: bool = True,
        evidence: int = Rungs.evidence,
        sampler: str = "model",
        proposer: Callable[[Space, Sampling], Proposer] = Proposals,
        warm_start: Sequence[Path | str] = (),
        budget_s: float = math.inf,
    ) -> None:
        if trials < 1:
            raise ValueError(f"--trials is {trials}: a sweep has 1 or more")
        objectives = space.objectives
        self.decisions = Decisions(
            objectives,
            max(example.recipe.epochs for example in space.examples),
            sampler=sampler,
            seed=overrides.seed,
            early_stopping=early_stopping,
            evidence=evidence,
            constraints=space.constraints,
            budget_s=budget_s,
        )
        older = prior.of_folders(warm_start, objectives) if warm_start else None
        # Absolute: the workers that write the models have another working directory.
        self.folder, self.space, self.trials, self.keep = folder.absolute(), space, trials, keep
        self.name = folder.name
        self._state = self.folder / ".state"
        (self._state / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._models = KeptModels(self.folder, keep)
        self._lock = FileLock(self._state / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another process is running the sweep in {folder}") from error
        self.tally, self.rungs = self.decisions.tally, self.decisions.rungs
        self._sampling = self.decisions.sampling
        self._journal = Journal(self._state / "study.journal", self.name, objectives)
        self.proposals = proposer(space, self._sampling)
        listeners = (self.decisions, self._journal, self.proposals)
        try:
            same = identity.of(space, overrides)
            identity.require(self.folder, same, recovery.about(self.folder))
            about = {"family": space.family, "sweep": self.name, "objectives": objectives}
            schemas = tables.schemas({**about, "identity": same})
            self.store = Store(self.folder, *schemas, [listener.take for listener in listeners])
            self._journal.open()
            if older is not None and not self.decisions.begun:
                self.store.put("prior", older)
        except BaseException:
            self._lock.release()
            raise
        self._waiting = deque(self.tally.running)
        self._experiments: dict[int, str] = {}  # of the running trials, as JSON
        wanted = {*self.tally.running, *self._to_keep()}
        self._models.drop_all_but((self._name(number) for number in wanted), self.name)
        for path in (self._state / "checkpoints").iterdir():
            if path.name.partition(".")[0] not in map(str, self.tally.running):
                path.unlink()  # of a trial that ended as the process was killed

    # --- Running --------------------------------------------------------------------------------

    def ask(self) -> Task | None:
        """The next trial to run, or None if there is none now."""
        while self._waiting:
            if (task := self._again(self._waiting.popleft())) is not None:
                return task
        while not self.decisions.over and self.tally.trials < self.trials and self.proposals.ready:
            if (task := self._next()) is not None:
                return task
        return None

    def report(self, number: int, epoch: int, metrics: Row) -> bool:
        """Takes an epoch's metrics; returns whether the trial stops here.

        Raises:
            ValueError: a metric is not declared, or has another type.
        """
        identified = {name: self.store.trials[number][name] for name in core.IDENTITY}
        self.store.put_epoch({**identified, "epoch": epoch, **metrics})
        return self.decisions.stops(number, epoch)

    def why_stopped(self, number: int) -> str:
        """Why the last report of a trial ended it, in one line."""
        return self.decisions.reasons.pop(number, "the sweep's budget is spent")

    def finish(
        self,
        number: int,
        status: str,
        stop_reason: str | None = None,
        traceback: str | None = None,
    ) -> None:
        """Ends a trial: COMPLETE, PRUNED or FAILED, with the reason of the last two.

        Args:
            traceback: of a failed trial; it is kept in a file that the row names.
        """
        row = self.store.trials[number]
        values = {name: row.get(name) for name in self.space.objectives}
        if status == "COMPLETE":
            missing = [n for n, v in values.items() if v is None or not math.isfinite(v)]
            if missing:
                status = "FAILED"
                stop_reason = f"it reported no finite {', '.join(missing)}"
        experiment = self._experiments.pop(number, None)
        if status == "COMPLETE" and experiment is not None:
            self._models.describe(row["trial"], experiment)
        self._end(number, status, stop_reason, traceback)
        for path in (self._state / "checkpoints").glob(f"{number}.*"):
            path.unlink(missing_ok=True)
        self.store.snapshot_if_due()

    def lost(self, number: int, what: str, *, counted: bool = True) -> bool:
        """Takes the loss of a trial's worker or node; the trial resumes from its checkpoint.

        Returns:
            Whether it resumes; after `RETRIES` counted losses the trial fails.
        """
        retries = self.store.trials[number].get("retries", 0)
        self.store.put_trial({"number": number, "last_failure": what})
        if counted and retries == RETRIES:
            self.finish(number, "FAILED", f"lost {RETRIES + 1} times, the last time: {what}")
            return False
        self.store.put_trial({"number": number, "retries": retries + counted})
        self._waiting.append(number)
        return True

    def note(self, number: int, **columns: Any) -> None:
        """Sets columns of a running trial's row, such as those about its worker's machine."""
        self.store.put_trial({"number": number, **columns})

    def close(self) -> None:
        with ExitStack() as stack:  # each is closed, even if another fails
            stack.callback(self._lock.release)
            stack.callback(self._journal.close)
            stack.callback(self.store.close)

    @property
    def unfinished(self) -> int:
        """Trials that have been started or are still to come."""
        if self.proposals.over or self.decisions.over:
            return self.tally.trials - self.tally.ended
        planned = self.trials if self.proposals.planned is None else self.proposals.planned
        return max(planned, self.tally.trials) - self.tally.ended

    # --- Starting -------------------------------------------------------------------------------

    def _next(self) -> Task | None:
        """A trial with new parameters; None if there is none to run."""
        for trial, place in self.proposals.of(self.tally.next_number):
            started, task = self._try(trial, place)
            if started:
                return task
        return None

    def _try(self, trial: Trial, enqueued: int | None) -> tuple[bool, Task | None]:
        """Whether the trial has a row now, and its Task if there is something to run.

        An exception of the space becomes the trial's outcome.
        """
        number, experiment, error = trial.number, None, None
        try:
            experiment = self._sampled(trial)
        except Exception as raised:
            error = raised
        if experiment is not None and experiment.key() in self.tally.keys:
            return False, None
        suggested = self._sampling.suggested(trial).record()
        self.store.put("suggested", {**suggested, "enqueued": enqueued})
        key = experiment.key() if experiment else None
        inputs = flatten(experiment) if experiment else {}
        row = schema.started(self.name, number, key, inputs, trial.params)
        self.store.put_trial(row)
        if error is not None:
            self._end(number, *outcome_of(error))
            return True, None
        assert experiment is not None
        return True, self._task(number, experiment)

    def _again(self, number: int) -> Task | None:
        """A trial that was started before, with its old parameters; None if it ends here."""
        row = self.store.trials[number]
        before = self._sampling.running.get(number)
        params = before.external() if before else suggested_values(row["params"])
        trial = self._sampling.ask(number, 0, params)
        try:
            experiment = self._sampled(trial)
        except Exception as error:
            self._end(number, *outcome_of(error))
            return None
        if experiment.key() != row.get("key"):
            self._end(
                number,
                "FAILED",
                f"its parameters give another experiment ({experiment.key()}) than when it "
                f"started ({row.get('key')}): raybench or what the space imports has changed",
            )
            return None
        if before is None:  # lost with a part of the log
            self.store.put("suggested", self._sampling.suggested(trial).record())
        return self._task(number, experiment)

    def _sampled(self, trial: Trial) -> Experiment:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about `enqueue` values outside a range
            return self.space.sample(trial)

    def _task(self, number: int, experiment: Experiment) -> Task:
        self._experiments[number] = experiment.to_json()
        trial = self._name(number)
        return Task(
            number=number,
            trial=trial,
            experiment=experiment,
            checkpoint=self._state / "checkpoints" / f"{number}.pt",
            model=self._models.path(trial),
            asked=time.time(),
        )

    def _name(self, number: int) -> str:
        return str(self.store.trials[number]["trial"])

    # --- Ending ---------------------------------------------------------------------------------

    def _end(
        self, number: int, status: str, stop_reason: str | None, traceback: str | None = None
    ) -> None:
        row: Row = {"number": number, "status": status, "stop_reason": stop_reason}
        if traceback is not None:
            row["failure"] = failures.keep(self.folder, number, traceback)
        before = set(self.tally.front)
        self.store.put_trial(row)
        if self.keep != "all" or status != "COMPLETE":
            kept = set() if self.keep == "none" else self.tally.front.keys()
            self._models.drop(self._name(gone) for gone in (before | {number}) - kept)

    def _to_keep(self) -> set[int]:
        """Numbers of the ended trials whose models stay."""
        kept = {"best": self.tally.front, "all": self.tally.complete}
        return set(kept.get(self.keep, ()))
