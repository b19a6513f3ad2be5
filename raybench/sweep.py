"""Sweep: what a sweep decides and remembers, without a word about who runs the trials.

    ask ──▶ Task ──▶ (somebody trains it) ──▶ report, report, … ──▶ finish
     │                                          │ stop?                │
     └─ Optuna study, a journal file            └─ rungs               └─ rows, then the study

The order of writing makes every kill harmless: an outcome is first a row on disk, then told to
the study. On opening, a trial that has its row but is still running for Optuna is told; one that
has neither is run again, under its old number and with its old parameters.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import Trial, TrialState

from raybench import family
from raybench.experiment import Experiment
from raybench.results import schema
from raybench.results.front import ranks
from raybench.results.store import Row, Store, repair_tail
from raybench.rungs import Rungs
from raybench.space import Overrides, Space

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
    ) -> None:
        if trials < 1:
            raise ValueError(f"--trials is {trials}: a sweep has 1 or more")
        # Absolute: the workers that write the models have another working directory.
        self.folder, self.space, self.trials, self.keep = folder.absolute(), space, trials, keep
        self.name = folder.name
        self._seed = overrides.seed
        self._state = self.folder / ".state"
        for path in (self._state / "checkpoints", self.folder / "models"):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._state / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another process is running the sweep in {folder}") from error
        self._check_identity(overrides)
        metrics = family.metrics(space.family)
        about = {"family": space.family, "sweep": self.name, "objectives": space.objectives}
        self.store = Store(
            self.folder, schema.trial_schema(metrics, about), schema.epoch_schema(metrics, about)
        )
        self.early_stopping = early_stopping
        self.rungs: Rungs | None = None
        self._study = self._open_study()
        self._running: dict[int, Trial] = {}
        self._waiting = self._reconcile()
        self._keys = {row["key"]: n for n, row in self.store.trials.items()}
        self.exhausted = False

    # --- The three verbs ------------------------------------------------------------------------

    def ask(self) -> Task | None:
        """The next trial to run, or None when the sweep has all that it was to have."""
        if self._waiting:
            return self._start(self._waiting.pop(0))
        for _ in range(DUPLICATES):
            if len(self.store.trials) >= self.trials:
                return None
            number = len(self._study.get_trials(deepcopy=False))
            # A seed a number: neither a restart nor the order of arrival repeats a suggestion.
            self._study.sampler = self._sampler(number)
            task = self._start(self._study.ask())
            if task is not None:
                return task
        self.exhausted = True
        return None

    def report(self, number: int, epoch: int, metrics: Row) -> bool:
        """Takes an epoch's metrics; whether the trial shall stop here."""
        row = self.store.trials[number]
        identity = {name: row[name] for name in schema.IDENTITY}
        self.store.put_epoch({**identity, "epoch": epoch, **metrics})
        row = {**row, **metrics, "epoch": epoch}
        self.store.trials[number] = row  # goes into the next snapshot; the epoch's row is safe
        if len(self.space.objectives) == 1:
            value = metrics.get(next(iter(self.space.objectives)))
            if value is not None:
                self._running[number].report(float(value), epoch)
        if self.rungs is None or not self.early_stopping:
            return False
        self.rungs.record(number, epoch, metrics)
        return not self.rungs.keeps(number, epoch)

    def finish(self, number: int, status: str, stop_reason: str | None = None) -> None:
        """Ends a trial: COMPLETE, PRUNED or FAILED, with the reason of the last two."""
        row = dict(self.store.trials[number])
        values = [row.get(name) for name in self.space.objectives]
        if status == "COMPLETE" and any(v is None or not math.isfinite(v) for v in values):
            missing = [n for n, v in zip(self.space.objectives, values, strict=True) if v is None]
            status, stop_reason = "FAILED", f"it did not report {', '.join(missing)}"
        row |= {"status": status, "stop_reason": stop_reason}
        self.store.put_trial(row)
        self._tell(self._running.pop(number), row)
        (self._state / "checkpoints" / f"{number}.pt").unlink(missing_ok=True)
        if status == "COMPLETE":
            path = self.folder / "models" / f"{row['trial']}.json"
            path.write_text(json.dumps(self._experiments[number]) + "\n")
        self._drop_models()
        self.store.snapshot_if_due()

    def note(self, number: int, **columns: Any) -> None:
        """Sets columns of a running trial's row, such as what the worker says about its machine."""
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
            experiment = self.space.sample(trial)
        key, number = experiment.key(), trial.number
        if self._keys.setdefault(key, number) != number:
            trial.set_user_attr("duplicate_of", self._keys[key])
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        if self.rungs is None:
            self.rungs = Rungs(self.space.objectives, experiment.recipe.epochs)
            for row in self.store.epoch_rows():
                self.rungs.record(row["number"], row["epoch"], row)
        if number not in self.store.trials:
            self.store.put_trial(schema.started(self.name, number, experiment, trial.params))
        row = self.store.trials[number]
        self._running[number] = trial
        self._experiments[number] = json.loads(experiment.to_json())
        return Task(
            number=number,
            trial=row["trial"],
            experiment=experiment,
            checkpoint=self._state / "checkpoints" / f"{number}.pt",
            model=self.folder / "models" / f"{row['trial']}.safetensors",
            asked=time.time(),
        )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        digest = hashlib.sha256(f"{self._seed} {number}".encode()).digest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # group=True is marked experimental
            return optuna.samplers.TPESampler(
                seed=int.from_bytes(digest[:4], "big"),
                # The branches of a conditional space are modelled one by one.
                multivariate=True,
                group=True,
                constant_liar=True,
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
        self._experiments: dict[int, dict[str, Any]] = {}

    def _open_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(logging.WARNING)
        journal = self._state / "study.journal"
        if journal.exists():
            repair_tail(journal)
        # A lock left by a killed driver would be waited for; the folder's own lock is held.
        for left in self._state.glob("study.journal.lock*"):
            left.unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        directions = [
            StudyDirection.MAXIMIZE if d == "max" else StudyDirection.MINIMIZE
            for d in self._directions()
        ]
        study = optuna.create_study(
            study_name=self.name, storage=storage, directions=directions, load_if_exists=True
        )
        known = [t.system_attrs.get("fixed_params") for t in study.get_trials(deepcopy=False)]
        for params in self.space.enqueue:
            if params not in known:
                study.enqueue_trial(params)
        return study

    def _directions(self) -> list[str]:
        return list(self.space.objectives.values())

    def _reconcile(self) -> list[Trial]:
        """Tells the study what the rows know; gives the trials that are to be run again."""
        waiting = []
        for frozen in self._study.get_trials(deepcopy=False):
            if frozen.state != TrialState.RUNNING:
                continue
            trial = Trial(self._study, frozen._trial_id)
            row = self.store.trials.get(frozen.number)
            if row is not None and row["status"] in FINISHED:
                self._tell(trial, row)
            else:
                self._study.sampler = self._sampler(frozen.number)
                waiting.append(trial)
        return waiting

    # --- Ending ---------------------------------------------------------------------------------

    def _tell(self, trial: Trial, row: Row) -> None:
        if row["stop_reason"]:
            trial.set_user_attr("stop_reason", row["stop_reason"])
        if row["status"] == "COMPLETE":
            self._study.tell(trial, [float(row[name]) for name in self.space.objectives])
        elif row["status"] == "PRUNED":
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _drop_models(self) -> None:
        """Deletes the stored models that `--keep` does not want."""
        complete = [row for row in self.store.trials.values() if row["status"] == "COMPLETE"]
        kept = {"all": complete, "none": []}.get(self.keep)
        if kept is None:
            values = [[float(row[name]) for name in self.space.objectives] for row in complete]
            order = ranks(values, self._directions()) if complete else []
            kept = [row for row, rank in zip(complete, order, strict=True) if rank == 0]
        wanted = {row["trial"] for row in kept}
        ended = {r["trial"] for r in self.store.trials.values() if r["status"] in FINISHED}
        for path in (self.folder / "models").iterdir():
            if path.stem in ended - wanted:
                path.unlink()
