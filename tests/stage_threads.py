"""Two stages in two threads of this process, as a runner of a pipeline asks for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import torch

from raybench.data import Images
from raybench.experiment import Experiment
from raybench.parallel.pipeline.stage import State
from raybench.training.staged import Report, StageRun, merged

DEADLINE_S = 60.0


class QueueLink:
    """One end of a link; messages of a chunk wait in the other's queue."""

    def __init__(self, queues: tuple[Queue[Any], Queue[Any]], side: int) -> None:
        self._mine, self._theirs = queues[side], queues[1 - side]

    def begin(self) -> None:
        """Nothing is left over from the last step."""

    def send(self, message: torch.Tensor, chunk: int) -> None:
        self._theirs.put((chunk, message.clone()))

    def receive(self, chunk: int) -> torch.Tensor:
        arrived, message = self._mine.get(timeout=DEADLINE_S)
        assert arrived == chunk
        return message

    def close(self) -> None:
        """The queues go with the stages."""


class Threads:
    """Stages before and from block 4 on."""

    restarts = 0

    def __init__(self, experiment: Experiment, images: Images, state: State | None) -> None:
        self.cuts = [4]
        queues: tuple[Queue[Any], Queue[Any]] = (Queue(), Queue())
        self.runs = [
            StageRun(
                experiment, images, rank, self.cuts, lambda *_, rank=rank: QueueLink(queues, rank)
            )
            for rank in (0, 1)
        ]
        for run in self.runs:
            if state is not None:
                run.load(state)

    def epoch(self, number: int) -> list[Report]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda run: run.epoch(number), self.runs))

    def state(self) -> State:
        return merged([run.state() for run in self.runs])

    def close(self) -> None:
        for run in self.runs:
            run.close()
