"""The actor that holds one stage of a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from raybench import data
from raybench.cluster.network import choose_interface
from raybench.cluster.object_store import StoreLink
from raybench.cluster.own_node import hide_foreign_gpus
from raybench.experiment import Experiment, from_json
from raybench.parallel.pipeline import shared_memory
from raybench.parallel.pipeline.shared_memory import SharedLink
from raybench.parallel.pipeline.stage import State
from raybench.parallel.pipeline.transport import (
    DEADLINE_S,
    GlooLink,
    Link,
    NcclLink,
    Throttled,
)
from raybench.training import measure, process
from raybench.training.staged import Report, StageRun, choose_cuts


@dataclass(frozen=True)
class Meeting:
    """How the stages of a trial connect to each other."""

    host: str
    port: int
    name: str  # of the shared memory; unique
    mailbox: Any


@ray.remote(max_restarts=0)
class StageActor:
    """Holds a stage of one trial after another."""

    def __init__(self) -> None:
        hide_foreign_gpus()
        process.prepare(threads=1)
        choose_interface()
        self._run: StageRun | None = None
        self._store: TCPStore | None = None

    def cuts(self, experiment_json: str) -> list[int]:
        """Where to cut the model; measured in this process while the other stages are idle."""
        experiment = from_json(experiment_json)
        return choose_cuts(experiment, data.load(experiment))

    def meet(self) -> tuple[str, int]:
        """Opens the store that the other stages connect to; returns host and port."""
        self.end()
        host = ray.util.get_node_ip_address()
        # Port 0: the system chooses a free one.
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def begin(
        self,
        experiment_json: str,
        rank: int,
        cuts: list[int],
        meeting: Meeting,
        state: State | None,
    ) -> None:
        """Builds this stage's blocks and links, and loads a checkpoint's state if there is one."""
        if rank:
            self.end()
        experiment = from_json(experiment_json)
        images = data.load(experiment)
        connect = _Connect(experiment, rank, len(cuts) + 1, meeting, self._store)
        self._run = StageRun(experiment, images, rank, cuts, connect)
        if state is not None:
            self._run.load(state)

    @ray.method(num_returns=2)
    def epoch(self, number: int) -> tuple[Report, State]:
        """An epoch's report, and the state after it."""
        assert self._run is not None
        try:
            return self._run.epoch(number), self._run.state()
        except BaseException:
            self.end()  # breaks the links, so that the neighbours end as well
            raise

    def end(self) -> None:
        """Releases the trial and its process group."""
        if self._run is not None:
            self._run.close()
        self._run = self._store = None
        if dist.is_initialized():
            dist.destroy_process_group()


class _Connect:
    """Makes the links of one stage with the experiment's transport."""

    def __init__(
        self,
        experiment: Experiment,
        rank: int,
        stages: int,
        meeting: Meeting,
        store: TCPStore | None,
    ) -> None:
        self.pipeline, self.rank, self.meeting = experiment.pipeline, rank, meeting
        transport = self.pipeline.transport
        if transport in ("gloo", "nccl"):
            deadline = timedelta(seconds=DEADLINE_S)
            if rank:
                store = TCPStore(meeting.host, meeting.port, timeout=deadline)
            dist.init_process_group(
                transport, store=store, rank=rank, world_size=stages, timeout=deadline
            )
        if transport == "nccl":  # all ranks create all groups in the same order
            self.groups: dict[tuple[int, int], Any] = {
                (a, b): dist.new_group([a, b])
                for one in range(stages - 1)
                for a, b in ((one, one + 1), (one + 1, one))
            }

    def __call__(self, peer: int, size: int) -> Link:
        link = self._link(peer, size)
        rate = self.pipeline.link_mb_s
        return Throttled(link, rate) if rate else link

    def _link(self, peer: int, size: int) -> Link:
        chunks = self.pipeline.chunks
        match self.pipeline.transport:
            case "gloo":
                return GlooLink(peer, chunks, size)
            case "shm":
                lower = min(self.rank, peer)
                path = shared_memory.FOLDER / f"raybench-{self.meeting.name}-{lower}"
                return SharedLink(Path(path), chunks, size, lower=self.rank == lower)
            case "nccl":
                groups = self.groups[self.rank, peer], self.groups[peer, self.rank]
                return NcclLink(peer, groups, chunks, size, measure.pick_device())
            case "object_store":
                return StoreLink(self.meeting.mailbox, self.rank, peer, chunks)
