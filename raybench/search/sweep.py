"""Sweep: what a sweep decides and remembers, without a word about who runs the trials.

    ask ──▶ Task ──▶ (somebody trains it) ──▶ report, report, … ──▶ finish
     │                                          │ stop?                │
     └─ Optuna study, a journal file            └─ rungs               └─ rows, then the study

The order of writing makes every kill harmless: an outcome is first a row on disk, then told to
the study. On opening, a trial that has its row but is still running for Optuna is told; one that
has neither is run again, under its old number and with its old parameters.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.trial import Trial, TrialState

from raybench.experiment import Experiment, flatten, tables
from raybench.results import core, failures, schema
from raybench.results.front import ranks
from raybench.results.store import Row, Store
from raybench.search import study
from raybench.search.rungs import Rungs
from raybench.search.space import Overrides, Space

DUPLICATES = 50  # so many suggestions in a row that were there before: the space is exhausted
FINISHED = ("COMPLETE", "PRUNED", "FAILED")


@dataclass(frozen=True)
class Task:
    """A trial to be run: the experiment, and where its files are."""

    number: int
    trial: str
    experiment: Experiment
    checkpoint: Path
    """State to go on from where the file exists, and to save to."""
    model: Path
    """Where the trained model is to be stored."""
    asked: float
    """When the sweep gave it out, in seconds since the epoch."""


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
        sampler: str = "tpe",
    ) -> None:
        if trials < 1:
            raise ValueError(f"--trials is {trials}: a sweep has 1 or more")
        if evidence < 0:
            raise ValueError(f"--evidence is {evidence}: a number of trials, 0 or more")
        # Absolute: the workers that write the models have another working directory.
        self.folder, self.space, self.trials, self.keep = folder.absolute(), space, trials, keep
        self.name = folder.name
        self._seed, self._sampler = overrides.seed, sampler
        self._state = self.folder / ".state"
        for path in (self._state / "checkpoints", self.folder / "models"):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._state / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another process is running the sweep in {folder}") from error
        about = {"family": space.family, "sweep": self.name, "objectives": space.objectives}
        try:
            self._check_identity(overrides)
            self.store = Store(self.folder, *tables.schemas(about))
        except BaseException:
            self._lock.release()
            raise
        self.early_stopping = early_stopping
        longest = max(example.recipe.epochs for example in space.examples)
        self.rungs = Rungs(space.objectives, longest, evidence=evidence)
        self._reached: dict[int, int] = {}  # trial -> last epoch that it had reported before
        for row in self.store.epoch_rows():
            self.rungs.record(row["number"], row["epoch"], row)
            self._reached[row["number"]] = max(row["epoch"], self._reached.get(row["number"], 0))
        self._study = study.open_study(
            self._state / "study.journal", self.name, space.objectives, space.enqueue
        )
        self._running: dict[int, Trial] = {}
        self._waiting = self._reconcile()
        self._keys = {row["key"]: n for n, row in self.store.trials.items()}
        self.exhausted = False

    # --- The three verbs ------------------------------------------------------------------------

    def ask(self) -> Task | None:
        """The next trial to run, or None when the sweep has all that it was to have."""
        for _ in range(DUPLICATES + len(self._waiting)):
            if self._waiting:
                number, identifier = self._waiting.pop(0)
                self._study.sampler = study.sampler(self._sampler, self._seed, number)
                trial = Trial(self._study, identifier)
            elif len(self.store.trials) >= self.trials:
                return None
            else:
                # A seed a number: neither a restart nor the order of arrival repeats one.
                known = self._study.get_trials(deepcopy=False)
                enqueued = (t.number for t in known if t.state == TrialState.WAITING)
                number = next(enqueued, len(known))
                self._study.sampler = study.sampler(self._sampler, self._seed, number)
                trial = self._study.ask()
            task = self._start(trial)
            if task is not None:
                return task
        self.exhausted = True
        return None

    def report(self, number: int, epoch: int, metrics: Row) -> bool:
        """Takes an epoch's metrics; whether the trial shall stop here.

        Raises:
            ValueError: a metric is not declared, or has another type.
        """
        row = self.store.trials[number]
        identity = {name: row[name] for name in core.IDENTITY}
        self.store.put_epoch({**identity, "epoch": epoch, **metrics})
        row = {**row, **metrics, "epoch": epoch}
        self.store.trials[number] = row  # goes into the next snapshot; the epoch's row is safe
        reached = self._reached.get(number, 0)
        if len(self.space.objectives) == 1 and epoch > reached:
            value = metrics.get(next(iter(self.space.objectives)))
            if value is not None:
                self._running[number].report(float(value), epoch)
        self.rungs.record(number, epoch, metrics)
        # What goes on from an older checkpoint has passed this rung before: it is not asked again,
        # or the rows of its later epochs would be those of a trial that never had them.
        return self.early_stopping and epoch >= reached and not self.rungs.keeps(number, epoch)

    def finish(
        self,
        number: int,
        status: str,
        stop_reason: str | None = None,
        traceback: str | None = None,
    ) -> None:
        """Ends a trial: COMPLETE, PRUNED or FAILED, with the reason of the last two.

        Args:
            traceback: of a failed one; it is kept in a file that the row names.
        """
        row = dict(self.store.trials[number])
        values = [row.get(name) for name in self.space.objectives]
        if status == "COMPLETE" and any(v is None or not math.isfinite(v) for v in values):
            reported = zip(self.space.objectives, values, strict=True)
            missing = [n for n, v in reported if v is None or not math.isfinite(v)]
            status, stop_reason = "FAILED", f"it reported no finite {', '.join(missing)}"
        row |= {"status": status, "stop_reason": stop_reason}
        if traceback is not None:
            row["failure"] = failures.keep(self.folder, number, traceback)
        if status == "COMPLETE":
            path = self.folder / "models" / f"{row['trial']}.json"
            path.write_text(self._experiments[number] + "\n")
        self.store.put_trial(row)
        study.tell(self._study, self._running.pop(number), row, self.space.objectives)
        (self._state / "checkpoints" / f"{number}.pt").unlink(missing_ok=True)
        self._drop_models()
        self.store.snapshot_if_due()

    def note(self, number: int, **columns: Any) -> None:
        """Sets columns of a running trial's row, such as what the worker says about its machine."""
        self.store.validate("trials", columns)
        self.store.trials[number] = {**self.store.trials[number], **columns}

    def close(self) -> None:
        self.store.close()
        self._lock.release()

    @property
    def unfinished(self) -> int:
        """Trials that have been started or are still to come."""
        done = sum(row["status"] in FINISHED for row in self.store.trials.values())
        total = (
            len(self.store.trials) if self.exhausted else max(self.trials, len(self.store.trials))
        )
        return total - done

    # --- Starting -------------------------------------------------------------------------------

    def _start(self, trial: Trial) -> Task | None:
        """The trial's Task and its RUNNING row, or None for an experiment that was there before."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's about `enqueue` values outside a range
            try:
                experiment = self.space.sample(trial)
            except ValueError:  # a branch that the dry run did not meet
                self._study.tell(trial, state=TrialState.FAIL)
                raise
        key, number = experiment.key(), trial.number
        if self._keys.setdefault(key, number) != number:
            trial.set_user_attr("duplicate_of", self._keys[key])
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        if number not in self.store.trials:
            self.store.put_trial(
                schema.started(self.name, number, key, flatten(experiment), trial.params)
            )
        row = self.store.trials[number]
        self._running[number] = trial
        self._experiments[number] = experiment.to_json()
        return Task(
            number=number,
            trial=row["trial"],
            experiment=experiment,
            checkpoint=self._state / "checkpoints" / f"{number}.pt",
            model=self.folder / "models" / f"{row['trial']}.safetensors",
            asked=time.time(),
        )

    # --- Opening --------------------------------------------------------------------------------

    def _check_identity(self, overrides: Overrides) -> None:
        """Refuses a folder of another space or other settings: their trials do not compare."""
        identity = {
            "space": f"{self.space.path.name} {self.space.fingerprint}",
            "objectives": self.space.objectives,
            **{f"--{name}": value for name, value in asdict(overrides).items()},
        }
        path = self._state / "sweep.json"
        if path.exists():
            before = json.loads(path.read_text())
            changed = [name for name in identity if before.get(name) != identity[name]]
            if changed:
                said = "; ".join(
                    f"{name} was {before.get(name)}, is {identity[name]}" for name in changed
                )
                raise ValueError(
                    f"{self.folder} holds another sweep ({said}). Take another --name, or move "
                    "the folder away"
                )
        elif (self.folder / "trials").exists():
            raise ValueError(f"{self.folder} holds tables of unknown origin; take another --name")
        else:
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(identity, indent=1) + "\n")
            partial.replace(path)
        self._experiments: dict[int, str] = {}

    def _reconcile(self) -> list[tuple[int, int]]:
        """Tells the study what the rows know; gives number and Optuna's id of the trials that are
        to be run again."""
        waiting = []
        for frozen in self._study.get_trials(deepcopy=False):
            if frozen.state != TrialState.RUNNING:
                continue
            row = self.store.trials.get(frozen.number)
            if row is not None and row["status"] in FINISHED:
                trial = Trial(self._study, frozen._trial_id)
                study.tell(self._study, trial, row, self.space.objectives)
            else:
                waiting.append((frozen.number, frozen._trial_id))
        return waiting

    # --- Ending ---------------------------------------------------------------------------------

    def _drop_models(self) -> None:
        """Deletes the stored models that `--keep` does not want."""
        files = list((self.folder / "models").iterdir())
        stored = {path.stem for path in files}
        rows = [row for row in self.store.trials.values() if row["trial"] in stored]
        complete = [row for row in rows if row["status"] == "COMPLETE"]
        kept = {"all": complete, "none": []}.get(self.keep)
        if kept is None:  # the front of what is there: what was dropped before was not on it
            values = [[float(row[name]) for name in self.space.objectives] for row in complete]
            order = ranks(values, list(self.space.objectives.values())) if complete else []
            kept = [row for row, rank in zip(complete, order, strict=True) if rank == 0]
        ended = {row["trial"] for row in rows if row["status"] in FINISHED}
        unwanted = ended - {row["trial"] for row in kept}
        for path in files:
            if path.stem in unwanted:
                path.unlink()
