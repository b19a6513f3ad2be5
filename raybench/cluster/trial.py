"""The Tune trainable of one-worker trials: an actor that is reused from trial to trial."""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, RayTaskError

from raybench import data
from raybench.cluster.files import Home
from raybench.cluster.own_node import hide_foreign_gpus, leaving
from raybench.cluster.stages import Staged
from raybench.cluster.trial_files import trial_files
from raybench.experiment import Experiment, from_json
from raybench.parallel.ddp import Replicas
from raybench.parallel.pipeline.transport import PeerLost
from raybench.training import measure, process
from raybench.training.loop import Diverged, Epoch
from raybench.training.trainer import trainer

OF_A_NODE = re.compile(r"(its|the) node (has died|was|is dead)|NodeDiedError|node is either dead")
"""Matches Ray's messages about a lost node, but not those about a lost process, whose advice also
mentions "node deaths"."""
LEAVING = "its node is about to be taken away"
CHECKPOINT_EVERY_S = 15.0  # the most work of a trial that is repeated after a kill


@dataclass(frozen=True)
class Job:
    """A trial as it is sent to the worker."""

    experiment: str
    checkpoint: str
    model: str | None
    threads: int
    every_epoch: bool = False
    """Whether every epoch is saved, not only one every `CHECKPOINT_EVERY_S`."""
    home: Home | None = None
    """How to access the files from another machine; None if there is none."""

    def config(self) -> dict[str, Any]:
        return dict(vars(self))


def report(epoch: Epoch, started: float) -> dict[str, Any]:
    """An Epoch as a result for Tune: one string, because Tune would flatten nested values."""
    content = {"epoch": epoch.number, "last": epoch.last, "metrics": epoch.metrics}
    return {"report": json.dumps(content), "started": started}


class LostError(RuntimeError):
    """A process or node of the trial was lost, in one line; the trial has not failed."""


class MovedError(LostError):
    """The trial has left a draining node; its checkpoint is written."""


def failure(error: BaseException, started: float = 0.0) -> dict[str, Any]:
    """A failed trial as a result for Tune, because an exception would end the warm actor.

    If a process or node was lost and the trial itself has not failed, `lost` is a line about it.
    """
    content = {"failed": reason(error), "traceback": "".join(traceback.format_exception(error))}
    if (what := lost(error)) is not None:
        content["lost"] = what
    return {"report": json.dumps(content), "started": started}


def raised(content: dict[str, Any]) -> RuntimeError:
    """A failure's report as an exception, with the worker's traceback as its note."""
    error = RuntimeError(content["failed"])
    error.add_note(content.get("traceback", ""))
    return error


def reason(error: BaseException) -> str:
    """A trial's `stop_reason`: diverged, out_of_memory, or the error's type and first line."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return reason(error.cause)  # Ray's own text names the process, not the error
    text = str(error)
    if isinstance(error, Diverged):
        return "diverged"
    if (
        isinstance(error, MemoryError | OutOfMemoryError)
        or "out of memory" in text
        or "not enough memory" in text
        or "running low on memory" in text  # Ray has killed the worker
    ):
        return "out_of_memory"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def lost(error: BaseException) -> str | None:
    """A line about the lost process or node; None for other errors."""
    if isinstance(error, LostError):  # Ray's own text is a traceback
        return str(error.cause if isinstance(error, RayTaskError) else error)
    if isinstance(error, PeerLost):
        return "a stage's process died"
    if isinstance(error, GetTimeoutError):
        return "the driver's machine did not answer"
    if not isinstance(error, RayError) or isinstance(error, RayTaskError):
        return None
    text = str(error)
    if reason(error) == "out_of_memory" or "creation task" in text:
        return None
    return "its node was lost" if OF_A_NODE.search(text) else "its worker process died"


def epochs(experiment: Experiment, job: Job) -> Generator[Epoch, None, None]:
    """The experiment's epochs, resumed from a checkpoint if there is one, saved periodically."""
    workers = Replicas()
    train = trainer(experiment, Staged)
    with trial_files(job.checkpoint, job.model, job.home) as files:
        resume, saved = files.resume(), time.monotonic()
        for epoch in train(experiment, resume=resume, store=files.model):
            # Either all workers save or none: by rank 0's clock, or before a node leaves.
            due = workers.rank == 0 and time.monotonic() - saved > CHECKPOINT_EVERY_S
            due = due or leaving()
            if not epoch.last and workers.any(due or job.every_epoch):
                epoch.save(files.checkpoint)
                if workers.rank == 0:
                    files.saved()
                saved = time.monotonic()
            if epoch.last and workers.rank == 0:
                files.stored()
            yield epoch


def environment(job: Job) -> dict[str, Any]:
    """The worker's machine and data, as columns of the trial's row."""
    columns: dict[str, Any] = {**measure.machine(), **measure.provenance(), "threads": job.threads}
    try:
        columns["data_sha256"] = data.load(from_json(job.experiment)).sha256
    except (ValueError, OSError):  # the trial will report the same error
        columns["data_sha256"] = None
    return columns


class TrialActor(tune.Trainable):
    """`step` is one epoch. Tune resets the actor for the next trial (`reuse_actors`), so that
    importing torch, mapping the images and oneDNN's choice of kernels happen only once."""

    def setup(self, config: dict[str, Any]) -> None:
        hide_foreign_gpus()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._epochs.close()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if leaving():
            # The error ends this actor, which Tune would otherwise reuse for the next trial.
            raise MovedError(LEAVING)
        try:
            return report(next(self._epochs), self._started) | self._first()
        except Exception as error:
            if (what := lost(error)) is not None:
                # The error ends this actor and its placement group, which may have lost a node.
                raise LostError(what) from error
            return failure(error, self._started) | self._first()

    def cleanup(self) -> None:
        self._epochs.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._job = Job(**config)
        self._told = False
        self._started = time.time()
        process.prepare(self._job.threads)  # one thread per CPU of the trial
        self._epochs = epochs(from_json(self._job.experiment), self._job)

    def _first(self) -> dict[str, str]:
        """The machine's columns, sent with the first result only."""
        if self._told:
            return {}
        self._told = True
        return {"environment": json.dumps(environment(self._job))}
