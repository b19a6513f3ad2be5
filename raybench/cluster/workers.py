"""Trials of several workers: one TorchTrainer serves trial after trial.

    driver or slot                 Mailbox (actor)               workers of one TorchTrainer
    start(job)         ──────────▶ a job for every rank ───────▶ train(experiment)
    next_report()      ◀────────── rank 0's reports ◀─────────── Epoch, and wait for go or stop
    next_report() again, or stop() ───── go / stop ────────────▶ the next epoch, or the next job

A new TorchTrainer takes 22 to 40 s to start on two cores; an existing process group starts a trial
in under 0.1 s. Trials are stopped cooperatively, so that no placement group is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import threading
import time
import uuid
from typing import Any

import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayError
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raybench.cluster import trial
from raybench.cluster.network import NetworkConfig
from raybench.cluster.own_node import hide_foreign_gpus
from raybench.cluster.trial import Job, LostError
from raybench.experiment import from_json
from raybench.training import process

START_S = 300.0  # deadline for a group of workers to start
ROOM_S = 20.0  # how long the nodes may have no room for it, for example after the loss of one
STOP_S = 30.0  # deadline for a stopped trial to release its workers
COLLECTIVE_S = 120  # deadline of one collective operation
DYING_S = 15.0  # time for a group to end after a worker has reported a broken connection
LOOK_S = 1.0  # time for a group to end after an error that does not mention a connection
LINK_SIGNS = (
    "process group",
    "Gloo",
    "gloo",
    "NCCL",
    "nccl",
    "Connection",
    "connection",
    "Broken pipe",
)
GO, STOP = "go", "stop"


@ray.remote(num_cpus=0)
class Mailbox:
    """Passes jobs to the workers, and reports back."""

    def __init__(self, workers: int) -> None:
        self._jobs: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(workers)]
        self._words: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(workers)]
        self._reports: asyncio.Queue[Any] = asyncio.Queue()
        self._idle: set[int] = set()

    async def put_job(self, job: dict[str, Any] | None) -> None:
        for stale in (*self._words, self._reports):  # unread messages of the last trial
            while not stale.empty():
                stale.get_nowait()
        for queue in self._jobs:
            queue.put_nowait(job)

    async def next_job(self, rank: int) -> dict[str, Any] | None:
        self._idle.add(rank)
        job = await self._jobs[rank].get()
        self._idle.discard(rank)
        return job

    async def put_word(self, word: str) -> None:
        for queue in self._words:
            queue.put_nowait(word)

    async def next_word(self, rank: int) -> str:
        return await self._words[rank].get()

    async def put_report(self, report: dict[str, Any]) -> None:
        self._reports.put_nowait(report)

    async def next_report(self) -> dict[str, Any]:
        return await self._reports.get()

    async def idle(self) -> int:
        return len(self._idle)


def serve(config: dict[str, Any]) -> None:
    """The loop of every worker of the TorchTrainer: runs jobs until it gets None."""
    hide_foreign_gpus()
    mailbox, rank = config["mailbox"], ray.train.get_context().get_world_rank()
    while (job_config := ray.get(mailbox.next_job.remote(rank))) is not None:
        job = Job(**job_config)
        started = time.time()
        process.prepare(job.threads)
        epochs = trial.epochs(from_json(job.experiment), job)
        try:
            for epoch in epochs:
                if rank == 0:
                    result = trial.report(epoch, started)
                    if epoch.number == 1 or epoch.last:
                        result["environment"] = json.dumps(trial.environment(job))
                    ray.get(mailbox.put_report.remote(result))
                if epoch.last or ray.get(mailbox.next_word.remote(rank)) == STOP:
                    break
        except Exception as error:  # reported as the trial's failure; the group stays
            ray.get(mailbox.put_report.remote(trial.failure(error)))
        finally:
            epochs.close()


class WorkerGroup:
    """A TorchTrainer's workers, running one job at a time.

    Args:
        workers: number of workers, each with one CPU and `gpus` GPUs.
    """

    def __init__(self, workers: int, gpus: float) -> None:
        self.workers, self.gpus = workers, gpus
        self._open()

    def start(self, job: Job) -> None:
        """Starts a job; ends the previous one if it is still running."""
        if not self._wait_until_idle():
            self._kill()
            self._open()
        self._granted = True  # the first epoch needs no go
        ray.get(self._mailbox.put_job.remote(job.config()))

    def next_report(self) -> dict[str, Any]:
        """The next epoch's report; if a process of the group died, a report of the lost trial.

        The next job then gets a new group.
        """
        report = self.hear()
        if report is None or self._is_of_a_broken_link(json.loads(report["report"])):
            return trial.failure(LostError("a worker process of its group died"))
        return report

    def _is_of_a_broken_link(self, content: dict[str, Any]) -> bool:
        """Whether a worker failed because its peer died; its group then ends soon.

        The error may be of any type, for example if Ray Train has already shut down the group.
        """
        if "failed" not in content:
            return False
        of_a_link = any(sign in content["traceback"].lower() for sign in LINK_SIGNS)
        return self.ended(DYING_S if of_a_link else LOOK_S)

    def hear(self) -> dict[str, Any] | None:
        """The next epoch's report; None if a worker process died and ended the group."""
        if not self._granted:
            ray.get(self._mailbox.put_word.remote(GO))
        self._granted = False
        waiting = self._mailbox.next_report.remote()
        while True:
            with contextlib.suppress(GetTimeoutError):
                return dict(ray.get(waiting, timeout=1.0))
            if not self._thread.is_alive():
                return None

    def ended(self, deadline: float) -> bool:
        """Whether the group ends within `deadline` seconds."""
        self._thread.join(deadline)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Tells the workers to leave their trial after the current epoch."""
        if not self._granted:
            ray.get(self._mailbox.put_word.remote(STOP))
            self._granted = True

    def close(self) -> None:
        """Ends the workers and releases their resources."""
        with contextlib.suppress(RayError):  # the mailbox may be lost with its node
            self.stop()
            ray.get(self._mailbox.put_job.remote(None), timeout=STOP_S)
        self._thread.join(STOP_S)
        self._kill()

    def _open(self) -> None:
        self._mailbox: Any = Mailbox.remote(self.workers)  # type: ignore[attr-defined]
        self._granted = True
        self._scratch = tempfile.TemporaryDirectory(prefix="raybench-")
        cpu = self.gpus == 0
        trainer = TorchTrainer(
            serve,
            train_loop_config={"mailbox": self._mailbox},
            torch_config=NetworkConfig(backend="gloo" if cpu else "nccl", timeout_s=COLLECTIVE_S),
            scaling_config=ScalingConfig(
                num_workers=self.workers,
                use_gpu=not cpu,
                resources_per_worker={"CPU": 1} if cpu else {"CPU": 1, "GPU": self.gpus},
            ),
            run_config=RunConfig(name=uuid.uuid4().hex, storage_path=self._scratch.name),
        )

        def fit() -> None:
            # A lost worker ends the run; `next_report` notices the end of the thread.
            with contextlib.suppress(Exception):
                trainer.fit()

        self._thread = threading.Thread(target=fit, daemon=True)
        self._thread.start()
        if not self._wait_until_idle(START_S, ROOM_S):
            alive = self._thread.is_alive()
            self._kill()
            if not alive:
                raise LostError("a worker process of its group died while starting")
            raise LostError(f"its {self.workers} workers found no room in the cluster")

    def _wait_until_idle(self, deadline: float = STOP_S, room_s: float | None = None) -> bool:
        """Waits until all workers wait for a job; False at the deadline.

        Args:
            room_s: also False if the nodes have had no room for the group for so long.
        """
        end = fits = time.monotonic()
        end += deadline
        while time.monotonic() < end and self._thread.is_alive():
            with contextlib.suppress(RayError):
                if ray.get(self._mailbox.idle.remote(), timeout=deadline) == self.workers:
                    return True
            if room_s is not None:
                now = time.monotonic()
                fits = now if self._fits() else fits
                if now - fits > room_s:
                    return False
            time.sleep(0.005)
        return False

    def _fits(self) -> bool:
        """Whether the live nodes have room for the group."""
        has = ray.cluster_resources()
        if has.get("CPU", 0.0) < self.workers:
            return False
        return has.get("GPU", 0.0) >= self.workers * self.gpus

    def _kill(self) -> None:
        ray.kill(self._mailbox)  # workers that wait for it get an error and exit
        self._thread.join(STOP_S)
        self._scratch.cleanup()


class WorkersActor(tune.Trainable):
    """The Tune trainable of trials with several workers: one slot, with its own worker group.

    A trial with another number of workers than the last one needs a new group, 13 to 25 s.
    """

    def setup(self, config: dict[str, Any], gpus: float = 0.0) -> None:
        self._gpus, self._job = gpus, config
        self._group: WorkerGroup | None = None
        self._begun = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._group is not None:
            with contextlib.suppress(RayError):  # `start` checks the group before the next job
                self._group.stop()
        self._job, self._begun = new_config, False
        return True

    def step(self) -> dict[str, Any]:
        try:
            if not self._begun:
                self._begin()
            assert self._group is not None
            return self._group.next_report()
        except Exception as error:
            # For example the mailbox was lost with its node: the next job gets a new group.
            self.cleanup()
            return trial.failure(error)

    def cleanup(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            with contextlib.suppress(Exception):
                group.close()

    def _begin(self) -> None:
        """Starts the job, in a new group if its number of workers differs."""
        if self._group is not None and self._group.workers != _workers(self._job):
            self.cleanup()
        if self._group is None:
            self._group = WorkerGroup(_workers(self._job), self._gpus)
        self._group.start(Job(**self._job))
        self._begun = True


def _workers(config: dict[str, Any]) -> int:
    return from_json(config["experiment"]).parallel.workers
